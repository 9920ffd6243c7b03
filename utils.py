# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Small helpers: error messages, the nearest name, a throughput meter."""

import difflib
import time
from typing import Iterable


def reason(error: Exception) -> str:
    """The message of an error without the path added by OSError, for messages that already name the file."""
    return getattr(error, "strerror", None) or str(error)


def one_line(error: object) -> str:
    """The message of an error on a single line."""
    return " ".join(str(error).split())


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean NAME?)' for the known name closest to `word`, ignoring case, or an empty string.

    If none is close, a name that begins with the word and another part, such as --batch-size for --batch.
    """
    by_letters = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), list(by_letters), n=1, cutoff=0.8)
    found = found or [name for name in by_letters if name.startswith((f"{word.lower()}_", f"{word.lower()}-"))]
    return f" (did you mean {by_letters[found[0]]}?)" if found else ""


class Throughput:
    """Measures samples per second with a monotonic clock."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Starts a new interval."""
        self._since = time.monotonic()
        self._samples = 0

    def add(self, samples: int) -> None:
        """Counts `samples` as processed."""
        self._samples += samples

    def read(self) -> float:
        """Samples per second since the last `read` or `restart`; starts a new interval."""
        rate = self._samples / max(time.monotonic() - self._since, 1e-9)
        self.restart()
        return rate
