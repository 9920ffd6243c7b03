# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Products of float16 whose partial sums are float16 too: Precision.setPartialsType(torch.half).

The sum over the contracted dimension is cut into groups of TERMS products. A group is added up in float32 and rounded,
and the rounded groups are added in float16, one after the other. So what a program risks with half partials shows on a
host: sums that overflow on the way although they end small, and small terms that vanish beside a large sum. In which
groups a device adds is its compiler's plan: the risk is the same, the digits are not.

Covered are matrix products and convolutions, forward and backward. Fused attention kernels add in float32. The
functions here check nothing: PyTorch's operation has to have taken arguments of the same shapes before.
"""

import functools
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch.nn import functional

from ..options import Options

TERMS = 16  # assumed: float16 products that an IPU's matrix unit adds at a time

Operands = Tuple[Any, ...]


class HalfPartials:
    """Computes the products that a program's options ask to add up in float16.

    Args:
        options: of the executor.
    """

    def __init__(self, options: Options) -> None:
        settings = options._Popart.options
        self._functions: Dict[str, Callable[..., torch.Tensor]] = {}
        if settings.get("partialsTypeMatMuls") == "half":
            self._functions.update(_PRODUCTS)
        if settings.get("convolutionOptions", {}).get("partialsType") == "half":
            self._functions.update(convolution=_convolution, convolution_backward=_convolution_gradients)

    def replacement(self, name: str, operands: Operands) -> Optional[Callable[..., torch.Tensor]]:
        """What computes operation `name` of these operands instead of PyTorch; None where PyTorch is to do it."""
        function = self._functions.get(name)
        tensors = [value for value in operands if isinstance(value, torch.Tensor)]
        return function if function and all(tensor.dtype == torch.float16 for tensor in tensors) else None


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(..., M, K) @ (..., K, N)."""
    parts = zip(left.split(TERMS, -1), right.split(TERMS, -2))
    return functools.reduce(torch.add, ((a.float() @ b.float()).half() for a, b in parts))


def _biased_product(
    bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    return _biased(bias, _product(left, right), beta, alpha)


def _biased(bias: torch.Tensor, product: torch.Tensor, beta: float, alpha: float) -> torch.Tensor:
    return alpha * product + beta * bias if beta else alpha * product  # 0 leaves out what is not finite, too


def _product_with_vector(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return _product(matrix, vector.unsqueeze(1)).squeeze(1)


def _biased_product_with_vector(
    bias: torch.Tensor, matrix: torch.Tensor, vector: torch.Tensor, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    return _biased(bias, _product_with_vector(matrix, vector), beta, alpha)


def _inner_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return _product(left.unsqueeze(0), right.unsqueeze(1)).view(())


_PRODUCTS = {
    "mm": _product,
    "bmm": _product,
    "addmm": _biased_product,
    "baddbmm": _biased_product,
    "mv": _product_with_vector,
    "addmv": _biased_product_with_vector,
    "dot": _inner_product,
}


def _convolution(
    data: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor],
    stride: List[int],
    padding: List[int],
    dilation: List[int],
    transposed: bool,
    output_padding: List[int],
    groups: int,
) -> torch.Tensor:
    """A convolution, over a few input channels of each group at a time."""
    channels = data.shape[1] // groups
    step = max(TERMS // weight[0, 0].numel(), 1)

    def part(first: int) -> torch.Tensor:
        chosen = slice(first, first + step)
        some = data.unflatten(1, (groups, channels))[:, :, chosen].flatten(1, 2)
        if transposed:
            kernel = weight.unflatten(0, (groups, channels))[:, chosen].flatten(0, 1)
        else:
            kernel = weight[:, chosen]
        return torch.ops.aten.convolution(
            some.float(), kernel.float(), None, stride, padding, dilation, transposed, output_padding, groups
        ).half()

    total = functools.reduce(torch.add, map(part, range(0, channels, step)))
    return total if bias is None else total + bias.view(-1, *[1] * (total.dim() - 2))


def _convolution_gradients(
    gradient: torch.Tensor,
    data: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: List[int],
    stride: List[int],
    padding: List[int],
    dilation: List[int],
    transposed: bool,
    output_padding: List[int],
    groups: int,
    wanted: List[bool],
) -> Tuple[Optional[torch.Tensor], ...]:
    """The gradients of a convolution's data, weight and bias; None for those that are not `wanted`."""
    for_data = for_weight = for_bias = None
    if wanted[0]:
        for_data = _data_gradient(gradient, data, weight, stride, padding, dilation, transposed, groups)
    if wanted[1]:
        slid, fixed = (gradient, data) if transposed else (data, gradient)
        for_weight = _weight_gradient(slid, fixed, weight, stride, padding, dilation, groups)
    if wanted[2]:
        for_bias = gradient.sum([0, *range(2, gradient.dim())])
    return for_data, for_weight, for_bias


def _data_gradient(
    gradient: torch.Tensor,
    data: torch.Tensor,
    weight: torch.Tensor,
    stride: List[int],
    padding: List[int],
    dilation: List[int],
    transposed: bool,
    groups: int,
) -> torch.Tensor:
    """A transposed convolution of the gradient, or for a transposed one a plain one, with the same weight."""
    reached = [
        (size - 1) * step - 2 * around + spread * (kernel - 1) + 1
        for size, step, around, spread, kernel in zip(gradient.shape[2:], stride, padding, dilation, weight.shape[2:])
    ]
    # Data at the end that no step of the kernel reached.
    missing = [0 if transposed else size - end for size, end in zip(data.shape[2:], reached)]
    result = _convolution(gradient, weight, None, stride, padding, dilation, not transposed, missing, groups)
    return result[tuple(map(slice, data.shape))]


def _weight_gradient(
    slid: torch.Tensor,
    fixed: torch.Tensor,
    weight: torch.Tensor,
    stride: List[int],
    padding: List[int],
    dilation: List[int],
    groups: int,
) -> torch.Tensor:
    """A product over all positions of the batch: of what the kernel slid over, (N, C, ...), and the other side."""
    positions = fixed.dim() - 2
    patches = functional.pad(slid, [size for around in reversed(padding) for size in (around, around)])
    for dim, (kernel, step, spread) in enumerate(zip(weight.shape[2:], stride, dilation), 2):
        patches = patches.unfold(dim, spread * (kernel - 1) + 1, step)[..., ::spread]
        patches = patches.narrow(dim, 0, fixed.shape[dim])
    patches = patches.unflatten(1, (groups, -1)).movedim(2, 2 + positions).transpose(0, 1)
    rows = fixed.unflatten(1, (groups, -1)).permute(1, 2, 0, *range(3, 3 + positions))
    return _product(rows.flatten(2), patches.flatten(1, 1 + positions).flatten(2)).reshape(weight.shape)
