# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What a block computes between its linear layers on a CPU, each in one pass over its tensors.

attention.c and kernels.c have it for processors with AVX-512. Elsewhere, and without a C compiler, PyTorch's operations
compute the same but for rounding. Tensors are contiguous, float32 or bfloat16, and arithmetic is float32.

Functions with an argument `rows` (int64, None for all) work on these rows of a matrix, in this order: the tokens of the
samples that stochastic depth keeps, window by window.
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

SOURCES = [Path(__file__).with_name(name) for name in ("kernels.c", "attention.c", "vectors.h")]
# OpenMP's functions are those that PyTorch has loaded: another library would bring threads of its own.
FLAGS = ["-fno-math-errno", "-fopenmp", "-nostdlib", "-lc"]
ARGUMENTS = {
    "attention": "pppppplliiifi",
    "attention_back": "pppppppppplliiifi",
    "gelu": "ppplii",
    "gelu_back": "ppppplii",
    "norm": "ppppfppplii",
    "norm_back": "ppppppplii",
    "take": "pppplifi",
    "add_rows": "ppppplifi",
}


@functools.lru_cache(maxsize=None)
def library() -> Optional[ctypes.CDLL]:
    """The compiled code of SOURCES, or None where it cannot be built; the log says why."""
    try:
        return compiled.load(SOURCES, FLAGS, ARGUMENTS)
    except compiled.FAILURES as error:
        logger.info("the kernels for CPUs cannot be compiled (%s): operations of PyTorch serve", one_line(error))
        return None


