# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The progress bar of a compilation."""

import sys

_WIDTH = 10


def show(done: int, total: int, seconds: float = 0.0) -> None:
    """Writes the progress bar to standard error.

    Args:
        done: number of steps done.
        total: number of steps.
        seconds: time that they took.
    """
    filled = _WIDTH * done // total
    bar = "#" * filled + " " * (_WIDTH - filled)
    minutes, rest = divmod(int(seconds), 60)
    print(
        f"Graph compilation: {100 * done // total:3d}%|{bar}| {done}/{total} [{minutes:02d}:{rest:02d}]",
        file=sys.stderr,
        flush=True,
    )
