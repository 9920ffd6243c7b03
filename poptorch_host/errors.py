# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The exceptions of the runtime."""

from typing import Any


class Error(Exception):
    """What the runtime refuses or fails at.

    Attributes:
        message: what happened, without its origin.
        type: the part of the runtime it comes from.
        location: where in the program; empty when not known.
    """

    message = ""
    type = "poptorch_py_error"
    location = ""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.message = str(self)


class RecoverableError(Error):
    """A device failed and can be used again after `recovery_action`.

    That is IPU_RESET, LINK_RESET, PARTITION_RESET or FULL_RESET. A host has no such failures: programs may catch it.
    """

    recovery_action = ""


class UnrecoverableError(Error):
    """A device failed for good. A host has no such failures: programs may catch it."""


def createPoptorchError(msg: str) -> Error:
    """Builds, without raising it, the error that PopTorch's Python side raises for `msg`."""
    error = Error(f"'poptorch_py_error': {msg}")
    error.message = msg
    return error


def check(condition: bool, message: str) -> None:
    """Raises the AssertionError of PopTorch's argument checks unless `condition`, under `python -O` as well."""
    if not condition:
        raise AssertionError(message)
