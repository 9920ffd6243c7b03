# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Progress bars on standard error, if that is a terminal, and lines that are printed above them."""

import contextlib
import os
import sys
import threading
from typing import Any, Iterator, Optional, Sequence, TypeVar

from tqdm import tqdm

DELAY = 0.5  # seconds before a bar appears: what takes less shows none
REDRAW = 0.5  # seconds between two drawings of a bar that only tells the time

Item = TypeVar("Item")

_are_shown = False


class ProgressBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """tqdm's, without its monitoring thread and without its lock between processes."""

    monitor_interval = 0


ProgressBar.set_lock(threading.RLock())
# A data worker may be forked while another thread holds the lock.
os.register_at_fork(after_in_child=lambda: ProgressBar.set_lock(threading.RLock()))


@contextlib.contextmanager
def bars_shown(shown: bool) -> Iterator[None]:
    """Whether this process shows progress bars inside the context; otherwise it shows none."""
    global _are_shown
    before, _are_shown = _are_shown, shown
    try:
        yield
    finally:
        _are_shown = before


def progress_bar(what: str, total: Optional[int], unit: str, initial: int = 0, **options: Any) -> ProgressBar:
    """A bar to be used as a context and moved by `update(count)`; it is cleared at the end.

    Args:
        what: what runs, shown before the bar.
        total: how much there is to do; None: unknown.
        unit: what is counted, such as ' images'.
        initial: how much is done already.
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
    """The items, with a bar that tells how many of them are done."""
    with progress_bar(what, len(items), unit) as bar:
        for item in items:
            yield item
            bar.update()


@contextlib.contextmanager
def elapsed_time(what: str) -> Iterator[None]:
    """Shows the time since the context was entered, for work that does not tell how far it is."""
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
    """What is printed to standard output inside the context stands above the progress bar, which is drawn again."""
    with ProgressBar.external_write_mode(file=sys.stdout):
        yield


def _redraw(bar: ProgressBar, over: threading.Event) -> None:
    while not over.wait(REDRAW):
        bar.refresh()
