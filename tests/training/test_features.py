# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Training features of the configuration: each is exact on resume."""

import pytest

from tests.generated_runs import pictures, train
from tests.runs import assert_same_run

FEATURES = {
    "adam": ["TRAIN.OPTIMIZER.NAME", "adam"],
    "lamb": ["TRAIN.OPTIMIZER.NAME", "lamb", "TRAIN.CLIP_GRAD", "0"],
    "rmsprop": ["TRAIN.OPTIMIZER.NAME", "rmsprop", "TRAIN.CLIP_GRAD", "0"],
    "bce": ["TRAIN.LOSS.NAME", "bce", "TRAIN.LOSS.TARGET_THRESHOLD", "0.2", "TRAIN.CLASS_WEIGHTS", "balanced"],
    "class weights": ["TRAIN.CLASS_WEIGHTS", "balanced", "MODEL.LABEL_SMOOTHING", "0.1"],
    "gradient checkpointing": ["TRAIN.USE_CHECKPOINT", "True", "MODEL.DROP_RATE", "0.1"],
    "layer decay, frozen layer": ["TRAIN.LAYER_DECAY", "0.5", "TRAIN.FREEZE", "['layers.0']"],
}


@pytest.mark.parametrize("opts", FEATURES.values(), ids=FEATURES)
def test_resumed_run_is_the_unbroken_one_to_the_bit(opts, tmp_path):
    unbroken = train(tmp_path / "unbroken", 4, *opts)
    train(tmp_path / "resumed", 2, *opts)
    assert_same_run(unbroken, train(tmp_path / "resumed", 4, *opts))


@pytest.mark.parametrize("opts", [["DATA.BALANCED_SAMPLING", "True"], ["AUG.REPEATS", "3"]])
def test_run_that_draws_samples_again_is_exact_on_resume(opts, tmp_path):
    opts = [*pictures(tmp_path / "data", a=20, b=4), *opts]
    unbroken, plain = train(tmp_path / "unbroken", 4, *opts), train(tmp_path / "plain", 4, *opts[:-2])
    train(tmp_path / "resumed", 2, *opts)
    assert_same_run(unbroken, train(tmp_path / "resumed", 4, *opts))
    assert unbroken["progress"]["loss_sum"] != plain["progress"]["loss_sum"]
