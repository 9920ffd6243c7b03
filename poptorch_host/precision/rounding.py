# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Rounding of float32 results to float16: to nearest, or stochastically as on a device.

Stochastic rounding rounds up with a probability equal to the fraction that is cut off, so that the expected value is
exact (Croci et al. 2022, "Stochastic rounding: implementation, error analysis and applications").
"""

from typing import Optional, Sequence

import torch

# A float32 has 13 more bits of mantissa than a float16.
_DROPPED_BITS = 13
_DROPPED = (1 << _DROPPED_BITS) - 1
_SMALLEST_NORMAL = 2.0**-14
# Number of elements to round at a time on a CPU, such that temporaries stay in its caches.
_CHUNK = 1 << 16


def stochastic_half(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Rounds float32 `values` stochastically to one of the two neighbouring float16 numbers.

    Values that float16 can represent do not change. The expected value is exact, or for magnitudes below the smallest
    normal number 2^-14, exact to 2^-38. Non-finite values do not change; above 65504, the upper neighbour is infinity.
    """
    flat = values.detach().reshape(-1)
    result = torch.empty(flat.shape, dtype=torch.float16, device=flat.device)
    chunk = _CHUNK if flat.device.type == "cpu" else max(flat.numel(), 1)
    for start in range(0, flat.numel(), chunk):
        result[start : start + chunk] = _round_chunk(flat[start : start + chunk], generator)
    return result.view(values.shape)


def _round_chunk(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Adds random bits below the mantissa of float16 and truncates, so that a carry rounds up.

    Subnormal numbers have the spacing of [2^-14, 2^-13): they are shifted there, rounded and shifted back.
    """
    subnormal = values - torch.nn.functional.hardshrink(values, _SMALLEST_NORMAL)
    shift = subnormal.sign_().mul_(_SMALLEST_NORMAL)
    rounded = values + shift
    bits = rounded.view(torch.int32)
    bits += _uniform_bits(values.numel(), values.device, generator)
    bits &= ~_DROPPED
    rounded -= shift
    if values.device.type != "cpu" or not values.sum().isfinite():  # a carry can turn a NaN into a number
        rounded = torch.where(values.isfinite(), rounded, values)
    return rounded.half()


def _uniform_bits(count: int, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    """Returns `count` integers, uniform over the bits that float16 drops, four from each 64-bit random number."""
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(generator=generator)
    return draws.view(torch.int16)[:count].to(torch.int32).bitwise_and_(_DROPPED)


def store(
    targets: Sequence[torch.Tensor], values: Sequence[torch.Tensor], generator: Optional[torch.Generator]
) -> None:
    """Copies float32 `values` to `targets` of any dtype, with stochastic rounding to float16 if there is a generator.

    All float16 targets are rounded as one flat tensor, so that many small ones are as fast as a large one. Call under
    torch.no_grad().
    """
    if generator is None:
        copy_all(targets, values)
        return
    halves = [index for index, target in enumerate(targets) if target.dtype == torch.float16]
    rest = [index for index, target in enumerate(targets) if target.dtype != torch.float16]
    copy_all([targets[index] for index in rest], [values[index] for index in rest])
    if halves:
        flat = stochastic_half(torch.cat([values[index].reshape(-1) for index in halves]), generator)
        pieces = torch.split(flat, [targets[index].numel() for index in halves])
        copy_all(
            [targets[index] for index in halves],
            [piece.view(targets[index].shape) for index, piece in zip(halves, pieces)],
        )


def copy_all(targets: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Calls target.copy_(value) for each pair, in few kernels with torch 2.1 or later."""
    if targets and hasattr(torch, "_foreach_copy_"):
        torch._foreach_copy_(list(targets), list(values))
        return
    for target, value in zip(targets, values):
        target.copy_(value)
