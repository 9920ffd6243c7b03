# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The names that programs import from PopTorch's private module `_impl`."""

from .context import isRunningOnIpu as isDispatchTracing
from .errors import createPoptorchError
from .weights.wrapping import set_aside as unwrapModelIfNecessary
from .weights.wrapping import wrap_again as rewrapModelIfNecessary

__all__ = ["createPoptorchError", "isDispatchTracing", "rewrapModelIfNecessary", "unwrapModelIfNecessary"]
