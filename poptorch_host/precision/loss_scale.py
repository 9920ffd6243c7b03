# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The factor of the loss gradient: the optimizer's, times one that automatic loss scaling moves."""

import math
from typing import Any, Optional, Sequence

import torch
import torch.distributed as dist

STATE_NAME = "lossScaleUpdateFactor"
LARGEST_HALF = 65504.0
# A gradient beyond an eighth of the range of float16 halves the scale; so overflow stays three doublings away.
SHRINK_ABOVE = LARGEST_HALF / 8
# The largest power of two that a float16 loss can carry, and a floor against endless halving.
LARGEST_SCALE, SMALLEST_FACTOR = 2.0**15, 2.0**-24


class LossScale:
    """Static or automatic loss scaling.

    The rule of automatic scaling is this package's own (PopART's is a histogram): after every update, the factor is
    doubled if no float16 gradient of a weight in any micro-batch went beyond an eighth of float16's range, else halved.
    Where one was not finite, the update is skipped as well. Without float16 gradients the factor stays 1.

    Args:
        automatic: whether the factor moves at all.
        group: the processes that must agree; None for one.
    """

    def __init__(self, automatic: bool, device: torch.device, group: Any = None) -> None:
        self.automatic = automatic
        self.factor = 1.0
        self._device = device
        self._group = group
        self._peak: Optional[torch.Tensor] = None

    def observe(self, gradients: Sequence[Optional[torch.Tensor]]) -> None:
        """Takes note of the largest magnitude among the float16 gradients of a micro-batch."""
        if not self.automatic:
            return
        halves = [gradient for gradient in gradients if gradient is not None and gradient.dtype == torch.float16]
        if not halves:
            return
        peak = torch.stack(torch._foreach_norm(halves, math.inf)).max().float()
        self._peak = peak if self._peak is None else torch.maximum(self._peak, peak)

    def update(self, loss_scaling: float, finite: bool) -> bool:
        """Moves the factor after the micro-batches of an update; returns whether their gradients can be used.

        Args:
            loss_scaling: the optimizer's.
            finite: whether the reduced gradients are finite, the same in all processes.
        """
        peak = self._take_peak()
        if not self.automatic or (peak == 0.0 and finite):
            return finite
        if peak > SHRINK_ABOVE or not finite:
            self.factor = max(self.factor / 2, SMALLEST_FACTOR)
        elif self.factor * loss_scaling * 2 <= LARGEST_SCALE:
            self.factor *= 2
        return finite and math.isfinite(peak)

    def _take_peak(self) -> float:
        """The largest magnitude in all processes, 0 where there is none."""
        if not self.automatic:
            return 0.0
        peak = torch.zeros((), device=self._device) if self._peak is None else self._peak
        self._peak = None
        if self._group is not None:
            dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=self._group)
        return peak.item()
