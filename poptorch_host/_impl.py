# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The names of PopTorch's private module that programs reach: errors, and models that are plain for a while."""

from .errors import createPoptorchError
from .weights.wrapping import set_aside as unwrapModelIfNecessary
from .weights.wrapping import wrap_again as rewrapModelIfNecessary

__all__ = ["createPoptorchError", "rewrapModelIfNecessary", "unwrapModelIfNecessary"]
