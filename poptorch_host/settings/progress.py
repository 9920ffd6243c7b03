# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What a compilation shows of its progress."""

import sys

_WIDTH = 10


def show(done: int, total: int, seconds: float = 0.0) -> None:
    """Writes the bar of a compilation to the standard error.

    Args:
        done: steps so far.
        total: steps in all.
        seconds: how long they took.
    """
    filled = _WIDTH * done // total
    bar = "#" * filled + " " * (_WIDTH - filled)
    minutes, rest = divmod(int(seconds), 60)
    print(
        f"Graph compilation: {100 * done // total:3d}%|{bar}| {done}/{total} [{minutes:02d}:{rest:02d}]",
        file=sys.stderr,
        flush=True,
    )
