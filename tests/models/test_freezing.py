# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""TRAIN.FREEZE: frozen weights get no update and no optimizer state, and mistaken patterns are refused."""

import pytest
import torch

from common.errors import EXIT_CHECKPOINT, Refusal
from config import get_config
from models.build import build_pipeline
from models.freezing import freeze
from tests.generated_runs import train, train_small

SMALL = ["MODEL.SWIN.DEPTHS", "[1, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2]", "MODEL.SWIN.EMBED_DIM", "4"]


def small_model(*opts):
    return build_pipeline(get_config("SWIN_TINY", [*SMALL, "IPU.LAYERS_PER_IPU", "[2]", *opts]), 3)


def frozen(what, *opts):
    model = small_model(*opts)
    freeze(model, what)
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


def test_names_modules_and_patterns_freeze_what_they_match():
    every = [name for name, _ in small_model().named_parameters()]
    assert frozen([]) == frozen(0) == []
    assert frozen(["norm.weight"]) == ["norm.weight"]
    assert frozen(["layers.0"]) == [name for name in every if name.startswith("layers.0.")]
    assert frozen(["*.bias", "head.weight"]) == [name for name in every if name.endswith(".bias") or "head." in name]


def test_number_freezes_the_embedding_and_the_layers_below():
    assert {name.split(".")[0] + name.split(".")[1] for name in frozen(1, "MODEL.SWIN.APE", "True") if "." in name} == {
        "patch_embedproj",
        "patch_embednorm",
        "layers0",
    }
    assert "absolute_pos_embed" in frozen(1, "MODEL.SWIN.APE", "True")


@pytest.mark.parametrize(
    "what, said",
    [
        (["layers.0", "layer.1"], r"TRAIN.FREEZE layer.1: no parameter .* \(did you mean layers.1\?\)"),
        (["*"], "leaves nothing to train"),
    ],
)
def test_what_cannot_be_meant_is_refused(what, said):
    with pytest.raises(Refusal, match=said):
        freeze(small_model(), what)


def test_frozen_weights_stay_and_have_no_state(tmp_path):
    begun, ended = (train(tmp_path / str(n), n, "TRAIN.FREEZE", "1") for n in (1, 3))
    for name, tensor in begun["model"].items():
        below = name.startswith(("patch_embed", "layers.0"))
        assert torch.equal(tensor, ended["model"][name]) == (below or "relative_position_index" in name), name
    assert not any(part in key for key in ended["optimizer"]["ipu_state"] for part in ("patch_embed", "layers.0"))
    with pytest.raises(Refusal, match="TRAIN.FREEZE was 1 when the checkpoint") as caught:
        train_small(tmp_path / "3", 4)
    assert caught.value.code == EXIT_CHECKPOINT
