# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""PyTorch's loss functions, from which back-propagation starts without identity_loss."""

from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ..errors import createPoptorchError

Mark = Callable[[torch.Tensor], None]

BUILT_IN = frozenset(
    """
    binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy cross_entropy_loss
    ctc_loss hinge_embedding_loss kl_div l1_loss margin_ranking_loss mse_loss nll_loss nll_loss2d nll_loss_nd
    poisson_nll_loss smooth_l1_loss soft_margin_loss triplet_margin_loss
    """.split()
)
_CROSS_ENTROPY = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")


def compute(func: Callable[..., torch.Tensor], args: Tuple[Any, ...], kwargs: Dict[str, Any], mark: Mark) -> Any:
    """Calls a built-in loss function and marks the tensor that a device treats as the loss.

    This is the reduced loss, with three exceptions, for which a program must use identity_loss: a cross entropy with
    soft targets is not marked, one with label smoothing is marked before smoothing, and a kl_div with reduction
    'batchmean' is marked after the sum.

    Raises:
        Error: for class weights.
    """
    name = func.__name__
    if name in ("nll_loss", "cross_entropy") and (
        kwargs.get("weight") is not None or (len(args) > 2 and args[2] is not None)
    ):
        raise createPoptorchError(
            f"{name}: class weights are not supported on a device; weight the losses of the samples and use "
            "identity_loss"
        )
    if name == "cross_entropy":
        return _cross_entropy(func, args, kwargs, mark)
    if name == "kl_div" and func is F.kl_div and kwargs.get("reduction") == "batchmean":
        total = func(*args, **{**kwargs, "reduction": "sum"})
        mark(total)
        return total / args[0].shape[0] if args else total / kwargs["input"].shape[0]
    result = func(*args, **kwargs)
    mark(result)
    return result


def _cross_entropy(
    func: Callable[..., torch.Tensor], args: Tuple[Any, ...], kwargs: Dict[str, Any], mark: Mark
) -> torch.Tensor:
    values = {**dict(zip(_CROSS_ENTROPY, args)), **kwargs}
    if is_soft(values["target"]):
        return func(*args, **kwargs)
    smoothing = values.pop("label_smoothing", 0.0)
    plain = func(**values)
    mark(plain)
    if smoothing == 0.0:
        return plain
    return func(**values, label_smoothing=smoothing) + 0.0 * plain  # depends on the marked part, as on a device


def is_soft(target: torch.Tensor) -> bool:
    """Returns whether the targets of a cross entropy are class probabilities rather than indices."""
    return target.is_floating_point()


def smooths_mean_of_indices(name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Returns whether a call is a cross entropy of class indices with label smoothing and mean reduction.

    PopTorch's decomposition of it selects by a mask, which devices do not support.
    """
    if name != "cross_entropy":
        return False
    values = {**dict(zip(_CROSS_ENTROPY, args)), **kwargs}
    return (
        values.get("label_smoothing", 0.0) > 0.0
        and not is_soft(values["target"])
        and values.get("reduction", "mean") == "mean"
    )


class LossMode(TorchFunctionMode):
    """A context manager that calls `mark` with the losses computed by PyTorch's loss functions."""

    def __init__(self, mark: Mark) -> None:
        super().__init__()
        self._mark = mark

    def __torch_function__(
        self, func: Any, types: List[Any], args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        if getattr(func, "__name__", "") in BUILT_IN:
            return compute(func, args, kwargs or {}, self._mark)
        return func(*args, **(kwargs or {}))
