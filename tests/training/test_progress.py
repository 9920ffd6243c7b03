# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Resuming under another configuration: what is free, what is told, what is refused."""

import logging

import pytest
import torch

from common.errors import EXIT_CHECKPOINT, Refusal
from config import get_config
from training.building import _restore_optimizer
from training.progress import Progress, check_position, check_same_run

SAVED = get_config("SWIN_DEMO").dump()


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


def resume(opts, step=0):
    check_same_run(get_config("SWIN_DEMO", opts), SAVED, Progress(epoch=2, step=step, update=100))


@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["DATA.NUM_WORKERS", "3"],
        ["LOG_INTERVAL", "1"],
        ["DATA.DATA_PATH", "elsewhere"],
        ["TRAIN.TRAINING_STEPS", "500"],
        ["TEST.INTERVAL", "2"],
    ],
)
def test_free_change_is_silent(opts, said):
    resume(opts, step=5)
    assert said() == []


@pytest.mark.parametrize(
    "opts", [["TRAIN.EPOCHS", "70"], ["TRAIN.BASE_LR", "0.001"], ["AUG.SHIFT", "2"], ["SEED", "1"]]
)
def test_change_of_the_recipe_is_told(opts, said):
    resume(opts)
    assert opts[0] in said()[0]


@pytest.mark.parametrize(
    "opts", [["MODEL.SWIN.EMBED_DIM", "96"], ["MODEL.PRECISION", "16.16"], ["TRAIN.OPTIMIZER.NAME", "sgd"]]
)
def test_change_to_another_run_is_refused(opts):
    with pytest.raises(Refusal, match=opts[0]) as caught:
        resume(opts)
    assert caught.value.code == EXIT_CHECKPOINT


@pytest.mark.parametrize("opts", [["SEED", "1"], ["DATA.BATCH_SIZE", "16"], ["IPU.REPLICAS", "2"]])
def test_change_of_the_sample_order_is_refused_inside_an_epoch(opts):
    resume(opts, step=0)
    with pytest.raises(Refusal, match="between epochs only; keep the old value until epoch 3 ends"):
        resume(opts, step=5)


def test_progress_counts_updates_and_closes_epochs():
    progress = Progress()
    progress.advance(2, 3.0)
    progress.advance(1, 6.0)
    assert (progress.step, progress.update, progress.loss_sum) == (3, 3, 12.0)
    progress.end_epoch({"epoch": 0}, 40.0)
    assert progress == Progress(epoch=1, update=3, best_top1=40.0, epochs=[{"epoch": 0}])


@pytest.mark.parametrize(
    "change", [{"param_groups": []}, {"param_groups": [{"params": [0, 1]}]}, {"param_groups": [{}]}]
)
def test_optimizer_of_another_model_is_refused(change):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(Refusal, match="optimizer does not fit this run") as caught:
        _restore_optimizer(optimizer, {**optimizer.state_dict(), **change})
    assert caught.value.code == EXIT_CHECKPOINT


def test_position_behind_the_end_of_an_epoch_is_refused():
    check_position(Progress(step=5, update=5), 5)
    with pytest.raises(Refusal, match="update 6 of an epoch, which has 5") as caught:
        check_position(Progress(step=6, update=6), 5)
    assert caught.value.code == EXIT_CHECKPOINT
