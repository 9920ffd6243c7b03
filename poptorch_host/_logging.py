# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The package's logger, with the name, levels, line format and environment variable of PopTorch's."""

import copy
import logging
import os
import sys
from typing import Union

_LEVELS = {
    "TRACE": logging.DEBUG,
    "TRACE_ALL": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "DEBUG_IR": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERR": logging.ERROR,
    "OFF": logging.CRITICAL,
}
_BY_INTEGER = {0: "TRACE", 1: "DEBUG", 2: "INFO", 3: "WARN", 4: "ERR", 6: "OFF"}

logger = logging.getLogger("poptorch::python")


class _StandardErrorHandler(logging.Handler):
    """Writes to the current sys.stderr, so that it follows later redirections."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # as all handlers of logging: a program must not fail because a line cannot be logged
            self.handleError(record)


class _Formatter(logging.Formatter):
    """Formats lines as PopTorch does, with the level in lower case."""

    def format(self, record: logging.LogRecord) -> str:
        shown = copy.copy(record)  # other handlers get the same record
        shown.levelname = record.levelname.lower()
        return super().format(shown)


def setLogLevel(level: Union[str, int]) -> None:
    """Sets the log level.

    Args:
        level: one of the names TRACE, TRACE_ALL, DEBUG, DEBUG_IR, INFO, WARN, ERR, OFF; or 0 (TRACE), 1 (DEBUG), 2
            (INFO), 3 (WARN), 4 (ERR), 6 (OFF).

    Raises:
        ValueError: for any other level.
    """
    if isinstance(level, int):
        if level not in _BY_INTEGER:
            raise ValueError(f"Invalid log level integer {level}: use one of {sorted(_BY_INTEGER)}")
        level = _BY_INTEGER[level]
    if level not in _LEVELS:
        raise ValueError(f"Unknown log level {level!r}: use one of {', '.join(_LEVELS)}")
    logger.setLevel(_LEVELS[level])


def _configure() -> None:
    """Adds a handler to the logger and sets its level from POPTORCH_LOG_LEVEL (default WARN)."""
    handler = _StandardErrorHandler()
    form = "[%(asctime)s.%(msecs)03d] [%(name)s] [%(levelname)s] %(message)s"
    handler.setFormatter(_Formatter(form, "%H:%M:%S"))
    logger.addHandler(handler)
    setLogLevel(os.environ.get("POPTORCH_LOG_LEVEL") or "WARN")


_configure()
