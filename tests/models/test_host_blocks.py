# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The blocks for CPUs give the numbers of the ordinary ones, keep less, and step aside where someone watches."""

from typing import Any, Dict, Tuple

import pytest
import torch
from torch import nn
from torch.nn import functional

import accelerator
from config import get_config
from models import host_blocks
from models.build import HostSwinClassifier, SwinClassifier, SwinV2Classifier, build_pipeline, fastest
from models.host_blocks import HostBlock, HostLayer
from models.swin_transformer import SwinTransformer
from tests.models.test_swin_transformer import SMALL, assert_same, images
from tests.operations import Recorder


class HostSwin(SwinTransformer):
    """Swin with blocks for CPUs."""

    layer_type = HostLayer


def pair_of(**changes: Any) -> Tuple[SwinTransformer, HostSwin]:
    """An ordinary model and one for CPUs with the same weights, all random, so that nothing cancels."""
    torch.manual_seed(0)
    sizes = {**SMALL, **changes}
    plain, host = SwinTransformer(**{**sizes, "use_checkpoint": False}), HostSwin(**sizes)
    for parameter in plain.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    host.load_state_dict(plain.state_dict())
    return plain, host


def gradients(model: nn.Module, batch: torch.Tensor) -> Dict[str, torch.Tensor]:
    """Logits under 'logits' and the gradient of every parameter, with the drop paths of one seed."""
    torch.manual_seed(5)
    logits = model(batch)
    functional.cross_entropy(logits.float(), torch.arange(len(batch)) % logits.shape[1]).backward()
    return {**{name: parameter.grad for name, parameter in model.named_parameters()}, "logits": logits.detach()}


@pytest.mark.parametrize("count, rate, recompute", [(1, 0.0, False), (5, 0.6, False), (5, 0.6, True), (3, 0.0, True)])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        dict(img_size=(24, 48), patch_size=(2, 4), window_size=(3, 6), depths=(3, 1), qkv_bias=False),
        dict(img_size=(16, 64), window_size=(8, 4)),  # shifted sideways only
        dict(img_size=16, embed_dim=96, num_heads=(3, 6)),
        dict(img_size=16, embed_dim=128, num_heads=(4, 8)),
        dict(img_size=16, embed_dim=192, num_heads=(6, 12), ape=True),
    ],
    ids=["small", "rectangular", "sideways", "tiny", "base", "large"],
)
def test_numbers_are_those_of_ordinary_blocks(sizes, count, rate, recompute, monkeypatch):
    monkeypatch.setattr(host_blocks, "CHUNK_BYTES", 70_000)  # several parts, the last one smaller
    plain, host = pair_of(drop_path_rate=rate, use_checkpoint=recompute, **sizes)
    batch = images(plain, count)
    assert_same(gradients(plain, batch), gradients(host, batch))
    with torch.no_grad():
        torch.testing.assert_close(host.eval()(batch), plain.eval()(batch), rtol=1e-5, atol=1e-5)


def test_bfloat16_is_as_near_to_float32_as_autocast_of_ordinary_blocks():
    plain, host = pair_of(embed_dim=32)
    batch, exact = images(plain, 4), gradients(pair_of(embed_dim=32)[0], images(plain, 4))

    def distance(model: nn.Module) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(model, batch)
        assert all(tensor.dtype == torch.float32 for name, tensor in found.items() if name != "logits")
        errors = torch.cat([(found[name] - exact[name]).flatten() for name in exact])
        return (errors.norm() / torch.cat([tensor.flatten() for tensor in exact.values()]).norm()).item()

    assert distance(host) <= 1.2 * distance(plain)


@pytest.mark.parametrize("recompute", [False, True])
def test_samples_that_are_dropped_are_not_computed(recompute, monkeypatch):
    _, host = pair_of(drop_path_rate=0.9, depths=(2,), num_heads=(2,), use_checkpoint=recompute)
    computed = []
    inner = host_blocks.MlpBranch.inner

    def recorded(*args: Any) -> torch.Tensor:
        computed.append(inner(*args))
        return computed[-1]

    monkeypatch.setattr(host_blocks.MlpBranch, "inner", recorded)
    torch.manual_seed(0)
    host(images(host, 40)).sum().backward()
    samples = sum(len(hidden) for hidden in computed) / 16**2  # tokens of a sample
    assert 40 < samples <= (1 + recompute) * (40 + 12)  # all of the first block, about 4 of the second


