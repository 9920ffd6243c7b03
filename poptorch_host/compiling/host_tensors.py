# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Tensors that a forward has on the host: which functions make them there, and what is computed among them alone."""

from typing import Any, Dict, List, Tuple

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._mode_utils import no_dispatch

from ..inputs.nested import tensors_in

# Functions by which PopTorch makes tensors on the device unless a device is given; normal only where it is given
# numbers alone. All others, such as eye, as_tensor, from_numpy and LongTensor, make them on the host.
_FORCED_TO_DEVICE = frozenset(
    """
    arange empty full full_like linspace logspace normal ones rand randint randn randperm range tensor zeros zeros_like
    """.split()
)


def is_forced_to_device(name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Returns whether a call without a device makes a tensor on the device all the same."""
    if name not in _FORCED_TO_DEVICE or "device" in kwargs:
        return False
    return name != "normal" or not tensors_in((*args, *kwargs.values()))


def names_device(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Returns whether a call of Tensor.to specifies a device other than "cpu", directly or by another tensor."""
    named = [*args, kwargs.get("device"), kwargs.get("other")]
    return any(isinstance(arg, (torch.device, torch.Tensor)) or isinstance(arg, str) and arg != "cpu" for arg in named)


def run_on_host(func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any], inputs: List[torch.Tensor]) -> Any:
    """Runs an operation among host tensors as PyTorch does; with values also where a model is compiled without."""
    if any(isinstance(tensor, FakeTensor) for tensor in inputs):
        return func(*args, **kwargs)
    with no_dispatch():
        return func(*args, **kwargs)
