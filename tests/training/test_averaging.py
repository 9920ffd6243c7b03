# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Averaged weights (EMA): timm's rule, beside the training, in checkpoints and in the other commands."""

import csv
import re

import numpy as np
import pytest
import torch
from timm.utils import ModelEmaV3

import accelerator
import train_swin
import validate
from common.errors import EXIT_CHECKPOINT, Refusal
from config import get_config
from tests.backend import DEVICE
from tests.generated_runs import SMALL, pictures, train
from tests.runs import assert_same_run
from training import checkpoint, loop
from training.averaging import WeightAverage, is_due
from training.outcomes import Outcomes
from training.progress import AVERAGED, Progress

EMA = ["TRAIN.EMA_DECAY", "0.5", "TRAIN.EMA_WARMUP", "True"]
EPOCHS = ["TRAIN.EPOCHS", "2", "TRAIN.WARMUP_EPOCHS", "0", "TRAIN.BASE_LR", "0.05"]  # of three updates


def trained(model, steps):
    """The model after each of some random updates."""
    for step in range(1, steps + 1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        yield step


@pytest.mark.parametrize("warmup", [False, True])
def test_average_is_that_of_timm(warmup):
    model = torch.nn.BatchNorm1d(3)
    ours, theirs = WeightAverage(model, 0.6, warmup), ModelEmaV3(model, 0.6, use_warmup=warmup)
    for step in trained(model, 6):
        model(torch.randn(5, 3))
        ours.add(model, step)
        theirs.update(model, step)
    theirs = theirs.module.state_dict()
    assert ours.weights.keys() == theirs.keys()
    for name in ("weight", "bias", "running_var"):
        torch.testing.assert_close(ours.weights[name], theirs[name])
    assert ours.decay_of(1) == 0 and ours.decay_of(1000) == 0.6


def test_weights_that_come_late_stand_for_the_updates_since():
    model = torch.nn.Linear(2, 2)
    often, rarely = WeightAverage(model, 0.9, False), WeightAverage(model, 0.9, False)
    for step in trained(model, 1):
        often.add(model, step)
        rarely.add(model, step)
    for _ in trained(model, 1):
        for update in (2, 3, 4):
            often.add(model, update)
        rarely.add(model, 4)
    torch.testing.assert_close(often.weights, rarely.weights)


def test_half_weights_are_averaged_in_float32():
    model = torch.nn.Linear(1, 1, bias=False).half()
    model.weight.data.fill_(0.25)  # of random weights, one in a hundred is rounded by more than 1e-6
    average = WeightAverage(model, 0.9999, False)
    average.add(model, 1)
    first = model.weight.item()
    for update in range(2, 102):
        model.weight.data.fill_(1.0)
        average.add(model, update)
    assert average.weights["weight"].item() == pytest.approx(first * 0.9999**100 + 1 - 0.9999**100, rel=1e-6)
    with average.installed(model):
        assert model.weight.dtype == torch.float16
        assert model.weight.item() == average.weights["weight"].half().item() != 1
    assert model.weight.item() == 1


def test_ipu_averages_where_weights_come_to_the_host(monkeypatch):
    config = get_config("SWIN_TINY", ["TRAIN.CHECKPOINT_STEPS", "4"])
    monkeypatch.setattr(accelerator, "is_ipu", lambda: False)
    assert all(is_due(config, Progress(step=step, update=20 + step), 10) for step in range(1, 11))
    monkeypatch.setattr(accelerator, "is_ipu", lambda: True)
    due = [step for step in range(1, 11) if is_due(config, Progress(step=step, update=20 + step), 10)]
    assert due == [4, 8, 10]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder, the settings of its pictures, and the checkpoint of a run that averages."""
    folder = tmp_path_factory.mktemp("ema")
    data = pictures(folder / "data", a=7, b=5)
    return folder, data, train(folder / "unbroken", 0, *data, *EPOCHS, *EMA)


def test_averaging_changes_no_weight_and_is_exact_on_resume(run):
    folder, data, unbroken = run
    plain = train(folder / "plain", 0, *data, *EPOCHS)
    torch.testing.assert_close(unbroken["model"], plain["model"], rtol=0, atol=0)
    assert "ema" not in plain and unbroken["ema_update"] == 6
    for updates in (2, 4):
        train(folder / "resumed", updates, *data, *EPOCHS, *EMA)
    assert_same_run(unbroken, train(folder / "resumed", 0, *data, *EPOCHS, *EMA))


def test_averaged_weights_decide_which_checkpoint_is_the_best(run, tmp_path, monkeypatch):
    """The weights are right from the first epoch on, their average half so at first and whole in the second."""
    _, data, _ = run
    labels = np.array([0, 0, 1, 1])
    halves = iter((np.array([0, 0, 0, 0]), labels))

    def validated(run, progress):
        both = {"": labels, AVERAGED: next(halves)}
        return {name: Outcomes(labels, told[:, None], np.ones((4, 1), np.float32), 2) for name, told in both.items()}

    monkeypatch.setattr(loop, "validate_epoch", validated)
    state = train(tmp_path, 0, *data, *EPOCHS, *EMA)
    assert [row["top1"] for row in state["progress"]["epochs"]] == [100, 100]
    assert [row["ema_top1"] for row in state["progress"]["epochs"]] == [50, 100]
    assert checkpoint.load(tmp_path / "best.pth")["progress"]["epoch"] == 2


def test_both_weights_are_validated(run, capsys):
    folder, data, state = run
    rows = list(csv.DictReader((folder / "unbroken" / "metrics.csv").open()))
    assert all(row["top1"] and row["ema_top1"] for row in rows)
    assert not torch.equal(state["ema"]["head.weight"], state["model"]["head.weight"])
    log = (folder / "unbroken" / "log.txt").read_text()
    often = "every epoch, when an IPU copies its weights" if DEVICE == "ipu" else "every update"
    assert f"averaged (EMA) on the host after {often}; the best checkpoint has the best averaged" in log
    for flags, column in ([], "top1"), (["--use-ema"], "ema_top1"):
        command = ["--checkpoint", str(folder / "unbroken" / "last.pth"), "--data-path", data[3], "--device", DEVICE]
        validate.main([*command, *flags])
        said = capsys.readouterr().out
        assert ("by which the best checkpoint was chosen: --use-ema" in said) == (not flags)
        found = re.search(r"validation: top-1: ([\d.]+) %", said)
        assert float(found[1]) == pytest.approx(float(rows[-1][column]), abs=0.005)


def test_averaged_weights_start_another_run(run):
    folder, data, state = run
    source = ["MODEL.PRETRAINED", str(folder / "unbroken" / "last.pth"), "MODEL.PRETRAINED_EMA", "True"]
    begun = train(folder / "next", 1, *data, *source, "TRAIN.BASE_LR", "0", "TRAIN.WARMUP_LR", "0")
    torch.testing.assert_close(begun["model"]["head.weight"], state["ema"]["head.weight"])


def test_checkpoint_without_an_average_is_refused_with_use_ema(run):
    folder, data, _ = run
    train(folder / "without", 1, *data)
    command = ["--checkpoint", str(folder / "without" / "last.pth"), "--data-path", data[3], "--device", DEVICE]
    with pytest.raises(Refusal, match=r"has no averaged weights \(EMA\): leave") as caught:
        validate.main([*command, "--use-ema"])
    assert caught.value.code == EXIT_CHECKPOINT


def test_average_that_begins_late_begins_with_the_weights(run, capsys):
    folder, data, _ = run
    train(folder / "late", 2, *data)
    late = train(folder / "late", 3, *data, *EMA, "TRAIN.BASE_LR", "0", "TRAIN.WARMUP_LR", "0")
    assert "the checkpoint has no averaged weights (EMA): averaging starts from its weights" in capsys.readouterr().out
    assert late["ema_update"] == 3 and torch.equal(late["ema"]["head.weight"], late["model"]["head.weight"])


def test_compilation_alone_takes_an_average(capsys):
    train_swin.main(["--compile-only", *SMALL, *EMA])
    assert "both programs" in capsys.readouterr().out
