# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Small helpers with no better home: texts of errors, the nearest name, a throughput meter."""

import difflib
import time
from typing import Iterable


def reason(error: Exception) -> str:
    """What went wrong, for a line that names the file: without the path that an OSError names once more."""
    return getattr(error, "strerror", None) or str(error)


def one_line(error: object) -> str:
    """What an error of another library says, without its line breaks."""
    return " ".join(str(error).split())


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' for the known word that looks most like `word` in any case, or nothing."""
    by_letters = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), list(by_letters), n=1, cutoff=0.5)
    return f" (did you mean {by_letters[found[0]]}?)" if found else ""


class Throughput:
    """Samples a second since the last reading, by a clock that no time adjustment moves."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets what was counted so far."""
        self._since = time.monotonic()
        self._samples = 0

    def add(self, samples: int) -> None:
        """Counts `samples` as processed."""
        self._samples += samples

    def read(self) -> float:
        """Samples a second since the last `read` or `restart`; starts a new interval."""
        rate = self._samples / max(time.monotonic() - self._since, 1e-9)
        self.restart()
        return rate
