# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""float32 results stored as float16: to the nearest, or stochastically as a device does.

Stochastic rounding goes up with the probability of the fraction that is cut off, so the expectation is the value itself
(Croci et al. 2022, "Stochastic rounding: implementation, error analysis and applications").
"""

from typing import Optional, Sequence

import torch

# A float32 has 13 bits of mantissa more than a float16.
_DROPPED_BITS = 13
_DROPPED = (1 << _DROPPED_BITS) - 1
_SMALLEST_NORMAL = 2.0**-14
# Elements rounded at once on a CPU: temporaries of this size stay in its caches.
_CHUNK = 1 << 16


def stochastic_half(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`values` (float32) as float16, each one of its two neighbours, drawn so that the expectation is the value.

    Exact for what float16 can represent. Below its smallest normal number 2^-14 the expectation is exact to 2^-38,
    above to the last bit. Non-finite values stay; past 65504 the upper neighbour is infinity.
    """
    flat = values.detach().reshape(-1)
    result = torch.empty(flat.shape, dtype=torch.float16, device=flat.device)
    chunk = _CHUNK if flat.device.type == "cpu" else max(flat.numel(), 1)
    for start in range(0, flat.numel(), chunk):
        result[start : start + chunk] = _round_chunk(flat[start : start + chunk], generator)
    return result.view(values.shape)


def _round_chunk(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Adds uniform bits where float16 has none, then cuts them off: the carry is the rounding up.

    The spacing of subnormal numbers is that of [2^-14, 2^-13): they are moved there, rounded and moved back.
    """
    subnormal = values - torch.nn.functional.hardshrink(values, _SMALLEST_NORMAL)
    shift = subnormal.sign_().mul_(_SMALLEST_NORMAL)
    rounded = values + shift
    bits = rounded.view(torch.int32)
    bits += _uniform_bits(values.numel(), values.device, generator)
    bits &= ~_DROPPED
    rounded -= shift
    if values.device.type != "cpu" or not values.sum().isfinite():  # a carry can make a number of some NaN
        rounded = torch.where(values.isfinite(), rounded, values)
    return rounded.half()


def _uniform_bits(count: int, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    """`count` integers, uniform over the bits that float16 drops: four from each 64-bit draw."""
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(generator=generator)
    return draws.view(torch.int16)[:count].to(torch.int32).bitwise_and_(_DROPPED)


def store(
    targets: Sequence[torch.Tensor], values: Sequence[torch.Tensor], generator: Optional[torch.Generator]
) -> None:
    """Writes float32 `values` to `targets` of any type: float16 ones rounded stochastically where there is a generator.

    All float16 targets are rounded as one flat tensor, so that many small ones cost no more than a large one. To be
    called without gradient mode.
    """
    if generator is None:
        copy_all(targets, values)
        return
    halves = [index for index, target in enumerate(targets) if target.dtype == torch.float16]
    rest = [index for index, target in enumerate(targets) if target.dtype != torch.float16]
    copy_all([targets[index] for index in rest], [values[index] for index in rest])
    if halves:
        flat = stochastic_half(torch.cat([values[index].reshape(-1) for index in halves]), generator)
        pieces = flat.split([targets[index].numel() for index in halves])
        copy_all(
            [targets[index] for index in halves],
            [piece.view(targets[index].shape) for index, piece in zip(halves, pieces)],
        )


def copy_all(targets: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """target.copy_(value) for each pair; in few kernels where torch can (from 2.1 on)."""
    if targets and hasattr(torch, "_foreach_copy_"):
        torch._foreach_copy_(list(targets), list(values))
        return
    for target, value in zip(targets, values):
        target.copy_(value)
