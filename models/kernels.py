# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What lies between the matrix products of a block on a CPU, each in one pass over its tensors.

kernels.c has it for processors with AVX-512 and bfloat16. Elsewhere, and where no C compiler is at hand, operations of
PyTorch compute the same but for rounding. Tensors are contiguous, in float32 or bfloat16, and arithmetic is float32.
"""

import ctypes
import functools
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torch.nn import functional

from common import compiled
from common.logs import logger
from utils import one_line

SOURCE = Path(__file__).with_name("kernels.c")
# OpenMP's functions are those that PyTorch has loaded: another library would bring threads of its own.
FLAGS = ["-fno-math-errno", "-fopenmp", "-nostdlib", "-lc"]
ARGUMENTS = {
    "softmax": "pppllifi",
    "softmax_back": "pppllifi",
    "gelu_back": "pppli",
    "norm": "pppfppplii",
    "norm_back": "pppppplii",
}
LONGEST = 1024  # tokens of a window


@functools.lru_cache(maxsize=None)
def library() -> Optional[ctypes.CDLL]:
    """The compiled code of SOURCE, or None where it cannot be built; the log says why."""
    try:
        return compiled.load([SOURCE], FLAGS, ARGUMENTS)
    except compiled.FAILURES as error:
        logger.info("kernels.c cannot be compiled (%s): operations of PyTorch serve, at less speed", one_line(error))
        return None


def softmax(scores: Tensor, bias: Tensor, scale: float) -> Tensor:
    """The softmax of scale * scores + bias: attention weights.

    Args:
        scores: (samples x windows x heads, tokens, tokens).
        bias: float32 (windows or 1, heads, tokens, tokens), which is repeated.
        scale: of the scores.
    """
    code = _code_for(scores, bias)
    if code is None or scores.shape[-1] > LONGEST:
        total = torch.add(bias, scores.view(-1, *bias.shape), alpha=scale).view(scores.shape)
        return torch.softmax(total, -1).to(scores.dtype)
    out, tokens = torch.empty_like(scores), scores.shape[-1]
    code.softmax(*_at(scores, bias, out), scores.numel() // tokens, bias.numel() // tokens, tokens, scale, _wide(out))
    return out


def softmax_back(gradient: Tensor, attention: Tensor, total: Tensor, scale: float) -> Tensor:
    """The gradient of the scores, given that of the attention weights, which may be overwritten.

    Args:
        gradient: as the scores of `softmax`.
        attention: the result of `softmax`.
        total: float32, as the bias of `softmax`: its gradient is added to it.
        scale: of the scores.
    """
    code, tokens = _code_for(gradient, total), gradient.shape[-1]
    if code is None:
        found = torch.ops.aten._softmax_backward_data(gradient, attention, -1, gradient.dtype)
        total.add_(found.view(-1, *total.shape).sum(0))
        return found.mul_(scale)
    sizes = gradient.numel() // tokens, total.numel() // tokens, tokens
    code.softmax_back(*_at(gradient, attention, total), *sizes, scale, _wide(gradient))
    return gradient


def gelu_back(gradient: Tensor, hidden: Tensor) -> Tuple[Tensor, Tensor]:
    """The gradient of `hidden`, given that of its GELU, which may be overwritten; and its GELU."""
    code = _code_for(hidden)
    if code is None:
        return torch.ops.aten.gelu_backward(gradient, hidden), functional.gelu(hidden)
    active = torch.empty_like(hidden)
    code.gelu_back(*_at(gradient, hidden, active), hidden.numel(), _wide(hidden))
    return gradient, active


def norm(rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tuple[Tensor, Tensor, Tensor]:
    """A layer norm.

    Args:
        rows: (rows, C).
        weight: float32 (C,), and so is `bias`.
        eps: added to variances.

    Returns:
        The normed rows, and the mean and inverse deviation of each row, float32 (rows, 1).
    """
    code = _code_for(rows, weight, bias)
    if code is None:
        return torch.native_layer_norm(rows, rows.shape[1:], weight, bias, eps)
    out, mean = torch.empty_like(rows), weight.new_empty(len(rows), 1)
    inverse = torch.empty_like(mean)
    code.norm(*_at(rows, weight, bias), eps, *_at(out, mean, inverse), *rows.shape, _wide(rows))
    return out, mean, inverse


def norm_back(
    gradient: Tensor, rows: Tensor, statistics: Sequence[Tensor], weight: Tensor, bias: Tensor
) -> List[Tensor]:
    """The gradients of rows, weight and bias, given that of the normed rows, which may be overwritten.

    PyTorch's operation rounds the sums of bfloat16 gradients as it goes along; kernels.c sums in float32.

    Args:
        gradient: (rows, C).
        rows: as of `norm`.
        statistics: mean and inverse deviation, from `norm`.
        weight: as of `norm`, and so is `bias`.
    """
    code = _code_for(rows, weight, bias)
    if code is None:
        arguments = rows.shape[1:], *statistics, weight, bias, [True, True, True]
        return list(torch.ops.aten.native_layer_norm_backward(gradient, rows, *arguments))
    sums = weight.new_zeros(torch.get_num_threads(), 2, len(weight))
    code.norm_back(*_at(gradient, rows, weight, *statistics, sums), *rows.shape, _wide(rows))
    return [gradient, *sums.sum(0)]


def _code_for(data: Tensor, *parameters: Tensor) -> Optional[ctypes.CDLL]:
    """The compiled code, if the parameters are what it takes."""
    known = all(parameter.dtype == torch.float32 and parameter.is_contiguous() for parameter in parameters)
    return library() if known and data.is_contiguous() else None


def _at(*tensors: Tensor) -> List[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _wide(tensor: Tensor) -> int:
    return int(tensor.dtype == torch.float32)
