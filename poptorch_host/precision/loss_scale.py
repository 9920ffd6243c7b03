# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Static and automatic loss scaling."""

import math
from typing import Any, Optional, Sequence

import torch
import torch.distributed as dist

STATE_NAME = "lossScaleUpdateFactor"
LARGEST_HALF = 65504.0
# The scale is halved for gradients above an eighth of float16's range, three doublings below overflow.
SHRINK_ABOVE = LARGEST_HALF / 8
# The largest power of two in float16, and a lower limit of the factor.
LARGEST_SCALE, SMALLEST_FACTOR = 2.0**15, 2.0**-24


class LossScale:
    """Static or automatic loss scaling.

    The rule of automatic loss scaling is specific to this package; PopART's uses a histogram. After every update, the
    factor is doubled if all float16 gradients of weights in all micro-batches were below an eighth of float16's range,
    else halved. If a gradient is not finite, the update is also skipped. Without float16 gradients, the factor stays 1.

    Args:
        automatic: whether the factor is adapted.
        device: the device of the gradients.
        group: the processes that use the same factor; None for a single one.

    Attributes:
        factor: the factor in addition to the optimizer's loss scaling.
    """

    def __init__(self, automatic: bool, device: torch.device, group: Any = None) -> None:
        self.automatic = automatic
        self.factor = 1.0
        self._device = device
        self._group = group
        self._peak: Optional[torch.Tensor] = None

    def observe(self, gradients: Sequence[Optional[torch.Tensor]]) -> None:
        """Records the largest magnitude among the float16 gradients of a micro-batch."""
        if not self.automatic:
            return
        halves = [gradient for gradient in gradients if gradient is not None and gradient.dtype == torch.float16]
        if not halves:
            return
        peak = torch.stack(torch._foreach_norm(halves, math.inf)).max().float()
        self._peak = peak if self._peak is None else torch.maximum(self._peak, peak)

    def update(self, loss_scaling: float, finite: bool) -> bool:
        """Adapts the factor after the micro-batches of an update. Returns whether their gradients can be used.

        Args:
            loss_scaling: the optimizer's loss scaling.
            finite: whether the reduced gradients are finite, which is the same in all processes.
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
        """Returns the largest magnitude in all processes, 0 if there is none, and resets it."""
        if not self.automatic:
            return 0.0
        peak = torch.zeros((), device=self._device) if self._peak is None else self._peak
        self._peak = None
        if self._group is not None:
            dist.all_reduce(peak, op=dist.ReduceOp.MAX, group=self._group)
        return peak.item()
