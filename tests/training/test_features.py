# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Training features of the configuration: each is exact on resume."""

import pytest

from tests.generated_runs import train
from tests.runs import assert_same_run

FEATURES = {
    "adam": ["TRAIN.OPTIMIZER.NAME", "adam"],
    "lamb": ["TRAIN.OPTIMIZER.NAME", "lamb", "TRAIN.CLIP_GRAD", "0"],
    "rmsprop": ["TRAIN.OPTIMIZER.NAME", "rmsprop", "TRAIN.CLIP_GRAD", "0"],
    "layer decay, frozen layer": ["TRAIN.LAYER_DECAY", "0.5", "TRAIN.FREEZE", "['layers.0']"],
}


@pytest.mark.parametrize("opts", FEATURES.values(), ids=FEATURES)
def test_resumed_run_is_the_unbroken_one_to_the_bit(opts, tmp_path):
    unbroken = train(tmp_path / "unbroken", 4, *opts)
    train(tmp_path / "resumed", 2, *opts)
    assert_same_run(unbroken, train(tmp_path / "resumed", 4, *opts))
