# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Costs of the model's parts against counters of PyTorch's: products, parameters, and what autograd keeps."""

from typing import Any, Dict, Type

import pytest
import torch
from torch.nn import functional

import accelerator
from config import get_config, named_configs
from models.build import build_pipeline
from models.swin_transformer import SwinTransformer
from models.swin_transformer_v2 import SwinTransformerV2
from planning.costs import Unit, configured_units, swin_units
from planning.geometry import LayerShape, layer_shapes

TINY = dict(img_size=224, patch_size=4, embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7)
BASE_384 = dict(
    img_size=384, patch_size=4, embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=12
)
RECTANGLE = dict(
    img_size=(32, 64),
    patch_size=(2, 4),
    embed_dim=8,
    depths=[1, 2],
    num_heads=[1, 2],
    window_size=(4, 8),
    mlp_ratio=2.5,
    num_classes=0,
)
SIZES = pytest.mark.parametrize("sizes", [TINY, BASE_384, RECTANGLE], ids=["tiny", "base_384", "rectangle"])
GENERATIONS = pytest.mark.parametrize("generation", [SwinTransformer, SwinTransformerV2], ids=["v1", "v2"])


def on_meta(sizes: Dict[str, Any], generation: Type[SwinTransformer] = SwinTransformer) -> SwinTransformer:
    with torch.device("meta"):
        return generation(**sizes).eval()


def modules_of(unit: Unit) -> Dict[str, str]:
    """The modules that make up a unit, by the kinds of number that they have."""
    if unit.begins_block:
        return {"products": f"{unit.module}.attn", "norm": f"{unit.module}.norm1"}
    if unit.ends_block:
        block = unit.module.rpartition(".")[0]
        return {"products": f"{block}.mlp", "norm": f"{block}.norm2"}
    return {"products": unit.module}


@GENERATIONS
@SIZES
def test_macs_of_every_unit_are_half_the_flops_that_torch_counts(sizes, generation):
    flop_counter = pytest.importorskip("torch.utils.flop_counter")  # PyTorch 2.1 and later
    model = on_meta(sizes, generation)
    stride = model.patch_embed.proj.stride
    with flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, *(side * step for side, step in zip(model.patch_grid, stride)), device="meta"))
    counted = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    for unit in model.units:
        name = f"{generation.__name__}.{modules_of(unit)['products']}"
        assert 2 * unit.macs == counted.get(name, 0), unit.module
    assert 2 * sum(unit.macs for unit in model.units) == counter.get_total_flops() > 0


@pytest.mark.parametrize(
    "sizes",
    [TINY, RECTANGLE, dict(TINY, ape=True, qkv_bias=False, patch_norm=False)],
    ids=["tiny", "rectangle", "variant"],
)
@GENERATIONS
def test_parameters_of_every_unit_are_the_models(sizes, generation):
    model = on_meta(sizes, generation)
    for unit in model.units:
        found = sum(
            parameter.numel()
            for name in modules_of(unit).values()
            for parameter in model.get_submodule(name).parameters()
        )
        if unit.module == "patch_embed" and model.absolute_pos_embed is not None:
            found += model.absolute_pos_embed.numel()
        assert unit.parameters == found, unit.module
    assert sum(unit.parameters for unit in model.units) == sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize("name", named_configs())
def test_units_of_a_named_configuration_have_the_parameters_of_its_model(name):
    accelerator.select("cpu")
    config = get_config(name)
    with torch.device("meta"):
        model = build_pipeline(config)
    units = configured_units(config)
    assert list(units) == model.units
    assert sum(unit.parameters for unit in units) == sum(value.numel() for value in model.parameters())


@pytest.mark.parametrize(
    "name, macs",
    [
        ("SWIN_TINY", 4.5),
        ("SWIN_SMALL", 8.7),
        ("SWIN_BASE", 15.4),
        ("SWIN_BASE_384", 47.0),
        ("SWIN_LARGE_384_22K_FINETUNE_1K", 103.9),
    ],
)
def test_macs_are_the_papers(name, macs):
    total = sum(unit.macs for unit in configured_units(get_config(name)))
    assert total / 1e9 == pytest.approx(macs, rel=0.005)


@GENERATIONS
def test_units_begin_at_modules_of_the_model_in_the_order_of_execution(generation):
    model = on_meta(dict(RECTANGLE, num_classes=7), generation)
    order = []
    for unit in model.units:
        model.get_submodule(unit.module).register_forward_pre_hook(lambda *_, name=unit.module: order.append(name))
    model(torch.empty(1, 3, 32, 64, device="meta"))
    assert order == [unit.module for unit in model.units]


