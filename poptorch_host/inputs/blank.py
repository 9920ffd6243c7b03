# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Compilation without values: on device "meta", models are traced with tensors that have only a shape and a dtype.

All checks are made and the program is the same, but it cannot be run. A model of any size compiles in seconds and with
little memory. The tensors are PyTorch's fake tensors on the CPU, so that functions choose the same operations as there.
"""

from typing import Optional

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)

# The exceptions of PyTorch for operations whose result, or its shape, depends on values.
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)


class BlankTensors:
    """Creates the tensors of a compilation without values.

    Attributes:
        mode: a context manager in which every operation returns tensors without values.
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def like(self, tensor: torch.Tensor, dtype: Optional[torch.dtype] = None) -> torch.Tensor:
        """Returns a dense tensor without values, of the shape of `tensor`, and of `dtype` (default: the same)."""
        with self.mode:
            return torch.empty(tensor.shape, dtype=dtype or tensor.dtype)
