# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What the training loop logs of its progress and of its end."""

import re

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
