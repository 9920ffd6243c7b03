# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Diagnosis of steps that are not finite: the first bad value is named, wherever it arises."""

import math

import pytest
import torch

from config import get_config
from models.build import build_pipeline
from training.diagnosis import Finding, first_bad


@pytest.fixture()
def model():
    torch.manual_seed(0)
    return build_pipeline(get_config("SWIN_DEMO"), 10, training=True).train()


def batch():
    return torch.rand(2, 3, 16, 16), torch.tensor([1, 2])


def test_sound_step_has_nothing_bad(model):
    assert first_bad(model, *batch()) == ""


def test_first_bad_value_is_named(model):
    images, targets = batch()
    spoiled = images.clone()
    spoiled[1, 0, 3, 3] = math.inf
    assert first_bad(model, spoiled, targets) == "a pixel is not finite"
    hook = model.layers[0].blocks[0].mlp.register_forward_hook(lambda module, inputs, output: output * math.nan)
    assert first_bad(model, images, targets).startswith("the output of layers.0.blocks.0.")
    hook.remove()
    handle = model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    assert first_bad(model, images, targets) == "the gradient of norm.weight is not finite"
    handle.remove()
    with torch.no_grad():
        model.head.bias[0] = math.nan
    assert first_bad(model, images, targets) == "the weight head.bias is not finite"


def test_samples_of_a_large_micro_batch_are_cut_short():
    assert str(Finding("a pixel is not finite", [str(number) for number in range(10)])).endswith("6, 7 and 2 more")
