# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""TensorBoard and Weights & Biases: what they are given, and one line where they are missing or fail."""

import sys
import types

import numpy as np
import pytest

import train_swin
from common.errors import EXIT_RESOURCE, Refusal
from common.launch import Launch
from config import get_config
from tests.runs import SMALL, train
from training import checkpoint, trackers
from training.outcomes import Outcomes

pytest_plugins = ["tests.digits"]

LEADER = Launch(0, 1, 1, 1)


def tracker(folder, launch=LEADER, **keys):
    config = get_config("SWIN_DEMO", overrides=list(keys.items()))
    return trackers.open_tracker(trackers.find_trackers(config, launch, folder))


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


def fake_wandb(**functions):
    """What the trainer calls of wandb; pictures are what they were made of."""
    return types.SimpleNamespace(**{"init": lambda **_: None, "Image": lambda picture: picture, **functions})


def test_wandb_gets_every_row_and_the_pictures(digits, tmp_path, monkeypatch):
    logged, started = [], []
    fake = fake_wandb(
        init=lambda **keywords: started.append(keywords), log=lambda row, step: logged.append((row, step))
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    argv = ["--epochs", "2", "--wandb", "--data-path", str(digits), "--output", str(tmp_path), "--tag", "one"]
    train_swin.main([*SMALL, *argv])
    state = checkpoint.load(tmp_path / "one" / "last.pth")
    assert started[0]["dir"] == str(tmp_path / "one")
    assert started[0]["config"]["MODEL"]["NAME"] == "swin_demo_patch2_window4_16"
    rows = state["progress"]["epochs"]
    assert [step for _, step in logged] == [row["update"] for row in rows]
    assert [{name: told[name] for name in row} for row, (told, _) in zip(rows, logged)] == rows
    shapes = [{name: [one.shape for one in told[name]] for name in told if name not in rows[0]} for told, _ in logged]
    assert shapes == [
        {"training images": [(16, 16, 3)] * 8, "confusion": [(300, 300, 1)]},
        {"confusion": [(300, 300, 1)]},
    ]


def test_wandb_that_cannot_begin_is_one_clear_line(monkeypatch, tmp_path):
    def no_key(**_):
        raise RuntimeError("api_key not configured (no-tty)\ncall wandb.login")

    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(init=no_key))
    with pytest.raises(Refusal, match="--wandb cannot start: api_key not configured.*WANDB_MODE=offline") as caught:
        tracker(tmp_path, WANDB=True)
    assert caught.value.code == EXIT_RESOURCE and "\n" not in str(caught.value)


@pytest.mark.parametrize("key, module", [("WANDB", "wandb"), ("TENSORBOARD", "torch.utils.tensorboard")])
def test_missing_package_is_one_clear_line(monkeypatch, tmp_path, key, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Refusal, match=f"pip install {module.split('.')[-1]}"):
        tracker(tmp_path, **{key: True})


@pytest.mark.parametrize("folder", ["output", None])
def test_no_wandb_run_is_opened_if_tensorboard_cannot_be(monkeypatch, tmp_path, folder):
    opened = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(init=lambda **_: opened.append("run")))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(Refusal, match="--tensorboard"):
        tracker(folder and tmp_path / folder, WANDB=True, TENSORBOARD=True)
    assert not opened


def test_no_event_file_is_opened_if_wandb_is_missing(monkeypatch, tmp_path):
    opened = []
    writer = types.SimpleNamespace(SummaryWriter=opened.append)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    with pytest.raises(Refusal, match="--wandb"):
        tracker(tmp_path, WANDB=True, TENSORBOARD=True)
    assert not opened


def test_tensorboard_without_a_folder_is_refused():
    with pytest.raises(Refusal, match="--output"):
        tracker(None, TENSORBOARD=True)


def test_tracker_that_fails_is_told_once_and_left(monkeypatch, tmp_path, caplog):
    def fail(row, step):
        raise ConnectionError("gone")

    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(log=fail))
    track = tracker(tmp_path, WANDB=True)
    track(None, {"epoch": 1, "update": 1}, None)
    track(None, {"epoch": 2, "update": 2}, None)
    assert [record.getMessage() for record in caplog.records] == [
        "--wandb: nothing more is logged: ConnectionError: gone"
    ]


def test_followers_track_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker(None, Launch(1, 2, 2, 1), WANDB=True)(None, {"update": 1}, None)


def test_no_run_is_opened_for_data_that_are_refused(monkeypatch, tmp_path):
    opened = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(init=lambda **_: opened.append("run")))
    with pytest.raises(Refusal, match="data path .*mistyped is not a folder"):
        train_swin.main([*SMALL, "--wandb", "--data-path", str(tmp_path / "mistyped"), "--output", str(tmp_path)])
    assert not opened
