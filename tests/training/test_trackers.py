# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""TensorBoard and Weights & Biases: what they are given, and one line where they are missing or fail."""

import sys
import types

import numpy as np
import pytest

from common.errors import Refusal
from common.launch import Launch
from config import get_config
from tests.runs import train
from training import trackers
from training.outcomes import Outcomes

pytest_plugins = ["tests.digits"]

LEADER = Launch(0, 1, 1, 1)


def tracker(folder, **keys):
    return trackers.open_tracker(get_config("SWIN_DEMO", overrides=list(keys.items())), LEADER, folder)


def test_tensorboard_has_scalars_images_and_confusion(digits, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    state = train(digits, tmp_path, "--epochs", "2", "--tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "lr", "top1", "grad_norm", "throughput", "loader_wait"} <= set(tags["scalars"])
    assert {tag.split("/")[0] for tag in tags["images"]} == {"confusion", "training images"}
    rows = state["progress"]["epochs"]
    assert [event.step for event in events.Scalars("loss")] == [row["update"] for row in rows]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


def test_confusion_is_drawn_with_true_classes_as_rows():
    outcomes = Outcomes(np.array([0, 0, 1]), np.array([[0], [1], [1]]), np.ones((3, 1), dtype=np.float32), 2)
    image = trackers.matrix_image(outcomes)
    side = len(image) // 2
    assert image[[0, 0, side, side], [0, side, 0, side]].tolist() == [128, 128, 0, 255]


def test_wandb_gets_every_row(monkeypatch, tmp_path):
    logged, started = [], []
    fake = types.SimpleNamespace(
        init=lambda **keywords: started.append(keywords), log=lambda row, step: logged.append((row, step))
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    track = tracker(tmp_path, WANDB=True, OUTPUT=str(tmp_path))
    row = {"epoch": 0, "update": 5, "lr": 0.1, "grad_norm": 2.0}
    track(None, row, None)
    assert logged == [(row, 5)] and started[0]["dir"] == str(tmp_path)
    assert started[0]["config"]["MODEL"]["NAME"] == "swin_demo_patch2_window4_16"


@pytest.mark.parametrize("key, module", [("WANDB", "wandb"), ("TENSORBOARD", "torch.utils.tensorboard")])
def test_missing_package_is_one_clear_line(monkeypatch, tmp_path, key, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Refusal, match=f"pip install {module.split('.')[-1]}"):
        tracker(tmp_path, **{key: True})


def test_tensorboard_without_a_folder_is_refused():
    with pytest.raises(Refusal, match="--output"):
        tracker(None, TENSORBOARD=True)


def test_tracker_that_fails_is_told_once_and_left(monkeypatch, tmp_path, caplog):
    def fail(row, step):
        raise ConnectionError("gone")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: None, log=fail))
    track = tracker(tmp_path, WANDB=True)
    track(None, {"update": 1}, None)
    track(None, {"update": 2}, None)
    assert [record.getMessage() for record in caplog.records] == [
        "--wandb: nothing more is logged: ConnectionError: gone"
    ]


def test_followers_track_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = get_config("SWIN_DEMO", overrides=[("WANDB", True)])
    trackers.open_tracker(config, Launch(1, 2, 2, 1), None)(None, {"update": 1}, None)
