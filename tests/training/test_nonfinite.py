# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Updates that are not finite: the message names the cause, and skipping them keeps resumption exact."""

import math
import re

import pytest
from poptorch_host.updating.update import WeightUpdate

from common.errors import EXIT_NONFINITE, Refusal
from dataset.samples import ImageDataset
from tests.backend import DEVICE, host_only
from tests.runs import assert_same_run, train

pytest_plugins = ["tests.digits"]


def test_step_that_is_not_finite_is_told_with_its_rate_module_and_samples(digits, tmp_path, monkeypatch):
    sample = ImageDataset.sample
    monkeypatch.setattr(
        ImageDataset,
        "sample",
        lambda self, epoch, index, into: (sample(self, epoch, index, into)[0].mul_(math.inf if index == 7 else 1), 1),
    )
    with pytest.raises(Refusal) as caught:
        own_process = ["DATA.LOADER", "sync", "DATA.NUM_WORKERS", "0"]  # others would not have the patch above
        train(digits, tmp_path, "--opts", "AUG.MIXUP", "0.0", "AUG.CUTMIX", "0.0", *own_process)
    assert caught.value.code == EXIT_NONFINITE
    cause = r": a pixel is not finite, for the samples .*train/0/\d+.png" if DEVICE == "cpu" else ""
    where = r"not finite at update \d+ \(epoch 0, step \d+, learning rate [\d.e-]+\)"
    assert re.search(f"{where}{cause}.*; the checkpoints are unchanged", str(caught.value))
    assert ("SKIP_NONFINITE" in str(caught.value)) == (DEVICE == "cpu")  # which an IPU does not have


def spoil_gradients(monkeypatch, updates, where="_factor"):
    """NaN in the gradients of these updates only, which method `where` gets; their losses are finite."""
    factor = getattr(WeightUpdate, where)
    counted = []

    def spoiling(self, slots, gradients, scale):
        counted.append(0)
        if len(counted) - 1 in updates:
            gradients[0].fill_(math.nan)
        return factor(self, slots, gradients, scale)

    monkeypatch.setattr(WeightUpdate, where, spoiling)


@host_only("an IPU applies every update")
def test_updates_that_are_not_finite_are_left_out_and_counted_and_resuming_is_exact(digits, tmp_path, monkeypatch):
    options = ["--opts", "TRAIN.SKIP_NONFINITE", "2"]
    spoil_gradients(monkeypatch, {1, 2, 4, 8})
    unbroken = train(digits, tmp_path / "unbroken", *options)
    assert (unbroken["progress"]["skipped"], unbroken["progress"]["skipped_in_row"]) == (4, 0)
    spoil_gradients(monkeypatch, {1, 2, 4, 8})
    train(digits, tmp_path / "resumed", *options, "--training-steps", "2")
    spoil_gradients(monkeypatch, {0, 2, 6})
    assert_same_run(train(digits, tmp_path / "resumed", *options), unbroken)
    spoil_gradients(monkeypatch, {1, 2, 3})
    with pytest.raises(Refusal, match="gradients are not finite at update 3 .*finite with other dropout masks"):
        train(digits, tmp_path / "stopped", *options)
