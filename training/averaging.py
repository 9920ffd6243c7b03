# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Exponential moving average of the weights (EMA), kept on the host: TRAIN.EMA_DECAY.

Hosts average after every call of the training program. An IPU would have to copy its weights to the host each time, so
its weights are averaged only when they are copied anyway: at the end of epochs and every TRAIN.CHECKPOINT_STEPS
updates. They count for all updates since the last copy.
"""

import contextlib
from typing import Any, Dict, Iterator, Mapping, Optional

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

import accelerator
from common.logs import logger
from training.progress import Progress

WARMUP_POWER = 2 / 3  # of timm's ModelEmaV3, for runs of a million updates or more


class WeightAverage:
    """The average of a model's weights, computed as by timm's ModelEmaV3.

    Args:
        model: initial weights; floating-point ones are averaged in float32.
        decay: weight of the old average in an update.
        warmup: whether the decay grows from 0 with the updates.

    Attributes:
        weights: state dict of the model, with its floating-point entries averaged.
        update: number of updates averaged.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        self._decay, self._warmup = decay, warmup
        self.weights = {name: _single(value).clone() for name, value in model.state_dict().items()}
        self.update = 0

    def restore(self, weights: Mapping[str, Tensor], update: int) -> None:
        """Restores the attributes saved by an earlier run."""
        for name, value in self.weights.items():
            value.copy_(weights[name])
        self.update = update

    def decay_of(self, update: int) -> float:
        """The decay at an update, counted from 1; 0 at the first one."""
        if update <= 1:
            return 0.0
        return min(1 - update**-WARMUP_POWER, self._decay) if self._warmup else self._decay

    def add(self, model: nn.Module, update: int) -> None:
        """Adds the model's weights after an update, which count for all updates since the last call."""
        left = 1.0
        for number in range(self.update + 1, update + 1):
            left *= self.decay_of(number)
        self.update = update
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    self.weights[name].lerp_(_single(value), 1 - left)

    @contextlib.contextmanager
    def installed(self, model: nn.Module) -> Iterator[None]:
        """Gives the model the averaged weights inside the context, and its own weights back after it."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        _copy(self.weights, model)
        try:
            yield
        finally:
            _copy(own, model)


def start_average(config: CfgNode, model: nn.Module, state: Optional[Dict[str, Any]]) -> Optional[WeightAverage]:
    """The weight average of a run, restored from its checkpoint if it has one; None without TRAIN.EMA_DECAY."""
    train = config.TRAIN
    if not train.EMA_DECAY:
        return None
    average = WeightAverage(model, train.EMA_DECAY, train.EMA_WARMUP)
    if state and "ema" in state:
        average.restore(state["ema"], state["ema_update"])
    elif state:
        average.update = state["progress"]["update"]
        logger.warning("the checkpoint has no averaged weights (EMA): averaging starts from its weights")
    often = "every update" if train.CHECKPOINT_STEPS == 1 else f"every {train.CHECKPOINT_STEPS} updates and epoch"
    when = f"{often if train.CHECKPOINT_STEPS else 'every epoch'}, when an IPU copies its weights"
    logger.info(
        "weights are averaged (EMA) on the host after %s; the best checkpoint has the best averaged weights",
        when if accelerator.is_ipu() else "every update",
    )
    return average


def is_due(config: CfgNode, progress: Progress, updates_per_epoch: int) -> bool:
    """Whether the current weights are to be averaged."""
    if not accelerator.is_ipu():
        return True
    steps = config.TRAIN.CHECKPOINT_STEPS
    return progress.step == updates_per_epoch or (steps > 0 and progress.update % steps < config.IPU.DEVICE_ITERATIONS)


@torch.no_grad()
def _copy(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        value.copy_(weights[name])


def _single(value: Tensor) -> Tensor:
    """A tensor in float32 if it is floating-point."""
    return value.detach().float() if value.is_floating_point() else value.detach()
