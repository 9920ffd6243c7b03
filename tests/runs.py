# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Small training runs on the data of tests/digits.py, for tests of the application as a whole."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train_swin
from common.errors import Refusal
from tests.backend import DEVICE
from training import checkpoint
from training.pace import MEASURED

ROOT = Path(__file__).resolve().parent.parent
# A Swin Transformer that learns digits in seconds. All randomness is on, so that an inexact resumption shows.
OPTS = (
    *("MODEL.SWIN.EMBED_DIM", "16", "MODEL.SWIN.DEPTHS", "[1, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2]"),
    *("IPU.LAYERS_PER_IPU", "[2]", "TRAIN.WARMUP_EPOCHS", "1", "TRAIN.BASE_LR", "0.05"),
    *("MODEL.DROP_RATE", "0.1", "AUG.MIXUP", "0.2", "LOG_INTERVAL", "5"),
)
SMALL = ["--cfg", "SWIN_DEMO", "--device", DEVICE, "--epochs", "4", "--opts", *OPTS]


def train(digits, output, *more):
    """Trains SMALL with `more` arguments, and returns the newest checkpoint."""
    train_swin.main([*SMALL, *more, "--data-path", str(digits), "--output", str(output)])
    return checkpoint.load(output / "last.pth")


def run(script, *argv, **kwargs):
    """Runs an entry script in a separate process; its output is captured as text."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *argv], capture_output=True, text=True, check=False, **kwargs
    )


def refused(code, said, *argv):
    """Asserts that training ends with one line that contains `said`, and this exit code."""
    with pytest.raises(Refusal) as caught:
        train_swin.main([*SMALL, *argv])
    assert caught.value.code == code, caught.value
    assert said in str(caught.value) and "\n" not in str(caught.value)


def _flat(state):
    """Every leaf of a checkpoint that says where training stands, by a path of keys."""

    def walk(value, path):
        if isinstance(value, dict):
            for key in value:
                yield from walk(value[key], f"{path}/{key}")
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                yield from walk(item, f"{path}/{index}")
        else:
            yield path, value

    parts = {key: state[key] for key in ("model", "optimizer", "rng_states", "progress", "ema") if key in state}
    return {path: value for path, value in walk(parts, "") if not path.endswith(MEASURED)}


def assert_same_run(left, right):
    """Asserts that two checkpoints are equal bit for bit, apart from measurements."""
    left, right = _flat(left), _flat(right)
    assert left.keys() == right.keys()
    different = [
        path
        for path in left
        if not (torch.equal(left[path], right[path]) if torch.is_tensor(left[path]) else left[path] == right[path])
    ]
    assert different == []
