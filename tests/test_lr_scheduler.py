# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The learning rate of every update, against the formulas worked out by hand."""

import math

import pytest
import torch

from common.errors import Refusal
from common.launch import Launch
from config import get_config
from lr_scheduler import build_scheduler

UPDATES = 10  # an epoch
EPOCHS, WARMUP = 20, 5
BASE, WARMUP_LR, MIN_LR = 1e-3, 1e-6, 1e-5  # after scaling: the global batch below is twice the reference


def rates(*opts):
    config = get_config(
        "SWIN_DEMO",
        [
            "DATA.BATCH_SIZE",
            "1024",
            "TRAIN.EPOCHS",
            str(EPOCHS),
            "TRAIN.WARMUP_EPOCHS",
            str(WARMUP),
            "TRAIN.BASE_LR",
            str(BASE / 2),
            "TRAIN.WARMUP_LR",
            str(WARMUP_LR / 2),
            "TRAIN.MIN_LR",
            str(MIN_LR / 2),
            *opts,
        ],
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    schedule = build_scheduler(config, optimizer, UPDATES, Launch(0, 1, 1, 1))
    found = []
    for update in range(EPOCHS * UPDATES + 1):
        schedule.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def warmup(update):
    return WARMUP_LR + (BASE - WARMUP_LR) * update / (WARMUP * UPDATES)


def cosine(update, total):
    return MIN_LR + 0.5 * (BASE - MIN_LR) * (1 + math.cos(math.pi * update / total))


@pytest.mark.parametrize("name", ["cosine", "linear", "step"])
def test_warmup_is_linear_from_the_first_update(name):
    found = rates("TRAIN.LR_SCHEDULER.NAME", name)
    assert found[:50] == pytest.approx([warmup(update) for update in range(50)], rel=1e-12)


def test_cosine_runs_over_the_updates_after_the_warmup():
    expected = [cosine(update, 150) for update in range(150)]
    assert rates()[50:200] == pytest.approx(expected, rel=1e-12)


def test_cosine_without_prefix_counts_from_update_0():
    expected = [cosine(update, 200) for update in range(50, 200)]
    assert rates("TRAIN.LR_SCHEDULER.WARMUP_PREFIX", "False")[50:200] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_decay_ends_at_the_smallest_rate(name):
    assert rates("TRAIN.LR_SCHEDULER.NAME", name)[200] == pytest.approx(MIN_LR, rel=1e-12)


def test_linear_decay_is_a_straight_line():
    expected = [BASE + (MIN_LR - BASE) * update / 150 for update in range(150)]
    assert rates("TRAIN.LR_SCHEDULER.NAME", "linear")[50:200] == pytest.approx(expected, rel=1e-12)


def test_steps_count_from_update_0():
    found = rates("TRAIN.LR_SCHEDULER.NAME", "step", "TRAIN.LR_SCHEDULER.DECAY_EPOCHS", "8")
    assert found[50:] == pytest.approx([BASE * 0.1 ** (update // 80) for update in range(50, 201)], rel=1e-12)


@pytest.mark.parametrize("replicas", [1, 2, 8])
def test_rates_follow_the_global_batch_of_all_processes(replicas):
    config = get_config("SWIN_TINY")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    launch = Launch(0, 2, replicas, max(replicas // 2, 1))
    optimizer.param_groups[0]["lr"] = config.TRAIN.BASE_LR * launch.learning_rate_factor(config)
    schedule = build_scheduler(config, optimizer, UPDATES, launch)
    schedule.step_update(config.TRAIN.WARMUP_EPOCHS * UPDATES)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-4 * 4 * 64 * replicas / 512, rel=1e-12)


def test_multistep_falls_at_the_first_update_of_its_epochs():
    found = rates("TRAIN.LR_SCHEDULER.NAME", "multistep", "TRAIN.LR_SCHEDULER.MULTISTEPS", "[8, 15]")
    assert found[:50] == pytest.approx([warmup(update) for update in range(50)], rel=1e-12)
    assert found[50:] == pytest.approx([BASE] * 30 + [BASE / 10] * 70 + [BASE / 100] * 51, rel=1e-12)


@pytest.mark.parametrize("steps", ["[]", "[15, 8]", "[3, 8]"])
def test_multistep_needs_epochs_in_order_and_after_the_warmup(steps):
    with pytest.raises(Refusal, match="MULTISTEPS"):
        rates("TRAIN.LR_SCHEDULER.NAME", "multistep", "TRAIN.LR_SCHEDULER.MULTISTEPS", steps)
