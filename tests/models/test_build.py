# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The model that PopTorch compiles: its loss, precision, input and stages, for every named configuration."""

from typing import Any, List

import pytest
import torch
from poptorch_host.compiling.supported_ops import takes_operation
from torch import nn
from torch.nn import functional
from torchvision import transforms
from yacs.config import CfgNode

import accelerator
from common.errors import Refusal
from common.launch import Launch
from config import get_config, named_configs
from models import build
from models.build import build_pipeline
from models.swin_transformer import LayerNorm, SwinTransformer
from optimizer import build_optimizer
from options import inference_options, training_options
from tests.backend import DEVICE, host_only
from tests.operations import Recorder

SMALL = [
    "DATA.IMG_SIZE",
    "16",
    "DATA.BATCH_SIZE",
    "2",
    "MODEL.SWIN.PATCH_SIZE",
    "2",
    "MODEL.SWIN.EMBED_DIM",
    "8",
    "MODEL.SWIN.DEPTHS",
    "[2, 2]",
    "MODEL.SWIN.NUM_HEADS",
    "[2, 4]",
    "MODEL.SWIN.WINDOW_SIZE",
    "4",
    "MODEL.DROP_PATH_RATE",
    "0",
    "TRAIN.ACCUMULATION_STEPS",
    "2",
    "IPU.LAYERS_PER_IPU",
    "[4]",
    "IPU.REPLICAS",
    "1",
]
ALONE = Launch(0, 1, 1, 1)


@pytest.fixture(autouse=True)
def device():
    accelerator.select(DEVICE)


def configured(*opts: Any) -> CfgNode:
    return get_config("SWIN_TINY", SMALL + [str(value) for value in opts])


def built(*opts: Any, classes: int = 5) -> build.SwinClassifier:
    """A small model; the same weights for the same sizes."""
    torch.manual_seed(0)
    return build_pipeline(configured(*opts), classes)


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def probabilities(count: int = 2) -> torch.Tensor:
    return torch.softmax(torch.randn(count, 5, generator=torch.Generator().manual_seed(2)), -1)


@pytest.mark.parametrize("name", named_configs())
def test_every_named_configuration_builds_with_its_stages(name):
    config = get_config(name)
    with torch.device("meta"):
        model = build_pipeline(config)
    assert model.num_classes == (21841 if config.DATA.DATASET == "imagenet22K" else 1000)
    marked = repr(accelerator.poptorch().module_repr(model))
    assert marked.count("BeginBlock(") == len(config.IPU.LAYERS_PER_IPU) - 1  # the first stage needs no mark
    assert {parameter.dtype for parameter in model.parameters()} == {
        torch.float16 if config.MODEL.PRECISION == "16.16" else torch.float32
    }


def test_parameters_are_the_plain_models():
    model = built("MODEL.SWIN.APE", True, "MODEL.SWIN.QKV_BIAS", False)
    plain = SwinTransformer(
        img_size=16,
        patch_size=2,
        num_classes=5,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
        ape=True,
        qkv_bias=False,
    )
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in plain.state_dict().items()
    }


def test_settings_of_the_configuration_reach_the_model():
    model = built(
        "MODEL.DROP_PATH_RATE",
        0.3,
        "MODEL.DROP_RATE",
        0.1,
        "MODEL.ATTN_DROP_RATE",
        0.2,
        "MODEL.SWIN.MLP_RATIO",
        3.0,
        "MODEL.SWIN.QK_SCALE",
        0.7,
        "MODEL.SWIN.PATCH_NORM",
        False,
    )
    block = model.layers[1].blocks[1]
    assert block.drop_path.rate == pytest.approx(0.3)
    assert (model.pos_drop.p, block.mlp.drop.p, block.attn.proj_drop.p, block.attn.attn_drop.p) == (0.1, 0.1, 0.1, 0.2)
    assert block.mlp.fc1.out_features == 48
    assert block.attn.scale == 0.7
    assert model.patch_embed.norm is None


def test_without_targets_logits_come_alone():
    model = built()
    assert torch.equal(model(images()), model(images(), torch.tensor([0, 1]))[0])
    assert model(images()).shape == (2, 5)


def test_flipped_images_count_as_much_as_the_images_without_targets():
    model = built("TEST.FLIP", True)
    with Recorder() as recorder:
        logits = model(images())
    alone = [model(part, torch.tensor([0, 1]))[0] for part in (images(), images().flip(-1))]
    torch.testing.assert_close(logits, (alone[0] + alone[1]) / 2)
    assert not torch.allclose(logits, alone[0]) and not recorder.refused


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_class_indices_is_cross_entropy_with_label_smoothing(smoothing):
    labels = torch.tensor([3, 1])
    logits, loss = built("MODEL.LABEL_SMOOTHING", smoothing)(images(), labels)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, labels, label_smoothing=smoothing))


def test_loss_of_mixed_targets_is_cross_entropy_with_probabilities():
    logits, loss = built()(images(), probabilities())
    torch.testing.assert_close(loss, functional.cross_entropy(logits, probabilities()))


