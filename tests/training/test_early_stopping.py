# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""TRAIN.EARLY_STOPPING: a run whose accuracy does not rise ends, says why, and stays ended."""

import json

import pytest

from tests.generated_runs import pictures, train
from training.progress import Progress

STILL = ["TRAIN.EPOCHS", "6", "TRAIN.WARMUP_EPOCHS", "0", "TRAIN.BASE_LR", "0", "TRAIN.MIN_LR", "0"]  # learns nothing


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_run_without_progress_ends_says_why_and_stays_ended(tmp_path, capsys):
    opts, folder = [*pictures(tmp_path / "data", a=7, b=5), *STILL], tmp_path / "out"
    ended = train(folder, 0, *opts, "TRAIN.EARLY_STOPPING", "2")
    assert ended["progress"]["epoch"] == 3
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("done", 0)
    best = f"{ended['progress']['best_top1']:.2f}"
    assert status["cause"] == f"stopped early: no better top-1 than {best} % for 2 epochs (TRAIN.EARLY_STOPPING 2)"
    assert status["cause"] in (folder / "log.txt").read_text()
    assert "stopped early: epoch 3 of 6" in (folder / "report.html").read_text()
    before = contents(folder)
    train(folder, 0, *opts, "TRAIN.EARLY_STOPPING", "2")
    assert contents(folder) == before and "nothing to do" in capsys.readouterr().out
    assert train(folder, 0, *opts, "TRAIN.EARLY_STOPPING", "3")["progress"]["epoch"] == 4


@pytest.mark.parametrize(
    "scores, patience, ends",
    [
        ([50.0, 60.0, 60.0, 59.0], 2, True),
        ([50.0, 60.0, 60.0, 59.0], 3, False),
        ([50.0, 60.0, 60.0, 59.0], 0, False),
        ([50.0, None, None], 1, False),
        ([None, None, 50.0, None, None, 40.0], 3, True),
        ([], 1, False),
    ],
)
def test_patience_counts_epochs_up_to_a_validated_one(scores, patience, ends):
    assert bool(Progress(epochs=[{"top1": score} for score in scores]).stopped_early(patience)) == ends


def test_averaged_weights_decide_where_there_are_some():
    rows = [{"top1": 50.0, "ema_top1": 10.0}, {"top1": 40.0, "ema_top1": 20.0}]
    assert not Progress(epochs=rows).stopped_early(1)
