# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Steps whose results are read while the next one runs, as on a GPU: nothing waits, and nothing else changes.

A CPU stands in for the GPU: its updates decide for themselves, the loop reads late, and what would wait is counted.
"""

import contextlib
import inspect
import signal

import pytest
import torch
from poptorch_host.updating import update
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import accelerator
from common.errors import EXIT_NONFINITE, Preempted, Refusal
from tests.runs import assert_same_run, train
from tests.training.test_nonfinite import spoil_gradients
from training import checkpoint, loop

pytest_plugins = ["tests.digits"]
FUSED = hasattr(torch.amp, "GradScaler") and "fused" in inspect.signature(torch.optim.AdamW).parameters
pytestmark = pytest.mark.skipif(not FUSED, reason="this PyTorch has no fused AdamW for CPUs")
READING = {"_local_scalar_dense", "nonzero", "equal", "item", "tolist", "cpu", "numpy", "__bool__", "__float__"}


@pytest.fixture
def late(monkeypatch):
    """The device answers late from now on; its events are the updates before each step that begins or ends."""
    begin, end, events = loop.train_step, loop.finish_step, []

    def beginning(run, progress, images, targets, ahead=0):
        events.append(("begins", progress.update + ahead))
        return begin(run, progress, images, targets, ahead)

    def ending(run, progress, step, stop):
        events.append(("ends", progress.update))
        return end(run, progress, step, stop)

    monkeypatch.setattr(loop, "train_step", beginning)
    monkeypatch.setattr(loop, "finish_step", ending)
    monkeypatch.setattr(accelerator, "answers_late", lambda: True)
    monkeypatch.setattr(update, "is_apart", lambda device: True)
    return events


def test_run_that_reads_late_is_the_run_that_reads_at_once(digits, tmp_path, monkeypatch, late):
    """Also if it saves or ends inside an epoch, and resumes: no step begins before a state that is used is there."""
    options = ["--epochs", "2", "--opts", "TRAIN.CHECKPOINT_STEPS", "3", "TRAIN.CLIP_GRAD", "0.5"]
    unbroken = train(digits, tmp_path / "late", *options)
    assert late[:6] == [("begins", 0), ("begins", 1), ("ends", 0), ("begins", 2), ("ends", 1), ("ends", 2)]
    train(digits, tmp_path / "resumed", *options, "--training-steps", "4")
    assert_same_run(train(digits, tmp_path / "resumed", *options), unbroken)
    monkeypatch.setattr(accelerator, "answers_late", lambda: False)
    assert_same_run(train(digits, tmp_path / "at once", *options), unbroken)


def test_run_that_is_asked_to_stop_finishes_what_it_has_begun_and_begins_nothing_more(
    digits, tmp_path, monkeypatch, late
):
    end, options = loop.finish_step, ["--epochs", "1", "--opts", "TRAIN.WARMUP_EPOCHS", "0"]
    unbroken = train(digits, tmp_path / "unbroken", *options)
    monkeypatch.setattr(loop, "finish_step", lambda *args: signal.raise_signal(signal.SIGTERM) or end(*args))
    with pytest.raises(Preempted):
        train(digits, tmp_path / "stopped", *options)
    assert late[-4:] == [("begins", 0), ("begins", 1), ("ends", 0), ("ends", 1)]
    monkeypatch.setattr(loop, "finish_step", end)
    assert_same_run(train(digits, tmp_path / "stopped", *options), unbroken)


def test_average_has_the_weights_of_every_update(digits, tmp_path, monkeypatch, late):
    options = ["--epochs", "1", "--opts", "TRAIN.EMA_DECAY", "0.9", "TRAIN.WARMUP_EPOCHS", "0"]
    found = train(digits, tmp_path / "late", *options)
    monkeypatch.setattr(accelerator, "answers_late", lambda: False)
    assert_same_run(train(digits, tmp_path / "at once", *options), found)


def test_updates_that_are_not_finite_are_left_out_by_the_device_and_counted_late(digits, tmp_path, monkeypatch, late):
    options = ["--epochs", "2", "--opts", "TRAIN.SKIP_NONFINITE", "2"]
    spoil_gradients(monkeypatch, {1, 2, 7}, "_unread_factor")
    found = train(digits, tmp_path / "late", *options)
    assert (found["progress"]["skipped"], found["progress"]["skipped_in_row"]) == (3, 0)
    assert all(torch.isfinite(weight).all() for weight in found["model"].values())
    spoil_gradients(monkeypatch, {1, 2, 7}, "_unread_factor")
    monkeypatch.setattr(accelerator, "answers_late", lambda: False)
    assert_same_run(train(digits, tmp_path / "at once", *options), found)


def test_update_that_shows_the_scale_too_large_is_logged_and_stops_no_run(digits, tmp_path, monkeypatch, late):
    spoil_gradients(monkeypatch, {1}, "_unread_factor")
    monkeypatch.setattr(accelerator, "scales_gradients", lambda: True)
    found = train(digits, tmp_path, "--epochs", "1", "--opts", "TRAIN.WARMUP_EPOCHS", "0")
    assert "update 1: skipped, its gradients overflowed" in (tmp_path / "log.txt").read_text()
    assert (found["progress"]["update"], found["progress"]["skipped"]) == (5, 0)


def test_gradients_that_are_not_finite_stop_the_run_a_step_late_with_the_checkpoints_as_they_were(
    digits, tmp_path, monkeypatch, late
):
    options = ["--epochs", "2", "--opts", "TRAIN.CHECKPOINT_STEPS", "2"]
    spoil_gradients(monkeypatch, {2}, "_unread_factor")
    with pytest.raises(Refusal, match="gradients are not finite at update 2 .*checkpoints are unchanged") as caught:
        train(digits, tmp_path, *options)
    assert caught.value.code == EXIT_NONFINITE and late[-2:] == [("begins", 3), ("ends", 2)]
    assert checkpoint.load(tmp_path / "last.pth")["progress"]["update"] == 2


class Operations(TorchDispatchMode):
    """Notes operations for whose results a host waits."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found += {func.overloadpacket.__name__} & READING
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """The same of methods, some of which copy to the host without an operation."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.found += {getattr(func, "__name__", "")} & READING
        return func(*args, **(kwargs or {}))


def test_step_begins_without_waiting_for_the_device(digits, tmp_path, monkeypatch, late):
    """Clipping, the check of the gradients and the update wait for nothing; and what does is seen."""
    begin, found = loop.train_step, []

    def watched(*args, **kwargs):
        with Methods(found), Operations(found):
            return begin(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", watched)
    monkeypatch.setattr(update, "_without_modes", contextlib.nullcontext)  # which hides the update from the modes
    train(digits, tmp_path / "late", "--epochs", "1", "--opts", "TRAIN.CLIP_GRAD", "0.5", "TRAIN.WARMUP_EPOCHS", "0")
    assert found == []
    monkeypatch.setattr(update, "is_apart", lambda device: False)
    train(digits, tmp_path / "at once", "--epochs", "1", "--opts", "TRAIN.CLIP_GRAD", "0.5", "TRAIN.WARMUP_EPOCHS", "0")
    assert "item" in found
