# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The model: timm's numbers with the same weights, the official names, sizes and rules, only operations of an IPU."""

import re
from typing import Any, Dict, List

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from torch import nn
from torch.nn import functional

from models.pretrained import official_names
from models.swin_transformer import DropPath, LayerNorm, Linear, SwinTransformer, WindowAttention
from models.windows import relative_position_index, shift_mask
from planning.geometry import fit_window
from tests.operations import Recorder

SMALL = dict(
    img_size=32,
    patch_size=2,
    num_classes=5,
    embed_dim=8,
    depths=(2, 2),
    num_heads=(2, 4),
    window_size=4,
    drop_path_rate=0.0,
)


def small(**changes: Any) -> SwinTransformer:
    """A model of four blocks whose weights are all random, so that nothing cancels."""
    torch.manual_seed(0)
    model = SwinTransformer(**dict(SMALL, **changes))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def images(model: SwinTransformer, count: int = 2) -> torch.Tensor:
    patch = model.patch_embed.proj.kernel_size
    size = [tokens * extent for tokens, extent in zip(model.patch_grid, patch)]
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, batch: torch.Tensor) -> Dict[str, torch.Tensor]:
    """Logits under 'logits' and the gradient of every parameter under its name."""
    logits = model(batch)
    functional.cross_entropy(logits, torch.arange(len(batch)) % logits.shape[1]).backward()
    return dict(official_names({name: parameter.grad for name, parameter in model.named_parameters()}), logits=logits)


