# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Floating-point exceptions, for Precision.enableFloatingPointExceptions."""

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import createPoptorchError
from ..inputs.nested import tensors_in

# These return uninitialised memory.
_UNWRITTEN = {"empty_like", "new_empty", "new_empty_strided"}
# The other results of these in forward are for the backward pass. They may be uninitialised (statistics for training,
# random states of attention), or infinite (logarithms of probabilities of what no CTC alignment reaches).
_FIRST_RESULT_ONLY = ("batch_norm", "scaled_dot_product", "ctc_loss")

_FINITE, _INFINITE, _NAN = range(3)
_WORDS = {_INFINITE: "an infinite value", _NAN: "NaN"}


class FloatingPointFaults(TorchDispatchMode):
    """A context manager that raises Error for operations with infinite results of finite inputs, or new NaNs.

    These are overflow, division by zero and invalid operation of IEEE 754. Infinite or NaN inputs, including numbers
    such as -inf for a mask, may propagate. The results of all operations are read once more; inputs only of those
    whose results are not finite, or that overwrite what they are given.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        given = [*args, *kwargs.values()]
        tensors = tensors_in(given)
        # The schemas of some batch norms conceal that they write running statistics.
        overwrites = func._schema.is_mutable or "batch_norm" in name
        before = _worst(tensors, given) if overwrites else None
        result = func(*args, **kwargs)
        if not tensors or name in _UNWRITTEN or func.is_view:
            return result
        results = tensors_in((result,))
        if "backward" not in name and any(part in name for part in _FIRST_RESULT_ONLY):
            results = results[:1]
        after = _worst(results)
        if after == _FINITE:
            return result
        before = _worst(tensors, given) if before is None else before
        if before != _NAN and after > before:
            raise createPoptorchError(
                f"Floating point exception: {name} of {_describe(tensors)} gave {_WORDS[after]}. Lower the "
                "loss scaling or check the inputs; Precision.enableFloatingPointExceptions(False) disables this check"
            )
        return result


def _worst(tensors: Sequence[torch.Tensor], arguments: Sequence[Any] = ()) -> int:
    """Returns whether there is a NaN, or else an infinity, in the tensors or among the numbers in `arguments`."""
    numbers = [argument for argument in arguments if isinstance(argument, float)]
    floating = [tensor for tensor in tensors if tensor.is_floating_point() and not _surely_finite(tensor)]
    if any(math.isnan(number) for number in numbers) or any(bool(tensor.isnan().any()) for tensor in floating):
        return _NAN
    if any(math.isinf(number) for number in numbers) or any(bool(tensor.isinf().any()) for tensor in floating):
        return _INFINITE
    return _FINITE


def _surely_finite(tensor: torch.Tensor) -> bool:
    """Returns whether a tensor's sum is finite, which it is of finite values only. Of large ones, it can overflow."""
    return math.isfinite(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)).item())


def _describe(tensors: List[torch.Tensor]) -> str:
    return ", ".join(f"{str(tensor.dtype).split('.')[1]} {list(tensor.shape)}" for tensor in tensors[:3])