def test_stochastic_depth_keeps_expectation_and_moments():
    _, host = pair_of(drop_path_rate=0.25, depths=(2,), num_heads=(2,))
    block = host.layers[0].blocks[1]
    x = torch.randn(1, 16, 16, 8)
    torch.manual_seed(0)
    with torch.no_grad():
        added = (block.transform(x.expand(2000, -1, -1, -1)) - x)[:, 3, 3]
        whole = (block.eval().transform(x) - x)[0, 3, 3]
    torch.testing.assert_close(added.mean(0), whole, rtol=0.05, atol=1e-5)
    torch.testing.assert_close(added.var(0), whole.square() * 0.25 / 0.75, rtol=0.1, atol=1e-5)


def test_micro_batches_folded_by_vmap_give_the_gradients_of_a_loop():
    looped, folded = pair_of()[1], pair_of()[1]
    batches = torch.stack([images(looped), images(looped).flip(0) * 0.5, images(looped).neg()])
    torch.stack([looped(batch).square().mean() for batch in batches]).sum().backward()
    losses = torch.func.vmap(lambda batch: folded(batch).square().mean(), randomness="different")(batches)
    losses.sum().backward()
    assert_same(*({name: p.grad for name, p in model.named_parameters()} for model in (looped, folded)))


def test_micro_batches_folded_by_vmap_draw_their_own_drop_paths():
    _, host = pair_of(drop_path_rate=0.5, depths=(2,), num_heads=(2,))
    torch.manual_seed(0)
    batches = torch.randn(1, 4, 16, 16, 8).expand(8, -1, -1, -1, -1)
    found = torch.func.vmap(host.layers[0].blocks[1], randomness="different")(batches)
    assert len(found.flatten(1).unique(dim=0)) > 1


def kept_bytes(model: nn.Module, batch: torch.Tensor) -> int:
    """What the backward pass finds kept, without the weights."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: Dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(batch)
    assert logits.requires_grad
    return sum(kept.values())


def test_less_is_kept_for_the_backward_pass_and_little_with_recomputation():
    plain, host = pair_of(embed_dim=64)
    frugal = pair_of(embed_dim=64, use_checkpoint=True)[1]
    batch = images(plain, 4)
    assert kept_bytes(host, batch) < 0.6 * kept_bytes(plain, batch)
    assert kept_bytes(frugal, batch) < 0.25 * kept_bytes(plain, batch)


def test_frozen_weights_get_no_gradient_and_the_others_theirs():
    plain, host = pair_of()
    for model in (plain, host):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(("patch_embed", "layers.0.blocks.0", "layers.1.blocks.0.mlp")))
    batch = images(plain)
    found, expected = gradients(host, batch), gradients(plain, batch)
    assert [name for name in found if found[name] is None] == [name for name in expected if expected[name] is None]
    assert_same(*({name: t for name, t in tensors.items() if t is not None} for tensors in (expected, found)))


def test_hooks_on_parts_of_a_block_see_the_ordinary_block():
    plain, host = pair_of()
    seen = []
    host.layers[0].blocks[1].attn.proj.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    host(images(host, 2))
    assert seen == [(2, 16, 16, 8)]


def test_a_compiler_sees_only_operations_of_an_ipu():
    _, host = pair_of(drop_path_rate=0.2)
    with Recorder() as recorder:
        host(images(host))
    assert "aten::roll" in recorder.names and not recorder.refused


def test_dropout_is_refused():
    with pytest.raises(ValueError, match="dropout 0.1"):
        HostSwin(**SMALL, drop_rate=0.1)


@pytest.mark.parametrize(
    "name, opts, chosen",
    [
        ("SWIN_TINY", [], HostSwinClassifier),
        ("SWIN_TINY", ["MODEL.PRECISION", "mix"], HostSwinClassifier),
        ("SWIN_TINY", ["MODEL.PRECISION", "16.32"], SwinClassifier),
        ("SWIN_TINY", ["MODEL.ATTN_DROP_RATE", "0.1"], SwinClassifier),
        ("SWINV2_TINY_WINDOW8_256", [], SwinV2Classifier),
    ],
)
def test_blocks_are_chosen_by_precision_generation_and_dropout(name, opts, chosen):
    accelerator.select("cpu")
    assert fastest(get_config(name, opts)) is chosen


@pytest.mark.parametrize("name", ["SWIN_DEMO", "SWINV2_TINY_WINDOW8_256"])
@pytest.mark.parametrize("recompute", [False, True])
def test_use_checkpoint_reaches_the_blocks(name, recompute):
    accelerator.select("cpu")
    config = get_config(name, ["TRAIN.USE_CHECKPOINT", str(recompute), "IPU.LAYERS_PER_IPU", "auto"])
    with torch.device("meta"):
        layer = build_pipeline(config, 3).layers[0]
    found = layer.blocks[0].recompute if isinstance(layer.blocks[0], HostBlock) else layer.use_checkpoint
    assert found is recompute
