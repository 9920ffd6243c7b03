# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The measurements of an epoch in metrics.csv."""

import csv
import math

import pytest

from tests.backend import host_only
from tests.runs import train
from training import output_folder
from training.pace import Pace

pytest_plugins = ["tests.digits"]


@host_only("an IPU reports no gradient norm")
def test_every_epoch_has_its_measurements_beside_its_results(digits, tmp_path):
    train(digits, tmp_path, "--epochs", "2")
    with (tmp_path / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0])[:7] == ["epoch", "update", "lr", "loss", "throughput", "top1", "top5"]
    for row in rows:
        assert float(row["grad_norm"]) > 0 and 0 <= float(row["loader_wait"]) <= 1
        assert 0 < float(row["step_time"]) < 60 and float(row["memory_mb"]) > 50


@host_only("an IPU reports no gradient norm")
def test_gradient_norm_is_that_before_clipping(digits, tmp_path):
    """The first update's gradients do not depend on the limit."""
    norms = {}
    for limit in ("0.001", "1000.0"):
        state = train(
            digits,
            tmp_path / limit,
            "--epochs",
            "2",
            "--ga",
            "160",
            "--batch-size",
            "1",
            "--opts",
            "TRAIN.CLIP_GRAD",
            limit,
        )
        norms[limit] = state["progress"]["epochs"][0]["grad_norm"]
    assert norms["0.001"] == norms["1000.0"] > 0.001


def test_step_time_leaves_waiting_out():
    assert Pace.of(rate=100.0, wait=0.5, global_batch=64, norms=[1.0, math.nan, 3.0]) == Pace(100.0, 0.5, 0.32, 2.0)
    assert Pace.of(rate=100.0, wait=0.5, global_batch=64, norms=[math.nan]).grad_norm is None


@pytest.mark.parametrize("new", [{"epoch": 1, "loss": 1.5, "memory_mb": 3.0}, {"epoch": 1}])
def test_rows_with_other_columns_than_the_newest_are_kept(tmp_path, new):
    old = {"epoch": 0, "loss": 2.0, "top1": 50.0}
    output_folder.write_metrics(tmp_path, [old, new])
    with (tmp_path / "metrics.csv").open() as lines:
        first, second = csv.DictReader(lines)
    assert {name: first[name] for name in old} == {"epoch": "0", "loss": "2.0", "top1": "50.0"}
    assert {name: second[name] for name in new} == {name: str(value) for name, value in new.items()}