def assert_same(left: Dict[str, torch.Tensor], right: Dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert (tensor - right[name]).abs().max() <= tolerance * tensor.abs().max(), name


def test_swin_tiny_gives_timms_logits_and_gradients_with_the_same_weights():
    torch.manual_seed(0)
    peer = timm.create_model("swin_tiny_patch4_window7_224", drop_path_rate=0.0)
    for parameter in peer.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    model = SwinTransformer(drop_path_rate=0.0)
    state = {
        name: tensor
        for name, tensor in official_names(peer.state_dict()).items()
        if "relative_position_index" not in name and "attn_mask" not in name
    }
    model.load_state_dict(state)
    batch = images(model)
    assert_same(gradients(peer, batch), gradients(model, batch))


@pytest.mark.parametrize(
    "sizes",
    [
        dict(img_size=(32, 64), window_size=(4, 8)),
        dict(img_size=(48, 16), window_size=(4, 2)),
        dict(img_size=(16, 64), window_size=(8, 4)),  # the window is as high as the map: shifted sideways only
        dict(img_size=(24, 48), patch_size=(2, 4), window_size=(3, 6), depths=(3, 1), qkv_bias=False),
        dict(img_size=32, window_size=7, depths=(2,), num_heads=(2,), patch_size=8, mlp_ratio=2.5),
    ],
)
def test_sizes_rectangular_and_square_give_timms_numbers(sizes):
    model = small(**sizes)
    settings = dict(SMALL, **sizes)
    peer = TimmSwin(**settings)
    names = {official: name for name in peer.state_dict() for official in official_names({name: torch.empty(0)})}
    merged = {
        re.sub(r"layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name): value
        for name, value in model.state_dict().items()
    }
    missing = peer.load_state_dict({names.get(name, name): value for name, value in merged.items()}, strict=False)
    assert not missing.unexpected_keys
    assert all("relative_position_index" in name or "attn_mask" in name for name in missing.missing_keys)
    batch = images(model)
    assert_same(gradients(peer, batch), gradients(model, batch))


@pytest.mark.parametrize(
    "grid, window, fitted, shift",
    [
        ((56, 56), 7, (7, 7), (3, 3)),
        ((7, 7), 7, (7, 7), (0, 0)),
        ((4, 4), 7, (4, 4), (0, 0)),
        ((4, 8), 4, (4, 4), (0, 0)),  # official: one short side is enough
        ((2, 8), 4, (2, 2), (0, 0)),
        ((4, 8), (4, 4), (4, 4), (0, 2)),  # a pair is fitted side by side
        ((2, 8), (4, 4), (2, 4), (0, 2)),
        ((12, 12), 12, (12, 12), (0, 0)),
        ((24, 24), 12, (12, 12), (6, 6)),
    ],
)
def test_window_shrinks_to_the_map_and_is_then_not_shifted(grid, window, fitted, shift):
    assert fit_window(grid, window) == (fitted, shift)


def expected_names(depths: List[int], ape: bool, patch_norm: bool, qkv_bias: bool, head: bool) -> List[str]:
    """The official state dict, written out as a rule."""

    def affine(module: str, bias: bool = True) -> List[str]:
        return [f"{module}.weight"] + ([f"{module}.bias"] if bias else [])

    names = (["absolute_pos_embed"] if ape else []) + affine("patch_embed.proj")
    names += affine("patch_embed.norm") if patch_norm else []
    for layer, depth in enumerate(depths):
        for block in range(depth):
            prefix = f"layers.{layer}.blocks.{block}"
            names += affine(f"{prefix}.norm1") + [f"{prefix}.attn.relative_position_bias_table"]
            names += affine(f"{prefix}.attn.qkv", qkv_bias) + affine(f"{prefix}.attn.proj")
            names += affine(f"{prefix}.norm2") + affine(f"{prefix}.mlp.fc1") + affine(f"{prefix}.mlp.fc2")
        if layer + 1 < len(depths):
            names += [f"layers.{layer}.downsample.reduction.weight"] + affine(f"layers.{layer}.downsample.norm")
    return names + affine("norm") + (affine("head") if head else [])


@pytest.mark.parametrize("changes", [{}, dict(ape=True, patch_norm=False), dict(qkv_bias=False, num_classes=0)])
def test_state_dict_has_the_official_names_in_the_official_order(changes):
    names = list(small(**changes).state_dict())
    assert names == expected_names(
        [2, 2],
        changes.get("ape", False),
        changes.get("patch_norm", True),
        changes.get("qkv_bias", True),
        changes.get("num_classes", 5) > 0,
    )


def test_index_and_mask_buffers_exist_and_are_not_saved():
    model = small()
    buffers = dict(model.named_buffers())
    assert buffers["layers.0.blocks.1.attn.attn_mask"].shape == (16, 16, 16)
    assert model.layers[0].blocks[0].attn.attn_mask is None
    assert buffers["layers.0.blocks.0.attn.relative_position_index"].shape == (16, 16)
    assert not set(buffers) & set(model.state_dict())


def test_official_state_dicts_load_with_the_tables_that_they_carry():
    model, weights = small(), small().state_dict()
    tables = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.int64),
        "layers.0.blocks.1.attn_mask": torch.zeros(16, 16, 16),
    }
    before = model.layers[0].blocks[0].attn.relative_position_index.clone()
    model.load_state_dict({**weights, **tables})
    torch.testing.assert_close(model.state_dict(), weights)
    assert torch.equal(model.layers[0].blocks[0].attn.relative_position_index, before)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**weights, "layers.0.blocks.1.attn_bias": torch.zeros(1)})


def test_absolute_position_embedding_is_added_to_the_patches():
    plain, embedded = small(patch_norm=False), small(patch_norm=False, ape=True)
    embedded.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        embedded.absolute_pos_embed.copy_(torch.arange(8.0).expand(1, 256, 8))
        plain.patch_embed.proj.bias.add_(torch.arange(8.0))  # the same, for an embedding that is equal everywhere
    batch = images(plain)
    torch.testing.assert_close(embedded(batch), plain(batch), rtol=1e-4, atol=1e-5)


def test_absolute_position_embedding_runs_row_by_row():
    model = small(patch_norm=False, ape=True, img_size=(16, 32))
    seen = []
    model.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.patch_embed.proj.weight.zero_()
        model.patch_embed.proj.bias.zero_()
        model.absolute_pos_embed.copy_(torch.arange(128.0).view(1, 128, 1).expand(1, 128, 8))
        model(images(model))
    assert seen[0][0, 3, 5, 0] == 3 * 16 + 5


