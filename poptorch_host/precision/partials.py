# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Products with float16 partial sums, for Precision.setPartialsType(torch.half).

The sum over the contracted dimension is split into groups of TERMS products. Each group is summed in float32 and
rounded, and the rounded groups are summed in float16. This reproduces the numerical problems of half partials:
intermediate sums that overflow, and small terms that vanish in a large sum. A device's compiler chooses its own groups,
so that the last digits differ.

Matrix products and convolutions are supported, forward and backward. Fused attention kernels sum in float32. The
functions here do not check their arguments: PyTorch's operation must have accepted the same shapes before.
"""

import functools
import itertools
import math
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch.nn import functional

from ..options import Options

TERMS = 16  # assumed number of float16 products that an IPU's matrix unit sums at a time

_CACHED = 2**19  # number of float32 sums that a core's cache holds

Operands = Tuple[Any, ...]


class HalfPartials:
    """Computes products with float16 partial sums, if the options of a program ask for them.

    Args:
        options: the executor's options.
    """

    def __init__(self, options: Options) -> None:
        settings = options._Popart.options
        self._functions: Dict[str, Callable[..., Any]] = {}
        if settings.get("partialsTypeMatMuls") == "half":
            self._functions.update(_PRODUCTS)
        if settings.get("convolutionOptions", {}).get("partialsType") == "half":
            self._functions.update(convolution=_convolution, convolution_backward=_convolution_gradients)

    def replacement(self, name: str, operands: Operands) -> Optional[Callable[..., Any]]:
        """Returns the function that replaces operation `name` for these operands; None for PyTorch's."""
        function = self._functions.get(name)
        if function is None:
            return None
        tensors = [value for value in operands if isinstance(value, torch.Tensor)]
        return function if all(tensor.dtype == torch.float16 for tensor in tensors) else None


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Returns (..., M, K) @ (..., K, N)."""
    parts = zip(torch.split(left, TERMS, -1), torch.split(right, TERMS, -2))
    total: torch.Tensor = functools.reduce(torch.add, ((a.float() @ b.float()).half() for a, b in parts))
    return total


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


_PRODUCTS: Dict[str, Callable[..., torch.Tensor]] = {
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
    """Returns aten::convolution of float16 tensors, (N, C', ...)."""
    if transposed:
        total = _transposed(data.float(), weight.float(), stride, padding, dilation, output_padding, groups)
    else:
        around = [size for pair in zip(reversed(padding), reversed(padding)) for size in pair]
        total = _convolved(functional.pad(data.float(), around), weight.float(), stride, dilation, groups)
    return total if bias is None else total + bias.view(-1, *[1] * len(stride))


def _convolved(
    data: torch.Tensor, weight: torch.Tensor, stride: List[int], dilation: List[int], groups: int
) -> torch.Tensor:
    """Computes a convolution as products of kernels and patches, over a few input channels of each group at a time.

    Args:
        data: padded float32 (N, C, ...).
        weight: float32.

    Returns:
        float16 (N, C', ...).
    """
    kernels = torch.unflatten(weight, 0, (groups, -1))
    patches = torch.unflatten(_patches(data, weight.shape[2:], stride, dilation), 1, (groups, -1))
    sizes = patches.shape[3 : 3 + len(stride)]
    positions = math.prod(sizes)
    total = torch.zeros(len(data), groups, kernels.shape[1], positions, dtype=torch.float16, device=data.device)
    step = max(TERMS // weight[0, 0].numel(), 1)
    block = max(_CACHED // positions, 1)  # output channels
    for some in range(0, kernels.shape[2], step):
        rows = kernels[:, :, some : some + step].flatten(2)
        columns = patches[:, :, some : some + step].flatten(3 + len(stride)).flatten(3, -2)
        columns = columns.movedim(-1, 3).flatten(2, 3)
        for few, sums in zip(rows.split(block, -2), total.split(block, -2)):
            sums.add_((few @ columns).half())
    return total.view(len(data), -1, *sizes)


class _Phase(NamedTuple):
    """In one dimension of a transposed convolution: the outputs that the same taps contribute to.

    Attributes:
        outputs: every stride-th output.
        taps: the taps that contribute to them.
        ends: how many zeros to add to the data at both ends for a convolution with these taps, reversed.
        spread: its dilation.
    """

    outputs: slice
    taps: slice
    ends: Tuple[int, int]
    spread: int


def _phases(size: int, kernel: int, stride: int, padding: int, dilation: int, more: int) -> List[_Phase]:
    """Returns the phases of a dimension with `size` inputs and `more` output padding, if any taps contribute.

    Input i times tap t contributes to output i * stride + t * dilation - padding.
    """
    length = _transposed_size(size, kernel, stride, padding, dilation, more)
    common = math.gcd(dilation, stride)
    found = []
    for phase in range(stride):
        taps = [tap for tap in range(kernel) if tap * dilation % stride == phase]
        first = (phase - padding) % stride
        if not taps or first >= length:
            continue
        earliest, latest = ((tap * dilation - phase) // stride for tap in (taps[0], taps[-1]))
        start = (first + padding) // stride
        end = start + (length - 1 - first) // stride
        found.append(
            _Phase(
                slice(first, None, stride),
                slice(taps[0], None, stride // common),
                (latest - start, end - earliest - (size - 1)),
                dilation // common,
            )
        )
    return found


def _transposed_size(size: int, kernel: int, stride: int, padding: int, dilation: int, more: int) -> int:
    return (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + more + 1


def _transposed(
    data: torch.Tensor,
    weight: torch.Tensor,
    stride: List[int],
    padding: List[int],
    dilation: List[int],
    output_padding: List[int],
    groups: int,
) -> torch.Tensor:
    """Computes a transposed convolution of float32 (N, C, ...) as one convolution for each phase of its outputs."""
    kernels = torch.unflatten(weight, 0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    dimensions = list(zip(data.shape[2:], weight.shape[2:], stride, padding, dilation, output_padding))
    sizes = [_transposed_size(*dimension) for dimension in dimensions]
    total = torch.zeros(len(data), len(kernels), *sizes, dtype=torch.float16, device=data.device)
    for phases in itertools.product(*[_phases(*dimension) for dimension in dimensions]):
        padded = functional.pad(data, [end for phase in reversed(phases) for end in phase.ends])
        taps = tuple([slice(None)] * 2 + [phase.taps for phase in phases])
        chosen = kernels[taps].flip(*range(2, kernels.dim()))
        part = _convolved(padded, chosen, [1] * len(stride), [phase.spread for phase in phases], groups)
        total[tuple([slice(None)] * 2 + [phase.outputs for phase in phases])] = part
    return total


def _patches(data: torch.Tensor, kernel: Sequence[int], stride: List[int], dilation: List[int]) -> torch.Tensor:
    """Returns the patches of (N, C, ...) that a kernel meets, as a view (N, C, *positions, *kernel)."""
    for dim, (size, step, spread) in enumerate(zip(kernel, stride, dilation), 2):
        data = data.unfold(dim, spread * (size - 1) + 1, step)[..., ::spread]
    return data


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
    """Returns the gradients of data, weight and bias of a convolution; None for those that are not `wanted`."""
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
    """Computes the gradient of the data by a transposed convolution; for a transposed one, by a plain one."""
    reached = [
        (size - 1) * step - 2 * around + spread * (kernel - 1) + 1
        for size, step, around, spread, kernel in zip(gradient.shape[2:], stride, padding, dilation, weight.shape[2:])
    ]
    # The data at the end that the kernel does not reach.
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
    """Computes the gradient of the weight by a product over all positions in the batch.

    Args:
        slid: the tensor that the kernel slides over, (N, C, ...).
        fixed: the tensor on the other side of the convolution, (N, C', ...).
    """
    positions = fixed.dim() - 2
    patches = functional.pad(slid, [size for around in reversed(padding) for size in (around, around)])
    reached = tuple([slice(None)] * 2 + [slice(size) for size in fixed.shape[2:]])
    patches = _patches(patches, weight.shape[2:], stride, dilation)[reached]
    patches = torch.unflatten(patches, 1, (groups, -1)).movedim(2, 2 + positions).transpose(0, 1)
    rows = torch.unflatten(fixed, 1, (groups, -1)).permute(1, 2, 0, *range(3, 3 + positions))
    return _product(rows.flatten(2), patches.flatten(1, 1 + positions).flatten(2)).reshape(weight.shape)
