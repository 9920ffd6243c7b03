# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The names that programs import from PopTorch's private module `_poplar_executor`."""

from .compiling import substitutions
from .executor import PoplarExecutor

__all__ = ["PoplarExecutor"]


class _OverwriteContextManager:
    """Where libraries register substitutes for functions."""

    registerSubsitutionManager = staticmethod(substitutions.register)  # spelled as PopTorch's
