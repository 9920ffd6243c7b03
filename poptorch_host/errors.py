# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The exceptions that this package raises."""

from typing import Any


class Error(Exception):
    """The base class of PopTorch's exceptions.

    Attributes:
        message: the description without the error's origin.
        type: the component that raised the error.
        location: the position in the program; empty if unknown.
    """

    message = ""
    type = "poptorch_py_error"
    location = ""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.message = str(self)


class RecoverableError(Error):
    """Raised by PopTorch when a device fails and can be used again after `recovery_action`.

    The action is one of IPU_RESET, LINK_RESET, PARTITION_RESET and FULL_RESET. Never raised on a host; defined so that
    programs can catch it.
    """

    recovery_action = ""


class UnrecoverableError(Error):
    """Raised by PopTorch when a device fails for good. Never raised on a host."""


def createPoptorchError(msg: str) -> Error:
    """Creates, without raising it, the error that PopTorch's Python front end raises with message `msg`."""
    error = Error(f"'poptorch_py_error': {msg}")
    error.message = msg
    return error


def check(condition: bool, message: str) -> None:
    """Raises AssertionError unless `condition` holds, as PopTorch's argument checks do; also under `python -O`."""
    if not condition:
        raise AssertionError(message)
