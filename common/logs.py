# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The application's logger and its handlers: the console and the log file of a run."""

import contextlib
import io
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Iterator, List, Optional, Set, TextIO, Type, Union

from common.files import open_regular
from common.progress_bar import above_bars, bars_shown
from utils import one_line

REPEATED = {"repeated": True}  # `extra` of progress records
REPEATED_SECONDS = 0.5  # between two of them on a terminal; files get all

logger = logging.getLogger("swin")


@contextlib.contextmanager
def console_log(is_leader: bool, bars: Optional[bool] = None, stream: Optional[TextIO] = None) -> Iterator[None]:
    """Logs to standard output inside the context; processes other than the leader log warnings only.

    Python warnings, which libraries use, are logged as well.

    Args:
        bars: whether to show progress bars; None: in the leader only.
        stream: to use instead of standard output.
    """
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO if is_leader else logging.WARNING)
    logger.propagate = False
    try:
        with _log_to(_Kept()), _log_to(_Console(stream or sys.stdout)), bars_shown(is_leader if bars is None else bars):
            with _warnings_logged():
                yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate


@contextlib.contextmanager
def _warnings_logged() -> Iterator[None]:
    """Logs Python warnings inside the context, each of them once."""
    told: Set[str] = set()

    def show(message: Union[Warning, str], category: Type[Warning], *_: Any, **__: Any) -> None:
        line = f"{category.__name__}: {one_line(message)}"
        if line not in told:
            told.add(line)
            logger.warning("%s", line)

    shown = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


@contextlib.contextmanager
def file_log(path: Path) -> Iterator[None]:
    """Also appends the log to the regular file at `path` inside the context, including the lines logged so far.

    Raises:
        OSError: if it cannot be opened or is not a regular file.
    """
    handler = _LogFile(str(path), encoding="utf-8")
    with _log_to(handler):
        for kept in [other for other in logger.handlers if isinstance(other, _Kept)]:
            for record in kept.take():
                handler.handle(record)
        yield


class _Console(logging.StreamHandler):  # type: ignore[type-arg]  # not generic when it runs
    """Writes above progress bars; on a terminal, at most two repeated lines per second."""

    _last = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by logging for each record."""
        if getattr(record, "repeated", False) and self.stream.isatty():
            if time.monotonic() - self._last < REPEATED_SECONDS:
                return False
            self._last = time.monotonic()
        return bool(super().filter(record))

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging for each record that passes the filter."""
        with above_bars():
            super().emit(record)


class _Kept(logging.Handler):
    """Keeps the first records for a log file that is opened later."""

    MOST = 1000

    def __init__(self) -> None:
        super().__init__()
        self._records: Optional[List[logging.LogRecord]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging for each record."""
        if self._records is not None and len(self._records) < self.MOST:
            self._records.append(record)

    def take(self) -> List[logging.LogRecord]:
        """The records so far; no more are kept."""
        taken, self._records = self._records or [], None
        return taken


class _LogFile(logging.FileHandler):
    """A log file that reports a write error once and lets the run continue."""

    _failed = False

    def _open(self) -> io.TextIOWrapper:
        descriptor = open_regular(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return open(descriptor, "a", encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by logging when a record cannot be written."""
        self._report(sys.exc_info()[1])

    def close(self) -> None:
        """Closes the file, even if the rest of the buffer cannot be written."""
        try:
            super().close()
        except OSError as error:
            self._report(error)

    def _report(self, error: Optional[BaseException]) -> None:
        if not self._failed:
            print(f"log {self.baseFilename} cannot be written: {error}", file=sys.stderr)
        self._failed = True


@contextlib.contextmanager
def _log_to(handler: logging.Handler) -> Iterator[None]:
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
