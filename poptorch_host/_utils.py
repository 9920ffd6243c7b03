# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The names that programs import from PopTorch's private module `_utils`."""

from typing import Iterator, List

import torch

__all__ = ["combine_batch_tensors_gen"]


def combine_batch_tensors_gen(tensors: List[List[torch.Tensor]]) -> Iterator[torch.Tensor]:
    """Yields for each tensor of a batch those of all batches, concatenated along the first dimension."""
    return map(torch.cat, zip(*tensors))
