# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""--plan refuses what a run would refuse whatever its data, in the same words."""

import pytest

import train_swin
from common.errors import EXIT_USAGE, Refusal
from tests.runs import SMALL

pytest_plugins = ["tests.digits"]


@pytest.mark.parametrize(
    "opts, said",
    [
        (["AUG.AUTO_AUGMENT", "rand-m99x"], "not a policy of timm"),
        (["TRAIN.FREEZE", "['layer.1']"], r"did you mean layers.1\?"),
        (["TRAIN.FREEZE", "['*']"], "leaves nothing to train"),
        (["TRAIN.CLASS_WEIGHTS", "[1, 2]", "MODEL.NUM_CLASSES", "10"], "the model has 10 classes"),
        (["MODEL.SWIN.IN_CHANS", "1", "DATA.MEAN", "[0.5]", "DATA.STD", "[0.5]"], "image files have 3 channels"),
        (["DATA.DATASET", "imagenet22K", "DATA.ZIP_MODE", "True"], "DATA.ZIP_MODE is for imagenet"),
    ],
)
def test_plan_and_run_refuse_the_same_settings_with_the_same_line(opts, said, digits, tmp_path):
    refused = []
    for command in (["--plan"], ["--data-path", str(digits), "--output", str(tmp_path)]):
        with pytest.raises(Refusal, match=said) as caught:
            train_swin.main([*SMALL, *command, "--opts", *opts])
        refused.append((str(caught.value), caught.value.code))
    assert refused[0] == refused[1] and refused[0][1] == EXIT_USAGE


def test_settings_that_only_image_files_contradict_are_planned_for_generated_images(capsys):
    opts = ["MODEL.SWIN.IN_CHANS", "1", "DATA.MEAN", "[0.5]", "DATA.STD", "[0.5]", "AUG.AUTO_AUGMENT", "rand-m99x"]
    train_swin.main([*SMALL, "--plan", "--synthetic", "--opts", *opts])
    assert capsys.readouterr().out.startswith("Plan")
