# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The optimizer: which parameters decay, at which rate, and what is kept in half."""

import math

import pytest
import torch

import accelerator
from common.launch import Launch
from config import get_config
from optimizer import build_optimizer, parameter_groups
from tests.backend import DEVICE

LAUNCH = Launch(0, 1, 4, 4)


class Model(torch.nn.Module):
    """One parameter of each kind that Swin Transformers have."""

    def __init__(self):
        super().__init__()
        self.absolute_pos_embed = torch.nn.Parameter(torch.zeros(1, 4, 8))
        self.relative_position_bias_table = torch.nn.Parameter(torch.zeros(9, 2))
        self.proj = torch.nn.Linear(8, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.frozen = torch.nn.Parameter(torch.zeros(3, 3), requires_grad=False)

    def no_weight_decay(self):
        return {"absolute_pos_embed"}

    def no_weight_decay_keywords(self):
        return {"relative_position_bias_table"}


@pytest.fixture(autouse=True)
def device():
    accelerator.select(DEVICE)


def test_only_matrices_decay():
    model = Model()
    decayed, plain = parameter_groups(get_config("SWIN_TINY"), model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(parameter)] for parameter in decayed["params"]] == ["proj.weight"]
    assert sorted(names[id(parameter)] for parameter in plain["params"]) == [
        "absolute_pos_embed",
        "norm.bias",
        "norm.weight",
        "proj.bias",
        "relative_position_bias_table",
    ]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)


def test_adamw_has_the_papers_settings_and_a_scaled_variable_rate():
    optimizer = build_optimizer(get_config("SWIN_TINY"), Model(), LAUNCH)
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], optimizer.max_grad_norm) == ((0.9, 0.999), 1e-8, 5.0)
    assert group["lr"] == pytest.approx(5e-4 * 1024 / 512)
    assert optimizer.bias_correction is True
    assert not optimizer.variable_attrs.isConstant("lr")


@pytest.mark.parametrize(
    "precision, accumulators",
    [("16.16", torch.float16), ("16.32", torch.float32), ("32.32", torch.float32), ("mix", torch.float32)],
)
def test_half_weights_have_half_accumulators_and_float_second_moments(precision, accumulators):
    config = get_config("SWIN_TINY", ["MODEL.PRECISION", precision, "TRAIN.LOSS_SCALING", "128"])
    optimizer = build_optimizer(config, Model(), LAUNCH)
    assert optimizer.accum_type == accumulators
    assert optimizer.first_order_momentum_accum_type == accumulators
    assert optimizer.second_order_momentum_accum_type == torch.float32
    assert optimizer.loss_scaling == 128.0


def test_sgd_is_nesterov_and_clipping_can_be_off():
    config = get_config("SWIN_TINY", ["TRAIN.OPTIMIZER.NAME", "sgd", "TRAIN.CLIP_GRAD", "0"])
    optimizer = build_optimizer(config, Model(), LAUNCH)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["nesterov"] and optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.max_grad_norm == math.inf


def test_sgd_may_have_no_momentum():
    config = get_config("SWIN_TINY", ["TRAIN.OPTIMIZER.NAME", "sgd", "TRAIN.OPTIMIZER.MOMENTUM", "0"])
    assert not build_optimizer(config, Model(), LAUNCH).param_groups[0]["nesterov"]