def test_qk_scale_multiplies_the_scores():
    scaled, plain = small(qk_scale=1.0), small(qk_scale=2.0)
    with torch.no_grad():
        for layer in scaled.layers:
            for block in layer.blocks:
                queries = block.attn.qkv.weight.shape[1]
                block.attn.qkv.weight[:queries] *= 2
                block.attn.qkv.bias[:queries] *= 2
    batch = images(plain)
    torch.testing.assert_close(scaled(batch), plain(batch))
    assert not torch.allclose(small()(batch), plain(batch))


def test_default_scale_is_the_root_of_the_heads_width():
    assert small().layers[0].blocks[0].attn.scale == pytest.approx(4**-0.5)


def test_tokens_from_opposite_edges_do_not_see_each_other():
    attention = small().layers[0].blocks[1].attn
    tokens = torch.randn(1, 16, 16, 8, requires_grad=True)
    attention(tokens)[0, 15, 15].sum().backward()
    seen = tokens.grad[0].abs().sum(-1) > 1e-9
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[14:, 14:] = True  # what is left of its window at the corner; the rest of the window was rolled around
    assert torch.equal(seen, expected)


def test_shift_mask_is_finite_in_half_and_leaves_weights_of_exactly_zero():
    mask = shift_mask((16, 16), (4, 4), (2, 2))
    assert mask.shape == (16, 16, 16)
    assert torch.isfinite(mask.half()).all()
    weights = torch.softmax(mask + 5 * torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)), -1)
    assert (weights[mask < 0] == 0).all()
    assert (weights[mask == 0] > 0).all()
    assert shift_mask((16, 16), (4, 4), (0, 0)) is None


def test_relative_position_index_is_the_difference_of_coordinates():
    index = relative_position_index((2, 3))
    rows, columns = index // 5 - 1, index % 5 - 2
    for query in range(6):
        for key in range(6):
            assert rows[query, key] == query // 3 - key // 3
            assert columns[query, key] == query % 3 - key % 3


def test_without_classes_the_model_returns_its_features():
    model = small(num_classes=0)
    batch = images(model)
    assert isinstance(model.head, nn.Identity)
    assert torch.equal(model(batch), model.forward_features(batch))
    assert model(batch).shape == (2, model.num_features) == (2, 16)


def test_drop_path_rates_grow_linearly_from_zero():
    model = SwinTransformer(**dict(SMALL, drop_path_rate=0.3))
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    torch.manual_seed(0)
    residual = DropPath(0.25)
    sums = residual(torch.ones(4000, 1, 2, 3), torch.full((4000, 1, 2, 3), 3.0)).flatten(1)
    assert (sums == sums[:, :1]).all()
    assert set(sums.unique().tolist()) == {1.0, 5.0}
    assert (sums[:, 0] == 5).float().mean() == pytest.approx(0.75, abs=0.03)
    residual.eval()
    assert (residual(torch.ones(4, 1, 2, 3), torch.full((4, 1, 2, 3), 3.0)) == 4).all()


def test_dropouts_act_in_training_only():
    model = small(drop_rate=0.5, attn_drop_rate=0.5)
    counts = sum(isinstance(module, nn.Dropout) for module in model.modules())
    assert counts == 1 + 4 * 3  # position, then attention weights, projection and MLP of each block
    batch = images(model)
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), small().eval()(batch))


def test_weights_start_from_a_truncated_normal_and_biases_from_zero():
    torch.manual_seed(0)
    model = SwinTransformer(img_size=32, embed_dim=48, depths=(2, 2), num_heads=(2, 4), window_size=4, ape=True)
    for name, parameter in model.state_dict().items():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias") and "patch_embed" not in name:
            assert (parameter == 0).all(), name
        elif "patch_embed" not in name:
            assert parameter.std() == pytest.approx(0.02, rel=0.2), name
            assert abs(parameter.mean()) < 0.01, name


def test_decay_is_left_out_where_the_official_model_says_so():
    model = small(ape=True)
    assert model.no_weight_decay() == {"absolute_pos_embed"}
    assert model.no_weight_decay_keywords() == {"relative_position_bias_table"}


