# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Values that autograd keeps for the backward pass. A device keeps the values as they were, PyTorch the memory, which
forward may write to later."""

import functools
from typing import Any, Tuple

import torch

_OVERWRITTEN = "modified by an inplace operation"  # in the error of PyTorch, which has no class of its own


def are_overwritten(loss: torch.Tensor) -> bool:
    """Whether what the gradient of `loss` needs has been written to: PyTorch then refuses to hand it out."""
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
    try:
        for name in _names(type(node)):
            getattr(node, name)
    except RuntimeError as error:
        if _OVERWRITTEN in str(error):
            return True
        raise
    return False


@functools.lru_cache(maxsize=None)
def _names(kind: type) -> Tuple[str, ...]:
    """The attributes of a kind of node that hold what it keeps."""
    return tuple(name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors")