def attention(qkv: Tensor, added: Optional[Tensor], bias: Tensor, mask: Optional[Tensor], scale: float) -> Tensor:
    """Window attention: softmax(scale * query @ key^T + bias + mask) @ value.

    Args:
        qkv: (windows x tokens, 3 C), in each row the queries, keys and values, and in each of these the heads.
        added: float32 (3 C,), which is added to each row of `qkv`, or None.
        bias: float32 (heads, tokens, tokens).
        mask: float32 (windows of a sample, tokens, tokens), or None.
        scale: of the dot products.

    Returns:
        (windows x tokens, C).
    """
    code = _code_for(qkv, added, bias, mask)
    if code is None:
        weights, _, _, value = _attended(qkv, added, bias, mask, scale)
        return (weights @ value).transpose(1, 2).reshape(len(qkv), -1)
    out, rooms = qkv.new_empty(len(qkv), qkv.shape[1] // 3), _rooms(qkv, bias)
    code.attention(*_at(qkv, added, bias, mask, out, rooms), *_sizes(qkv, bias, mask), scale, _wide(qkv))
    return out


def attention_back(
    gradient: Tensor, qkv: Tensor, added: Optional[Tensor], bias: Tensor, mask: Optional[Tensor], scale: float
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward pass of `attention`.

    Args:
        gradient: of the result.
        qkv: as of `attention`, and so are the others.

    Returns:
        The result, computed again, the gradient of `qkv` and the sum of its rows, float32, and the gradient of `bias`.
    """
    code = _code_for(qkv, added, bias, mask)
    if code is None:
        return _attention_back(gradient, *_attended(qkv, added, bias, mask, scale), scale)
    out, found = torch.empty_like(gradient), torch.empty_like(qkv)
    sums, row_sums, rooms = _sums(*bias.shape), _sums(qkv.shape[1]), _rooms(qkv, bias)
    addresses = _at(gradient, qkv, added, bias, mask, out, found, sums, row_sums, rooms)
    code.attention_back(*addresses, *_sizes(qkv, bias, mask), scale, _wide(qkv))
    return out, found, row_sums.sum(0), sums.sum(0)


def _attended(
    qkv: Tensor, added: Optional[Tensor], bias: Tensor, mask: Optional[Tensor], scale: float
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention weights (windows, heads, tokens, tokens); queries, keys and values (windows, heads, tokens, size)."""
    heads, tokens = bias.shape[:2]
    parts = _plus(qkv, added).view(-1, tokens, 3, heads, qkv.shape[1] // (3 * heads))
    query, key, value = parts.permute(2, 0, 3, 1, 4).contiguous()
    total = bias if mask is None else bias + mask.unsqueeze(1)
    scores = torch.add(total, (query @ key.transpose(2, 3)).view(-1, *total.shape), alpha=scale)
    return torch.softmax(scores, -1).view(-1, *bias.shape).to(qkv.dtype), query, key, value


def _attention_back(
    gradient: Tensor, weights: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """`attention_back` by operations of PyTorch."""
    windows, heads, tokens, size = value.shape
    out = (weights @ value).transpose(1, 2).reshape(gradient.shape)
    inner = gradient.view(windows, tokens, heads, size).transpose(1, 2)
    scores = torch.ops.aten._softmax_backward_data(inner @ value.transpose(2, 3), weights, -1, weights.dtype)
    sums = scores.sum(0, dtype=torch.float32)
    scores.mul_(scale)
    found = torch.stack([scores @ key, scores.transpose(2, 3) @ query, weights.transpose(2, 3) @ inner])
    found = found.permute(1, 3, 0, 2, 4).reshape(len(gradient), -1)
    return out, found, found.sum(0, dtype=torch.float32), sums


def gelu(hidden: Tensor, bias: Optional[Tensor]) -> Tensor:
    """The GELU of hidden + bias: rows (rows, C); float32 (C,) or None."""
    code = _code_for(hidden, bias)
    if code is None:
        return functional.gelu(_plus(hidden, bias))
    active = torch.empty_like(hidden)
    code.gelu(*_at(hidden, bias, active), *hidden.shape, _wide(hidden))
    return active


def gelu_back(gradient: Tensor, hidden: Tensor, bias: Optional[Tensor]) -> Tuple[Tensor, Tensor, Tensor]:
    """The gradient of `hidden`, given that of its GELU, which may be overwritten.

    Returns:
        The gradient, the sum of its rows, float32, and the GELU.
    """
    code = _code_for(hidden, bias)
    if code is None:
        inputs = _plus(hidden, bias)
        found = torch.ops.aten.gelu_backward(gradient, inputs)
        return found, found.sum(0, dtype=torch.float32), functional.gelu(inputs)
    active, sums = torch.empty_like(hidden), _sums(hidden.shape[1])
    code.gelu_back(*_at(gradient, hidden, bias, active, sums), *hidden.shape, _wide(hidden))
    return gradient, sums.sum(0), active


def norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, rows: Optional[Tensor] = None
) -> Tuple[Tensor, Tensor, Tensor]:
    """A layer norm.

    Args:
        x: (all rows, C).
        weight: float32 (C,), and so is `bias`.
        eps: added to variances.
        rows: see the module.

    Returns:
        The normed rows, and the mean and inverse deviation of each, float32 (rows, 1).
    """
    code = _code_for(x, weight, bias)
    if code is None:
        return torch.native_layer_norm(_taken(x, rows), x.shape[1:], weight, bias, eps)
    out = x.new_empty(len(x) if rows is None else len(rows), x.shape[1])
    mean = weight.new_empty(len(out), 1)
    inverse = torch.empty_like(mean)
    code.norm(*_at(x, rows, weight, bias), eps, *_at(out, mean, inverse), *out.shape, _wide(x))
    return out, mean, inverse


def norm_back(
    gradient: Tensor,
    x: Tensor,
    statistics: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    rows: Optional[Tensor] = None,
) -> List[Tensor]:
    """The gradients of the rows, weight and bias, given that of the normed rows, which may be overwritten.

    PyTorch's operation rounds the sums of bfloat16 gradients as it goes along; kernels.c sums in float32.

    Args:
        gradient: (rows, C).
        x: as of `norm`.
        statistics: mean and inverse deviation, from `norm`.
        weight: as of `norm`, and so is `bias`.
        rows: as of `norm`.
    """
    code = _code_for(x, weight, bias)
    if code is None:
        arguments = x.shape[1:], *statistics, weight, bias, [True, True, True]
        return list(torch.ops.aten.native_layer_norm_backward(gradient, _taken(x, rows), *arguments))
    sums = _sums(2, len(weight))
    code.norm_back(*_at(gradient, x, rows, weight, *statistics, sums), *gradient.shape, _wide(x))
    return [gradient, *sums.sum(0)]


def take(x: Tensor, rows: Optional[Tensor], scale: float) -> Tuple[Tensor, Tensor]:
    """scale * x[rows], which may be `x` itself, and the sum of these rows, float32."""
    code = _code_for(x)
    if code is None:
        taken = _taken(x, rows) if scale == 1 else _taken(x, rows) * scale
        return taken, taken.sum(0, dtype=torch.float32)
    out, sums = x.new_empty(len(x) if rows is None else len(rows), x.shape[1]), _sums(x.shape[1])
    code.take(*_at(x, rows, out, sums), *out.shape, scale, _wide(x))
    return out, sums.sum(0)


def add_rows(
    x: Tensor, rows: Optional[Tensor], values: Tensor, bias: Optional[Tensor], scale: float, out: Tensor
) -> None:
    """Sets out[rows] to x[rows] + scale * (values + bias); the bias is float32 (C,) or None."""
    code = _code_for(x, bias)
    if code is not None:
        code.add_rows(*_at(x, rows, values, bias, out), *values.shape, scale, _wide(x))
    elif rows is None:
        torch.add(x, _plus(values, bias), alpha=scale, out=out)
    else:
        out.index_copy_(0, rows, x.index_select(0, rows).add_(_plus(values, bias), alpha=scale))


def _taken(x: Tensor, rows: Optional[Tensor]) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _plus(x: Tensor, bias: Optional[Tensor]) -> Tensor:
    return x if bias is None else x + bias.to(x.dtype)


def _sums(*shape: int) -> Tensor:
    """What each thread adds to."""
    return torch.zeros(torch.get_num_threads(), *shape, dtype=torch.float32)


def _rooms(qkv: Tensor, bias: Tensor) -> Tensor:
    """The memory in which the threads of attention.c work."""
    room = library().attention_room(bias.shape[1], qkv.shape[1] // (3 * len(bias)))  # type: ignore[union-attr]
    return bias.new_empty(torch.get_num_threads(), room)


def _sizes(qkv: Tensor, bias: Tensor, mask: Optional[Tensor]) -> Tuple[int, int, int, int, int]:
    """Windows, masks, tokens, heads and the width of a head."""
    heads, tokens = bias.shape[:2]
    return len(qkv) // tokens, 0 if mask is None else len(mask), tokens, heads, qkv.shape[1] // (3 * heads)


def _code_for(data: Tensor, *parameters: Optional[Tensor]) -> Optional[ctypes.CDLL]:
    """The compiled code, if the parameters are what it takes."""
    given = [parameter for parameter in parameters if parameter is not None]
    known = all(parameter.dtype == torch.float32 and parameter.is_contiguous() for parameter in given)
    return library() if known and data.is_contiguous() else None


def _at(*tensors: Optional[Tensor]) -> List[Optional[int]]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def _wide(tensor: Tensor) -> int:
    return int(tensor.dtype == torch.float32)
