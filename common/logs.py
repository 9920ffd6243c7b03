# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The application's logger and where its lines go: the console and a run's log file."""

import contextlib
import logging
import sys
from pathlib import Path
from typing import Iterator, Optional

logger = logging.getLogger("swin")


@contextlib.contextmanager
def console_log(is_leader: bool) -> Iterator[None]:
    """While this context is open, the log goes to standard output; processes that do not lead only warn."""
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO if is_leader else logging.WARNING)
    logger.propagate = False
    try:
        with _log_to(logging.StreamHandler(sys.stdout)):
            yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate


@contextlib.contextmanager
def file_log(path: Path) -> Iterator[None]:
    """While this context is open, the log is also appended to the file at `path`."""
    with _log_to(_LogFile(str(path), encoding="utf-8")):
        yield


class _LogFile(logging.FileHandler):
    """A log file whose disk may fill up: it says so once, and the run goes on without it."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by logging where a line cannot be written."""
        self._tell(sys.exc_info()[1])

    def close(self) -> None:
        """Closes the file, whether or not what is left in the buffer can be written."""
        try:
            super().close()
        except OSError as error:
            self._tell(error)

    def _tell(self, error: Optional[BaseException]) -> None:
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