def test_flops_of_swin_tiny_are_the_papers():
    with torch.device("meta"):
        assert SwinTransformer().flops() == pytest.approx(4.49e9, rel=2e-3)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(img_size=30, patch_size=4), "30x30 .* patch size 4x4"),
        (dict(window_size=5), "16x16 tokens.* 5x5"),
        (dict(img_size=(32, 24), window_size=(4, 5)), "16x12 tokens.* 4x5"),
        (dict(img_size=18, window_size=3), "9x9 tokens.* even"),
        (dict(num_heads=(2, 3)), "16 .* 3 heads"),
        (dict(num_heads=(2,)), "differ in length"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_numbers(changes, words):
    with pytest.raises(ValueError, match=words):
        small(**changes)


def test_official_callers_keywords_are_taken_and_unknown_ones_are_not():
    small(norm_layer=nn.LayerNorm, use_checkpoint=False, fused_window_process=False, qk_scale=None)
    with pytest.raises(TypeError):
        small(windowsize=4)


def test_checkpointed_blocks_give_the_same_gradients():
    plain, frugal = small(), small(use_checkpoint=True)
    batch = images(plain)
    assert_same(gradients(plain, batch), gradients(frugal, batch))


def test_micro_batches_folded_by_vmap_give_the_gradients_of_a_loop():
    looped, folded = small(), small()
    batches = torch.stack([images(looped), images(looped).flip(0) * 0.5, images(looped).neg()])
    targets = torch.tensor([[0, 1], [2, 3], [4, 0]])
    loss = torch.stack([functional.cross_entropy(looped(batch), target) for batch, target in zip(batches, targets)])
    loss.sum().backward()
    folded_loss = torch.func.vmap(
        lambda batch, target: functional.cross_entropy(folded(batch), target), randomness="different"
    )(batches, targets)
    folded_loss.sum().backward()
    torch.testing.assert_close(folded_loss, loss)
    assert_same(
        {name: parameter.grad for name, parameter in looped.named_parameters()},
        {name: parameter.grad for name, parameter in folded.named_parameters()},
    )


def test_micro_batches_folded_by_vmap_draw_their_own_drop_paths():
    torch.manual_seed(0)
    residual = DropPath(0.5)
    sums = torch.func.vmap(residual, randomness="different")(torch.zeros(8, 4, 1, 1, 1), torch.ones(8, 4, 1, 1, 1))
    assert len(sums.flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.15), (torch.float64, 1e-5)])
def test_float32_weights_serve_activations_of_another_precision(dtype, tolerance):
    model = small(norm_layer=LayerNorm)
    batch = images(model)
    expected = gradients(small(), batch)
    found = gradients(model, batch.to(dtype))
    assert found.pop("logits").dtype == dtype
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    flat = torch.cat([found[name].flatten() - expected[name].flatten() for name in found])
    assert flat.norm() <= tolerance * torch.cat([expected[name].flatten() for name in found]).norm()


@pytest.mark.parametrize("layer", [Linear(4, 3), Linear(4, 3, bias=False), LayerNorm(4)])
def test_layers_work_in_the_precision_of_their_input(layer):
    assert layer(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("training", [True, False])
def test_forward_runs_only_operations_that_poptorch_compiles(training):
    model = small(ape=True, drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2).train(training)
    with Recorder() as recorder:
        model(images(model))
    assert "aten::roll" in recorder.names and "aten::index_select" in recorder.names
    assert not recorder.refused


def test_map_is_cut_into_windows_without_a_copy_of_its_own():
    attention = WindowAttention.__new__(WindowAttention)
    nn.Module.__init__(attention)
    attention.window, attention.heads = (2, 2), 1
    tokens = torch.arange(16.0).view(1, 4, 4, 1)
    query, _, _ = attention._windows(tokens.expand(1, 4, 4, 3))
    assert query.flatten(2).squeeze().tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert torch.equal(attention._map(query, tokens.shape), tokens)
