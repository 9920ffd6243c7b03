# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Whose code is running: the program's, PyTorch's or this package's."""

import sys
from typing import Any

_PACKAGE = __name__.partition(".")[0]


def asked_by_pytorch() -> bool:
    """Whether PyTorch's own code, such as torch.utils.checkpoint, which knows no device ipu, has called a mode."""
    frame: Any = sys._getframe(1)
    while _module_of(frame).startswith(_PACKAGE):
        frame = frame.f_back
    return _module_of(frame).startswith("torch.")


def line_of_program() -> str:
    """Returns the file and line of the innermost code that is neither PyTorch's nor this package's."""
    frame: Any = sys._getframe(1)
    while _module_of(frame).partition(".")[0] in ("torch", _PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _module_of(frame: Any) -> str:
    return str(frame.f_globals.get("__name__", ""))  # generated code may run without a name
