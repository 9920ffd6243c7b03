# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Compiling without values: on the host's device "meta", models are traced on tensors of a shape and a dtype alone.

A compiler looks at nothing else, so every check is made and the record of the program is the same; a model of any size
takes seconds and next to no memory. What comes out cannot be run. The tensors are PyTorch's fake tensors, which say
that they are on the CPU, so that functions choose the same operations as there.
"""

from typing import Optional

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)

# What PyTorch raises where the result of an operation, or its shape, depends on values.
NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)


class BlankTensors:
    """Makes the tensors of one compilation.

    Attributes:
        mode: a context inside which every operation returns tensors without values.
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def like(self, tensor: torch.Tensor, dtype: Optional[torch.dtype] = None) -> torch.Tensor:
        """A dense tensor without values, of the shape of `tensor`, and of its dtype unless another is given."""
        with self.mode:
            return torch.empty(tensor.shape, dtype=dtype or tensor.dtype)
