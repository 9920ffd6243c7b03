# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The optimizer: which parameters decay, at which rate, and what is kept in half."""

import math

import pytest
import torch

import accelerator
from common.errors import Refusal
from common.launch import Launch
from config import get_config
from lr_scheduler import build_scheduler, learning_rate
from models.build import build_pipeline
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
    decayed, plain = parameter_groups(get_config("SWIN_TINY"), model, 1e-3)
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


@pytest.mark.parametrize("name, kind", [("adam", "Adam"), ("lamb", "LAMB"), ("rmsprop", "RMSprop")])
def test_optimizers_of_poptorch_take_their_settings(name, kind):
    settings = ["TRAIN.OPTIMIZER.NAME", name, "TRAIN.CLIP_GRAD", "0", "TRAIN.OPTIMIZER.EPS", "1e-6"]
    settings += ["TRAIN.OPTIMIZER.ALPHA", "0.9", "MODEL.PRECISION", "16.16"]
    optimizer = build_optimizer(get_config("SWIN_TINY", settings), Model(), LAUNCH)
    assert isinstance(optimizer, getattr(accelerator.poptorch().optim, kind))
    group = optimizer.param_groups[0]
    assert (group["eps"], group["weight_decay"], group["lr"]) == (1e-6, 0.05, 5e-4 * 1024 / 512)
    assert group.get("alpha", 0.9) == 0.9 and group.get("betas", (0.9, 0.999)) == (0.9, 0.999)
    assert (optimizer.accum_type, optimizer.second_order_momentum_accum_type) == (torch.float16, torch.float32)


@pytest.mark.parametrize("name", ["lamb", "rmsprop"])
def test_optimizer_that_cannot_clip_is_refused_with_clipping(name):
    with pytest.raises(Refusal, match=f"TRAIN.CLIP_GRAD 5.0: PopTorch's {name} does not clip gradients: add --opts"):
        get_config("SWIN_TINY", ["TRAIN.OPTIMIZER.NAME", name])


def test_learning_rates_fall_from_layer_to_layer_and_follow_the_schedule():
    """Swin with blocks 1, 2: the head's layer is 4, and its rate is the full one."""
    settings = ["MODEL.SWIN.DEPTHS", "[1, 2]", "MODEL.SWIN.NUM_HEADS", "[1, 2]", "MODEL.SWIN.EMBED_DIM", "4"]
    settings += ["IPU.LAYERS_PER_IPU", "[3]", "MODEL.SWIN.APE", "True", "TRAIN.LAYER_DECAY", "0.5"]
    config = get_config("SWIN_TINY", [*settings, "TRAIN.WARMUP_EPOCHS", "2", "TRAIN.EPOCHS", "10"])
    model = build_pipeline(config, 3)
    optimizer = build_optimizer(config, model, LAUNCH)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    full = 5e-4 * LAUNCH.learning_rate_factor(config)
    expected = {
        "patch_embed.proj.weight": full / 16,
        "layers.0.blocks.0.attn.qkv.weight": full / 8,
        "layers.0.downsample.reduction.weight": full / 8,
        "layers.1.blocks.0.norm1.bias": full / 4,
        "layers.1.blocks.1.mlp.fc2.weight": full / 2,
        "absolute_pos_embed": full,
        "norm.weight": full,
        "head.bias": full,
    }
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
    assert rates.keys() == dict(model.named_parameters()).keys() and len(optimizer.param_groups) == 10
    assert learning_rate(optimizer) == pytest.approx(full)
    schedule = build_scheduler(config, optimizer, 1, LAUNCH)
    schedule.step_update(1)  # half of the warm-up
    low = 5e-7 * LAUNCH.learning_rate_factor(config)
    halfway = sorted((low + (full * share - low) / 2) for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1) for _ in "wb")
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx(halfway)
