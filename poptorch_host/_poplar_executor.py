# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The executor class, under the name that programs import it from for annotations."""

from .executor import PoplarExecutor

__all__ = ["PoplarExecutor"]
