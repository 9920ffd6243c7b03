# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Checks for in-place changes of the tensors that autograd saves.

A device saves the values. PyTorch saves a reference to the tensor, which forward may overwrite before the backward
pass.
"""

import functools
from typing import Any, Tuple

import torch

_OVERWRITTEN = "modified by an inplace operation"  # in the message of PyTorch's RuntimeError


def are_overwritten(loss: torch.Tensor) -> bool:
    """Returns whether a tensor that is saved for the gradient of `loss` was modified in place."""
    met, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in met:
            continue
        met.add(node)
        waiting += [following for following, _ in node.next_functions]
        if _keeps_overwritten(node):
            return True
    return False


def _keeps_overwritten(node: Any) -> bool:
    kind: Any = type(node)
    try:
        for name in _names(kind):
            getattr(node, name)
    except RuntimeError as error:
        if _OVERWRITTEN in str(error):
            return True
        raise
    return False


@functools.lru_cache(maxsize=None)
def _names(kind: type) -> Tuple[str, ...]:
    """Returns the attributes of a type of node that hold its saved tensors."""
    return tuple(name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors")
