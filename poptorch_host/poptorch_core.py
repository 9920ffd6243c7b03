# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The names that programs reach in PopTorch's native module: exceptions, errors on demand, a check of options.

A host has no failures of devices, so that `_throwTestError` is the one way to see what a program makes of them here.
"""

import enum
from typing import Any, Dict, NoReturn

from .context import isRunningOnIpu as isCompilingWithDispatcher
from .enums import OutputMode
from .errors import Error, RecoverableError, UnrecoverableError
from .settings.popart_keys import check_popart_options, log_options

__all__ = ["Error", "RecoverableError", "TestErrorType", "UnrecoverableError", "isCompilingWithDispatcher"]

_LOCATION = "throwTestError::bottomLevel in throwTestError::topLevel"


class TestErrorType(enum.Enum):
    """Where an error comes from."""

    __test__ = False  # no test for pytest

    Poptorch = 0
    Popart = 1
    PopartInternal = 2
    Poplibs = 3
    PoplarUnrecoverable = 4
    PoplarUnknown = 5
    PoplarRecoverableFullReset = 6
    PoplarLinkError = 7


_TYPES = {
    TestErrorType.Poptorch: "poptorch_cpp_error",
    TestErrorType.Popart: "popart_exception",
    TestErrorType.PopartInternal: "popart_internal_exception",
    TestErrorType.Poplibs: "poplibs_exception",
    TestErrorType.PoplarUnrecoverable: "poplar_unrecoverable_runtime_error",
    TestErrorType.PoplarUnknown: "poplar_unknown_runtime_error",
    TestErrorType.PoplarRecoverableFullReset: "poplar_recoverable_runtime_error",
    TestErrorType.PoplarLinkError: "poplar_link_error",
}
_CLASSES = {
    TestErrorType.PoplarUnrecoverable: UnrecoverableError,
    TestErrorType.PoplarRecoverableFullReset: RecoverableError,
}


def _throwTestError(type: TestErrorType) -> NoReturn:
    """Raises an error as one from there would be: of its class, with a type and a location."""
    message = "an error on demand"
    if type is TestErrorType.PoplarLinkError:
        message += ". Output: Library -lfoo not found"
    error = _CLASSES.get(type, Error)(f"In {_LOCATION}: '{_TYPES[type]}': {message}")
    error.message, error.type, error.location = message, _TYPES[type], _LOCATION
    if isinstance(error, RecoverableError):
        error.recovery_action = "FULL_RESET"
    raise error


def _validateOptions(options: Dict[str, Any]) -> None:
    """Checks what `Options.toDict()` returned. Raises Error for an option that PopART does not have or cannot take."""
    from .options import Options  # which needs PyTorch

    known = set(Options().clone().outputMode(OutputMode.All).toDict())
    log_options(options)
    check_popart_options({name: value for name, value in options.items() if name not in known})
