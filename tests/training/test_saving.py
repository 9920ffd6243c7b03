# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Saving in the background: from a copy, one at a time, and a failure ends the run at its next step."""

import threading

import pytest
import torch

from common.errors import EXIT_NONFINITE, Refusal
from config import get_config
from tests.training.test_checkpoint import equal, state
from training import checkpoint
from training.saving import Saver
from training.status import Status


@pytest.fixture()
def saver(tmp_path):
    return Saver(tmp_path, Status(tmp_path, get_config("SWIN_DEMO")), keep=0)


def test_saved_is_the_state_as_it_was_and_a_second_save_waits_for_the_first(tmp_path, saver, monkeypatch):
    original, go_on, running, most = checkpoint.save, threading.Event(), [], []

    def slow(*args):
        running.append(1)
        most.append(len(running))
        assert go_on.wait(30)
        original(*args)
        running.pop()

    monkeypatch.setattr(checkpoint, "save", slow)
    with saver.running():
        first = state(1)
        saver.start(first, is_best=False)
        first["model"]["head.weight"].zero_()
        saver.check()
        threading.Timer(0.2, go_on.set).start()
        saver.start(state(2), is_best=False)
    assert most == [1, 1]
    assert equal(checkpoint.load(tmp_path / "previous.pth"), state(1))
    assert equal(checkpoint.load(tmp_path / "last.pth"), state(2))


def test_failure_of_a_save_is_raised_by_the_next_check_and_spares_what_was_there(tmp_path, saver):
    with pytest.raises(Refusal, match="head.weight is not finite after update 2") as caught, saver.running():
        saver.start(state(1), is_best=False)
        saver.start(state(2, model={"head.weight": torch.tensor([float("nan")])}), is_best=True)
        for _ in range(1000):
            saver.check()
            threading.Event().wait(0.01)
    assert caught.value.code == EXIT_NONFINITE
    assert equal(checkpoint.load(tmp_path / "last.pth"), state(1)) and not (tmp_path / "best.pth").exists()


def test_error_that_ends_the_run_leaves_the_save_in_progress_in_place(tmp_path, saver):
    with pytest.raises(ZeroDivisionError), saver.running():
        saver.start(state(1), is_best=False)
        raise ZeroDivisionError
    assert equal(checkpoint.load(tmp_path / "last.pth"), state(1))
