# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The logger of the package, with PopTorch's name, levels, form of a line and environment variable."""

import copy
import logging
import os
import sys
from typing import TextIO, Union

_OFF = logging.CRITICAL + 10
_LEVELS = {
    "TRACE": logging.DEBUG,
    "TRACE_ALL": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "DEBUG_IR": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERR": logging.ERROR,
    "OFF": _OFF,
}
_BY_INTEGER = {0: "TRACE", 1: "DEBUG", 2: "INFO", 3: "WARN", 4: "ERR", 6: "OFF"}

logger = logging.getLogger("poptorch::python")


class _StandardErrorHandler(logging.StreamHandler):
    """Writes to the standard error of the moment of writing, so that a redirection made later is followed."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


class _Formatter(logging.Formatter):
    """PopTorch's lines, whose level is in small letters."""

    def format(self, record: logging.LogRecord) -> str:
        shown = copy.copy(record)  # which other handlers are yet to see
        shown.levelname = record.levelname.lower()
        return super().format(shown)


def setLogLevel(level: Union[str, int]) -> None:
    """Sets what is logged from now on.

    Args:
        level: a name among TRACE, TRACE_ALL, DEBUG, DEBUG_IR, INFO, WARN, ERR, OFF; or 0 (TRACE), 1 (DEBUG), 2 (INFO),
            3 (WARN), 4 (ERR), 6 (OFF).

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
    """Gives the logger its own output and the level of POPTORCH_LOG_LEVEL (WARN unless set)."""
    handler = _StandardErrorHandler()
    form = "[%(asctime)s.%(msecs)03d] [%(name)s] [%(levelname)s] %(message)s"
    handler.setFormatter(_Formatter(form, "%H:%M:%S"))
    logger.addHandler(handler)
    setLogLevel(os.environ.get("POPTORCH_LOG_LEVEL") or "WARN")


_configure()
