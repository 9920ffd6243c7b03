# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The name under which programs reach PopTorch's way to build an error."""
from .errors import createPoptorchError

__all__ = ["createPoptorchError"]