def test_units_of_a_small_model_are_as_computed_by_hand():
    layer = LayerShape(grid=(2, 2), channels=3, depth=1, heads=1, window=(2, 2), shift=(0, 0))
    units = swin_units([layer], patch_size=2, in_chans=1, num_classes=5, mlp_ratio=2.0)
    assert units == [
        Unit(
            "patch_embed", macs=4 * 4 * 3, normalised=12, parameters=4 * 3 + 3 + 6, kept=16 + 12, widest=12, output=12
        ),
        # four products of (4, 3) by (3, 3); scores (4, 3) by (3, 4) and their product with the values, alike
        Unit(
            "layers.0.blocks.0",
            macs=4 * 36 + 2 * 48,
            normalised=12,
            parameters=6 + 4 * 9 + 12 + 9,
            kept=6 * 12 + 16,
            widest=36,
            output=12,
        ),
        Unit(
            "layers.0.blocks.0.norm2",
            macs=2 * 4 * 18,
            normalised=12,
            parameters=6 + 18 + 6 + 18 + 3,
            kept=2 * 12 + 2 * 24,
            widest=24,
            output=12,
        ),
        Unit("norm", macs=0, normalised=12, parameters=6, kept=12, widest=12, output=3),
        Unit("head", macs=15, normalised=0, parameters=20, kept=3 + 10, widest=5, output=5),
    ]


def kept_by_autograd(model: SwinTransformer, images: torch.Tensor) -> int:
    """Elements in what autograd saves for the backward pass of a cross entropy, weights and tables left out."""
    constants = {value.untyped_storage().data_ptr() for value in [*model.parameters(), *model.buffers()]}
    saved: Dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in constants:
            saved[storage.data_ptr()] = storage.nbytes() // 4  # everything is float32
        return tensor

    targets = torch.full((len(images), model.num_classes), 1 / model.num_classes)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = (-targets * functional.log_softmax(model(images), dim=-1)).sum()  # holds all that was saved, for a while
    return sum(saved.values()) if loss.requires_grad else 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(window_size=2),
        dict(window_size=8),
        dict(mlp_ratio=1.0),
        dict(patch_norm=False),
        dict(depths=[1, 5]),
        dict(num_classes=2000),
    ],
    ids=str,
)
def test_what_units_keep_is_what_autograd_saves_to_two_percent(changes):
    sizes = dict(
        dict(
            img_size=64,
            patch_size=4,
            embed_dim=96,
            depths=[2, 2],
            num_heads=[3, 6],
            window_size=4,
            num_classes=10,
            drop_path_rate=0.2,
        ),
        **changes,
    )
    model = SwinTransformer(**sizes).train()
    batch = 2
    found = kept_by_autograd(model, torch.randn(batch, 3, 64, 64))
    assert batch * sum(unit.kept for unit in model.units) == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("changes", [{}, dict(window_size=2), dict(window_size=8), dict(depths=[1, 5])], ids=str)
def test_what_units_of_swin_v2_keep_for_one_image_is_what_autograd_saves_to_two_percent(changes):
    sizes = dict(img_size=64, embed_dim=96, depths=[2, 2], num_heads=[3, 6], window_size=4, num_classes=10)
    model = SwinTransformerV2(**{**sizes, **changes}, drop_path_rate=0.2).train()
    found = kept_by_autograd(model, torch.randn(1, 3, 64, 64))
    assert sum(unit.kept for unit in model.units) == pytest.approx(found, rel=0.02)


def test_largest_values_are_the_widest_that_units_compute():
    sizes = dict(TINY, img_size=64, window_size=8, depths=[1], num_heads=[12], num_classes=10)
    model, found = SwinTransformer(**sizes).eval(), {}
    block = model.layers[0].blocks[0]
    block.attn.qkv.register_forward_hook(lambda *args: found.update(qkv=args[-1].numel()))
    block.attn.attn_drop.register_forward_hook(lambda *args: found.update(scores=args[-1].numel()))
    block.mlp.fc1.register_forward_hook(lambda *args: found.update(hidden=args[-1].numel()))
    model(torch.randn(1, 3, 64, 64))
    widest = {unit.module: unit.widest for unit in model.units}
    assert widest["layers.0.blocks.0"] == max(found["qkv"], found["scores"]) == found["scores"]
    assert widest["layers.0.blocks.0.norm2"] == found["hidden"]
    assert [unit.widest for unit in swin_units(layer_shapes(64, 4, 96, [1], [3], 4), 4, 3, 10, 4.0)][1] == found["qkv"]
