# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Comparison of results in tests."""

from typing import Any

import torch


def allclose(ref: Any, other: Any) -> bool:
    """Returns whether two results are close: tensors and floats within torch.allclose's tolerances, other values equal.

    Containers are compared recursively. Tensors must have the same shape; their dtypes may differ.
    """
    if torch.is_tensor(ref) and torch.is_tensor(other):
        return ref.shape == other.shape and torch.allclose(_comparable(ref), _comparable(other), equal_nan=True)
    if isinstance(ref, dict) and isinstance(other, dict):
        return ref.keys() == other.keys() and all(allclose(ref[key], other[key]) for key in ref)
    if isinstance(ref, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(ref) == len(other) and all(map(allclose, ref, other))
    if isinstance(ref, float) and isinstance(other, float):
        return allclose(torch.tensor(ref), torch.tensor(other))
    return type(ref) is type(other) and ref == other


def _comparable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().double()
