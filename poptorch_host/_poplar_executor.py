# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The name under which programs reach the class of executors, to annotate with it."""

from .executor import PoplarExecutor

__all__ = ["PoplarExecutor"]
