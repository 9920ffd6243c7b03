# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Configuration and optimizer -> learning rate schedule, by weight update."""

from typing import Any

from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from yacs.config import CfgNode

from common.launch import Launch


def build_scheduler(config: CfgNode, optimizer: Any, updates_per_epoch: int, launch: Launch) -> Scheduler:
    """The timm scheduler of TRAIN.LR_SCHEDULER; `scheduler.step_update(n)` sets the learning rate of update n, from 0.

    Linear warm-up from WARMUP_LR to BASE_LR, then cosine or linear decay to MIN_LR at the last update, or steps counted
    from update 0, at equal distances or (multistep) at the epochs in MULTISTEPS. With WARMUP_PREFIX the cosine starts
    after the warm-up and spans the remaining updates; without it, the cosine starts at update 0 and the rate drops
    slightly at the end of the warm-up, as in older code. Rates scale with the global batch size.
    """
    settings = config.TRAIN.LR_SCHEDULER
    factor = launch.learning_rate_factor(config)
    warmup = config.TRAIN.WARMUP_EPOCHS * updates_per_epoch
    total = config.TRAIN.EPOCHS * updates_per_epoch
    common = dict(warmup_t=warmup, warmup_lr_init=config.TRAIN.WARMUP_LR * factor, t_in_epochs=False)
    if settings.NAME == "step":
        return StepLRScheduler(
            optimizer,
            decay_t=settings.DECAY_EPOCHS * updates_per_epoch,
            decay_rate=settings.DECAY_RATE,
            warmup_prefix=False,
            **common,
        )
    if settings.NAME == "multistep":
        steps = [epoch * updates_per_epoch + 1 for epoch in settings.MULTISTEPS]  # timm's are reached an update earlier
        return MultiStepLRScheduler(optimizer, decay_t=steps, decay_rate=settings.GAMMA, warmup_prefix=False, **common)
    common.update(lr_min=config.TRAIN.MIN_LR * factor, cycle_limit=1)
    if settings.NAME == "linear":
        return PolyLRScheduler(optimizer, t_initial=total - warmup, power=1.0, warmup_prefix=True, **common)
    prefix = settings.WARMUP_PREFIX
    return CosineLRScheduler(optimizer, t_initial=total - warmup if prefix else total, warmup_prefix=prefix, **common)


def learning_rate(optimizer: Any) -> float:
    """The current learning rate; with TRAIN.LAYER_DECAY, that of the head."""
    return max(group["lr"] for group in optimizer.param_groups)