@pytest.mark.parametrize("targets", [torch.tensor([3, 1]), probabilities()], ids=["indices", "probabilities"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_runs_only_operations_that_poptorch_compiles(smoothing, targets):
    model = built("MODEL.LABEL_SMOOTHING", smoothing, "MODEL.DROP_PATH_RATE", 0.2)
    with Recorder() as recorder:
        model((images() * 50 + 128).byte(), targets)
    assert "aten::_log_softmax" in recorder.names
    assert not recorder.refused
    assert not takes_operation("aten::masked_select")  # what PyTorch's own label smoothing would need


def test_bytes_are_normalised_on_the_device_as_on_the_host():
    model = built("DATA.INPUT_DTYPE", "uint8").eval()
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    host = transforms.Normalize(model.pixel_mean.flatten().tolist(), model.pixel_std.flatten().tolist())
    assert torch.equal(model(pixels), model(host(pixels / 255)))


def test_pixel_statistics_are_not_saved_and_stay_in_float32():
    model = built("MODEL.PRECISION", "16.16")
    assert model.pixel_mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert model.pixel_std.dtype == torch.float32
    assert not [name for name in model.state_dict() if "pixel" in name]


def train(model: build.SwinClassifier, config: CfgNode, inputs: List[torch.Tensor], steps: int) -> List[float]:
    """Losses of some steps on one combined batch of two micro-batches."""
    optimizer = build_optimizer(config, model, ALONE)
    trainer = accelerator.poptorch().trainingModel(model.train(), training_options(config, ALONE), optimizer)
    losses = [trainer(*inputs)[1].item() / 2 for _ in range(steps)]  # the options ask for the sum of two
    trainer.destroy()
    return losses


NO_AUTOCAST = host_only("IPUs have no torch.autocast, and MODEL.PRECISION mix is refused there")


def autocast(*values):
    return pytest.param("mix", *values, marks=NO_AUTOCAST)


@pytest.mark.parametrize(
    "precision, dtype",
    [("16.16", torch.float16), ("16.32", torch.float32), ("32.32", torch.float32), autocast(torch.float32)],
)
def test_every_precision_trains_and_keeps_its_weights_type(precision, dtype):
    opts = ["MODEL.PRECISION", precision, "TRAIN.BASE_LR", 1.0]
    model, config = built(*opts), configured(*opts)
    batch = images(4).half() if precision.startswith("16") else images(4)
    losses = train(model, config, [batch, probabilities(4)], steps=6)
    plain = built()
    reference = plain(images(4), probabilities(4))[1].item()
    assert losses[0] == pytest.approx(reference, rel=5e-3)
    assert losses[-1] < losses[0] - 0.05
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("precision, casts", [("16.32", True), ("16.16", False), ("32.32", False), autocast(False)])
def test_norms_cast_their_weights_where_those_are_wider_than_activations(precision, casts):
    norms = [module for module in built("MODEL.PRECISION", precision).modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 1 + 2 * 4 + 1 + 1
    assert {isinstance(norm, LayerNorm) for norm in norms} == {casts}


@pytest.mark.parametrize("precision", ["16.16", "16.32", autocast()])
def test_evaluation_in_every_precision_is_close_to_float32(precision):
    config = configured("MODEL.PRECISION", precision)
    expected = built().eval()(images())
    validator = accelerator.poptorch().inferenceModel(
        built("MODEL.PRECISION", precision).eval(), inference_options(config, ALONE)
    )
    found = validator(images().half() if precision.startswith("16") else images())
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_stages_of_a_pipeline_compile_and_train():
    opts = ["IPU.LAYERS_PER_IPU", "[1.5, 2.5]", "IPU.MAPPING", "[0, 1, 2]", "TRAIN.ACCUMULATION_STEPS", 5]
    model, config = built(*opts), configured(*opts)
    optimizer = build_optimizer(config, model, ALONE)
    trainer = accelerator.poptorch().trainingModel(model, training_options(config, ALONE), optimizer)
    logits, loss = trainer(images(10), probabilities(10))
    assert logits.shape == (2, 5) and torch.isfinite(loss)


def test_marks_for_recomputation_are_the_configurations():
    for training, recompute, hooks in ((True, True, 4), (True, False, 0), (False, True, 0)):
        model = build_pipeline(configured("IPU.RECOMPUTATION", recompute), 5, training=training)
        assert sum(len(block._forward_hooks) for layer in model.layers for block in layer.blocks) == hooks


@NO_AUTOCAST
@pytest.mark.parametrize("supported, dtype", [(True, torch.bfloat16), (False, torch.float16)])
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_autocast_uses_bfloat16_but_on_gpus_that_lack_it(monkeypatch, supported, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    model = built("MODEL.PRECISION", "mix")
    assert model.autocast().fast_dtype == torch.bfloat16
    monkeypatch.setattr(accelerator, "selected", lambda: accelerator.Accelerator("gpu", None, None))
    assert model.autocast().fast_dtype == dtype


def test_autocast_is_refused_on_an_ipu(monkeypatch):
    monkeypatch.setattr(accelerator, "is_ipu", lambda: True)
    with pytest.raises(Refusal, match="mix"):
        built("MODEL.PRECISION", "mix")
