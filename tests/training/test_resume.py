# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Checkpoints that another device wrote: what means the same everywhere goes on, and the rest is told of."""

import logging
from unittest.mock import Mock

import pytest
import torch

import accelerator
import train_swin
from common.errors import EXIT_RESOURCE, Refusal
from tests.backend import DEVICE
from training import checkpoint, loop

SMALL = ["--cfg", "SWIN_DEMO", "--device", DEVICE, "--num-workers", "0", "--batch-size", "4"]
OPTS = [
    "DATA.DATASET",
    "generated",
    "MODEL.NUM_CLASSES",
    "10",
    "MODEL.SWIN.EMBED_DIM",
    "8",
    "MODEL.SWIN.DEPTHS",
    "[1, 1]",
]
OPTS += ["MODEL.SWIN.NUM_HEADS", "[1, 2]", "MODEL.DROP_PATH_RATE", "0.0", "IPU.LAYERS_PER_IPU", "[2]"]


def train(folder, updates):
    train_swin.main([*SMALL, "--output", str(folder), "--training-steps", str(updates), "--opts", *OPTS])
    return checkpoint.load(folder / checkpoint.LAST)


@pytest.mark.parametrize("device, words", [("64 IPUs", 20000), ("gpu", 5)])
def test_checkpoint_of_another_device_goes_on_with_one_warning_of_its_random_state(device, words, tmp_path, capsys):
    unbroken = train(tmp_path / "unbroken", 4)
    begun = train(tmp_path / "moved", 2)
    checkpoint.save(tmp_path / "moved", {**begun, "rng_states": [[7] * words], "rng_device": device}, is_best=False)
    capsys.readouterr()
    ended = train(tmp_path / "moved", 4)
    lines = capsys.readouterr().out.splitlines()
    others = ("waited for data", "Warning: ")  # of the loader, and of libraries
    warnings = [line for line in lines if " WARNING " in line and not any(other in line for other in others)]
    assert len(warnings) == 1 and f"the checkpoint was saved by another device, {device}, not " in warnings[0]
    torch.testing.assert_close(ended["model"], unbroken["model"], rtol=0, atol=0)
    for part in ("ipu_state", "ipu_param"):
        torch.testing.assert_close(ended["optimizer"][part], unbroken["optimizer"][part], rtol=0, atol=0)
    assert ended["optimizer"]["param_groups"] == unbroken["optimizer"]["param_groups"]
    assert ended["progress"] == unbroken["progress"]
    assert len(ended["rng_states"][0]) == len(begun["rng_states"][0])


@pytest.mark.parametrize("optimizer, momentum, warned", [("adamw", "0.9", 1), ("sgd", "0.9", 1), ("sgd", "0.0", 0)])
def test_checkpoint_without_moments_goes_on_with_one_warning_if_the_optimizer_has_any(
    optimizer, momentum, warned, tmp_path, capsys, caplog, monkeypatch
):
    added = ["TRAIN.OPTIMIZER.NAME", optimizer, "TRAIN.OPTIMIZER.MOMENTUM", momentum]
    monkeypatch.setitem(globals(), "OPTS", [*OPTS, *added])
    begun = train(tmp_path, 2)
    train(tmp_path, 3)
    assert "no optimizer moments" not in capsys.readouterr().out
    bare = {**begun["optimizer"], "ipu_state": {}, "state": {}}
    checkpoint.save(tmp_path, {**begun, "optimizer": bare}, is_best=False)
    monkeypatch.setattr(logging.getLogger("poptorch::python"), "propagate", True)
    train(tmp_path, 4)
    assert capsys.readouterr().out.count("the checkpoint has no optimizer moments") == warned
    assert "The optimizer state has no" not in caplog.text


@pytest.fixture
def ended(monkeypatch):
    """The loaders that were terminated."""
    loaders, found = accelerator.poptorch().DataLoader, []
    end = loaders.terminate
    monkeypatch.setattr(loaders, "terminate", lambda loader: found.append(loader) or end(loader))
    return found


def test_loaders_end_with_a_run_that_fails(tmp_path, monkeypatch, ended):
    monkeypatch.setattr(loop, "fit", Mock(side_effect=Refusal("the disk is full", EXIT_RESOURCE)))
    with pytest.raises(Refusal, match="the disk is full"):
        train(tmp_path, 1)
    assert len(set(map(id, ended))) == 2  # of training and of validation


def test_loaders_end_with_a_compilation(ended):
    train_swin.main([*SMALL, "--compile-only", "--opts", *OPTS])
    assert len(set(map(id, ended))) == 2
