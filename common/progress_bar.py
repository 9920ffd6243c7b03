# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Progress bars on standard error, if it is a terminal, and lines printed above them."""

import contextlib
import os
import sys
import threading
from typing import Any, Iterator, Optional, Sequence, TypeVar

from tqdm import tqdm

DELAY = 0.5  # seconds before a bar appears; shorter work shows none
REDRAW = 0.5  # seconds between updates of a bar that shows only the time

Item = TypeVar("Item")

_are_shown = False


class ProgressBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A tqdm bar without its monitoring thread and its lock between processes."""

    monitor_interval = 0


ProgressBar.set_lock(threading.RLock())
# A data worker may be forked while another thread holds the lock.
os.register_at_fork(after_in_child=lambda: ProgressBar.set_lock(threading.RLock()))


@contextlib.contextmanager
def bars_shown(shown: bool) -> Iterator[None]:
    """Shows or hides the progress bars of this process inside the context."""
    global _are_shown
    before, _are_shown = _are_shown, shown
    try:
        yield
    finally:
        _are_shown = before


def progress_bar(what: str, total: Optional[int], unit: str, initial: int = 0, **options: Any) -> ProgressBar:
    """A progress bar, to be used as a context and moved by `update(count)`; it disappears at the end.

    Args:
        what: label before the bar.
        total: final count; None: unknown.
        unit: unit of the count, such as ' images'.
        initial: initial count.
        options: further arguments of tqdm.
    """
    return ProgressBar(
        desc=what,
        total=total,
        unit=unit,
        initial=initial,
        leave=False,
        dynamic_ncols=True,
        delay=DELAY,
        disable=None if _are_shown else True,  # None: unless standard error is a terminal
        **options,
    )


def tracked(items: Sequence[Item], what: str, unit: str) -> Iterator[Item]:
    """Iterates over the items with a progress bar."""
    with progress_bar(what, len(items), unit) as bar:
        for item in items:
            yield item
            bar.update()


@contextlib.contextmanager
def elapsed_time(what: str) -> Iterator[None]:
    """Shows the time since the context was entered, for work whose progress is unknown."""
    with progress_bar(what, None, "", bar_format="{desc}: {elapsed}") as bar:
        if bar.disable:
            yield
            return
        over = threading.Event()
        thread = threading.Thread(target=_redraw, args=(bar, over), name="progress bar", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextlib.contextmanager
def above_bars() -> Iterator[None]:
    """Prints to standard output inside the context appear above the progress bar."""
    with ProgressBar.external_write_mode(file=sys.stdout):
        yield


def _redraw(bar: ProgressBar, over: threading.Event) -> None:
    while not over.wait(REDRAW):
        bar.refresh()
