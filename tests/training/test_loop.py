# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What the training loop logs of its progress and of its end."""

import re
import shutil

from tests.runs import train

pytest_plugins = ["tests.digits"]


def test_time_left_is_that_of_the_updates_that_training_steps_leaves(digits, tmp_path):
    train(digits, tmp_path, "--epochs", "2000", "--training-steps", "2", "--opts", "LOG_INTERVAL", "1")
    times = re.findall(r"step: (\d+)/5 .* eta: (\d+):(\d\d):(\d\d) ", (tmp_path / "log.txt").read_text())
    assert [time[0] for time in times] == ["1", "2"]
    assert times[0][1] == "0" and times[1][1:] == ("0", "00", "00")


def test_run_that_was_never_validated_tells_no_best_accuracy(digits, tmp_path):
    train(digits, tmp_path, "--training-steps", "5", "--opts", "TEST.INTERVAL", "2")
    assert "best top-1" not in (tmp_path / "log.txt").read_text()
    train(digits, tmp_path, "--training-steps", "10", "--opts", "TEST.INTERVAL", "2")
    assert re.search(r"best top-1: [\d.]+ %", (tmp_path / "log.txt").read_text())


def test_learning_rates_and_time_left_of_a_resumed_run_fit_its_new_batch_size(digits, tmp_path):
    unbroken = train(digits, tmp_path / "unbroken", "--batch-size", "16")["progress"]["epochs"]
    train(digits, tmp_path / "changed", "--opts", "TRAIN.TRAINING_STEPS", "10")
    resumed = train(digits, tmp_path / "changed", "--batch-size", "16")["progress"]["epochs"]
    assert resumed[1]["update"] < unbroken[1]["update"]
    assert [row["lr"] for row in resumed[2:]] == [row["lr"] for row in unbroken[2:]]
    larger = train(digits, tmp_path / "unbroken", "--batch-size", "64", "--epochs", "5")["progress"]["epochs"]
    assert larger[4]["update"] > 5 * (larger[4]["update"] - larger[3]["update"])
    assert "eta: -" not in (tmp_path / "unbroken" / "log.txt").read_text()


def test_every_epoch_has_a_line_with_its_loss(digits, tmp_path):
    train(digits, tmp_path, "--opts", "LOG_INTERVAL", "1000")
    lines = re.findall(r"epoch: (\d)/4 step: (\d)/5 loss: \d", (tmp_path / "log.txt").read_text())
    assert lines == [(str(epoch), "5") for epoch in range(1, 5)]


def test_data_set_with_a_single_class_is_warned_of(digits, tmp_path):
    for split in ("train", "validation"):
        shutil.copytree(digits / split / "3", tmp_path / "data" / split / "3")
        shutil.copytree(digits / split / "4", tmp_path / "data" / split / "3" / "more")
    train(tmp_path / "data", tmp_path / "output", "--epochs", "2", "--training-steps", "1")
    assert "WARNING the data set has one class, 3: a classifier needs two" in (tmp_path / "output/log.txt").read_text()
