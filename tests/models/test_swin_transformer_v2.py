# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Swin V2: timm's numbers with the same weights, the official rules for windows and initialisation, IPU operations."""

import math
from typing import Any, Dict

import pytest
import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2 as TimmSwinV2
from torch import nn
from torch.nn import functional

from models.pretrained import official_names
from models.swin_transformer import LayerNorm
from models.swin_transformer_v2 import CosineWindowAttention, PostNormBlock, SwinTransformerV2
from models.windows import relative_coordinates
from tests.models.test_swin_transformer import SMALL, assert_same, gradients, images
from tests.operations import Recorder


def pair_of_models(**changes: Any):
    """timm's model with random weights, so that nothing cancels, and ours with the same."""
    torch.manual_seed(0)
    settings = dict(SMALL, **changes)
    peer = TimmSwinV2(**settings)
    for parameter in peer.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model = SwinTransformerV2(**settings)
    model.load_state_dict(official_names(peer.state_dict()))
    return peer, model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(window_size=8),
        dict(window_size=4, pretrained_window_sizes=(2, 3)),
        dict(img_size=(32, 64)),
        dict(qkv_bias=False, mlp_ratio=2.5),
        dict(img_size=64, patch_size=4, depths=(1, 3), window_size=2),
    ],
    ids=str,
)
def test_small_models_give_timms_logits_and_gradients(changes):
    peer, model = pair_of_models(**changes)
    batch = images(model)
    assert_same(gradients(peer, batch), gradients(model, batch))


def test_swin_v2_tiny_has_the_parameters_of_timms_and_of_the_official_names():
    with torch.device("meta"):
        peer, model = TimmSwinV2(img_size=256, window_size=8), SwinTransformerV2()
    theirs = {name: value.shape for name, value in official_names(dict(peer.named_parameters())).items()}
    assert theirs == {name: value.shape for name, value in model.named_parameters()}
    assert theirs == {name: value.shape for name, value in model.state_dict().items()}  # tables are computed


@pytest.mark.parametrize("accumulation, clip", [(1, math.inf), (2, 0.5)])
def test_twenty_updates_beside_timms_model_stay_together(accumulation, clip):
    models = pair_of_models()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in models]
    generator, losses = torch.Generator().manual_seed(3), ([], [])
    for _ in range(20):
        batches = [torch.randn(4, 3, 32, 32, generator=generator) for _ in range(accumulation)]
        for model, optimizer, seen in zip(models, optimizers, losses):
            optimizer.zero_grad()
            for batch in batches:
                loss = functional.cross_entropy(model(batch), torch.arange(4)) / accumulation
                loss.backward()
                seen.append(loss.item())
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    assert losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-6)
    assert losses[0][-1] < losses[0][0]
    theirs = official_names(dict(models[0].named_parameters()))
    for name, parameter in models[1].named_parameters():
        assert (parameter - theirs[name]).abs().max() <= 1e-4, name


def test_coordinates_are_scaled_by_the_window_of_pretraining():
    alone = relative_coordinates((4, 4), (4, 4))
    assert alone.shape == (49, 2) and alone.abs().max() == pytest.approx(math.log2(9) / 3)
    assert relative_coordinates((8, 8), (4, 4)).max() == pytest.approx(math.log2(1 + 8 * 7 / 3) / 3)
    assert torch.equal(relative_coordinates((2, 3), (2, 3))[7], torch.zeros(2))  # the centre of 3 x 5 positions
    assert torch.equal(relative_coordinates((1, 1), (1, 1)), torch.zeros(1, 2))  # no division by zero


def attention_of(model: nn.Module) -> CosineWindowAttention:
    return model.layers[0].blocks[0].attn


def test_logit_scale_is_bounded_by_a_hundred():
    _, model = pair_of_models()
    attention = attention_of(model)
    query, key = torch.randn(2, 1, 1, 2, 16, 4).unbind(0)
    attention.logit_scale.data.fill_(math.log(100.0))
    bounded = attention.similarity(query, key)
    attention.logit_scale.data.fill_(9.0)
    assert torch.equal(attention.similarity(query, key), bounded)
    assert bounded.abs().max() <= 100.001


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_reduced_precision_stay_in_range_and_near_float32(dtype):
    _, model = pair_of_models()
    attention = attention_of(model)
    query, key = (1e4 * torch.randn(2, 1, 1, 2, 16, 4)).to(dtype).unbind(0)  # the squared length is not a half
    try:
        scores = attention.similarity(query, key)
    except RuntimeError as error:  # PyTorch 2.0 has no product of float16 on CPUs
        assert dtype == torch.float16
        pytest.skip(str(error))
    assert scores.dtype == dtype and torch.isfinite(scores).all()
    exact = attention.similarity(query.float(), key.float())
    assert (scores.float() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()


def test_zero_tokens_give_finite_gradients():
    _, model = pair_of_models(qkv_bias=False)
    query = torch.zeros(1, 1, 2, 16, 4, requires_grad=True)
    attention_of(model).similarity(query, torch.randn(1, 1, 2, 16, 4)).sum().backward()
    assert torch.isfinite(query.grad).all()


def test_keys_have_no_bias():
    _, model = pair_of_models()
    attention = attention_of(model)
    zero = torch.zeros(1, 1, 1, 8)
    query, key, value = attention.project(zero)[0, 0, 0].chunk(3)
    assert torch.equal(query, attention.q_bias) and torch.equal(value, attention.v_bias) and not key.any()


def test_blocks_start_as_identities():
    model = SwinTransformerV2(**SMALL).train()
    x = torch.randn(2, 16, 16, 8)
    assert torch.equal(model.layers[0].blocks[1](x), x)
    norms = [
        norm for block in model.modules() if isinstance(block, PostNormBlock) for norm in (block.norm1, block.norm2)
    ]
    assert len(norms) == 8 and not any(norm.weight.any() or norm.bias.any() for norm in norms)


def test_position_mlp_and_scale_are_not_decayed():
    assert SwinTransformerV2(**SMALL).no_weight_decay_keywords() == {"cpb_mlp", "logit_scale"}


def test_tables_of_official_state_dicts_are_left_out():
    _, model = pair_of_models()
    state: Dict[str, torch.Tensor] = dict(model.state_dict())
    for name, value in model.named_buffers():
        state[name] = value
    assert any(name.endswith("relative_coords_table") for name in state)
    model.load_state_dict(state)


def test_forward_uses_only_operations_of_an_ipu():
    _, model = pair_of_models()
    with Recorder() as recorder:
        model(images(model))
    assert "aten::rsqrt" in recorder.names and "aten::sigmoid" in recorder.names
    assert not recorder.refused


def test_layers_work_in_the_precision_of_their_input():
    model = SwinTransformerV2(**SMALL, norm_layer=LayerNorm)
    x = model.patch_embed(torch.randn(1, 3, 32, 32)).bfloat16()
    assert model.layers[1](model.layers[0](x)).dtype == torch.bfloat16
