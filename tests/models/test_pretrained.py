# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Weights from elsewhere: what is fitted, what is refused, and that a refusal changes nothing."""

import hashlib
import io
import logging
import os
import pickle
import re
import zipfile
from typing import Any, Dict

import pytest
import timm
import torch
from timm.models.swin_transformer import checkpoint_filter_fn
from torch.nn import functional

from common.errors import EXIT_DATA, Refusal
from models.pretrained import Wanted, classes_of_22k, load_pretrained, official_names
from models.pretrained_sizes import Sizes
from models.swin_transformer import SwinTransformer

SMALL = dict(img_size=32, patch_size=2, num_classes=5, embed_dim=8, depths=(2, 2), num_heads=(2, 4), window_size=4)


def small(seed: int = 0, **changes: Any) -> SwinTransformer:
    torch.manual_seed(seed)
    return SwinTransformer(**dict(SMALL, **changes)).eval()


def official(model: SwinTransformer) -> Dict[str, torch.Tensor]:
    """The state dict as official files have it: with the buffers."""
    return dict(model.state_dict(), **dict(model.named_buffers()))


def assert_taken(model: SwinTransformer, source: SwinTransformer, but: tuple = ()) -> None:
    """Every tensor of the source is in the model, but those whose names end so."""
    for name, tensor in source.state_dict().items():
        if not name.endswith(but):
            assert torch.equal(model.state_dict()[name], tensor), name


def refusal(model: SwinTransformer, path, **arguments: Any) -> str:
    """The message with which weights are refused, once it is sure that the model did not change."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Refusal) as caught:
        load_pretrained(model, path, **arguments)
    assert caught.value.code == EXIT_DATA
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return str(caught.value)


CONTAINERS = {
    "official": lambda state: {"model": state},
    "plain": lambda state: state,
    "our checkpoint": lambda state: {"format": 1, "model": state, "optimizer": {}, "config": "SEED: 0"},
    "data parallel": lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    "timm trainer": lambda state: {"state_dict": state, "epoch": 3},
}


@pytest.mark.parametrize("container", list(CONTAINERS))
def test_weights_load_from_every_known_container(container, tmp_path):
    source, model = small(), small(1)
    torch.save(CONTAINERS[container](official(source)), tmp_path / "weights.pth")
    report = load_pretrained(model, tmp_path / "weights.pth")
    assert_taken(model, source)
    assert report.matched == len(source.state_dict()) and not report.missing and not report.unexpected


@pytest.mark.parametrize(
    "averaged, said",
    [(False, "(state_dict; averaged ones are in state_dict_ema: --use-ema)"), (True, "(state_dict_ema)")],
)
def test_log_says_which_of_the_weights_and_averaged_weights_of_a_file_are_used(averaged, said, tmp_path, caplog):
    state = official(small())
    torch.save({"state_dict": state, "state_dict_ema": state}, tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO, logger="swin"):
        load_pretrained(small(1), tmp_path / "weights.pth", wanted=Wanted(averaged=averaged))
    assert f"weights.pth {said}: " in caplog.text


def test_timms_weights_load_and_give_timms_logits(tmp_path):
    torch.manual_seed(0)
    peer = timm.models.swin_transformer.SwinTransformer(**SMALL).eval()
    torch.save(peer.state_dict(), tmp_path / "timm.pth")
    model = small(1)
    load_pretrained(model, tmp_path / "timm.pth")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), peer(images))


def test_our_checkpoints_load_into_timms_model_and_give_our_logits(tmp_path):
    model = small().eval()
    torch.save(CONTAINERS["our checkpoint"](model.state_dict()), tmp_path / "best.pth")
    peer = timm.models.swin_transformer.SwinTransformer(**SMALL).eval()
    timm.models.load_checkpoint(peer, str(tmp_path / "best.pth"), filter_fn=checkpoint_filter_fn)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(peer(images), model(images))


def test_official_names_stay_as_they_are():
    names = list(small().state_dict())
    assert list(official_names({name: torch.empty(0) for name in names})) == names


def test_position_tables_are_resized_head_by_head_when_the_window_changes(tmp_path):
    source, model = small(), small(1, img_size=48, window_size=6)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter))
    torch.save({"model": official(source)}, tmp_path / "weights.pth")
    report = load_pretrained(model, tmp_path / "weights.pth")
    name = "layers.1.blocks.0.attn.relative_position_bias_table"
    old, new = source.state_dict()[name], model.state_dict()[name]
    for head in range(4):
        expected = functional.interpolate(old[:, head].view(1, 1, 7, 7), size=(11, 11), mode="bicubic")
        torch.testing.assert_close(new[:, head].view(1, 1, 11, 11), expected)
    assert len(report.resized) == 4
    assert_taken(model, source, but=("relative_position_bias_table",))


def test_position_tables_fit_rectangular_windows(tmp_path):
    model = small(1, img_size=(32, 64), window_size=(4, 8))
    torch.save(small().state_dict(), tmp_path / "weights.pth")
    load_pretrained(model, tmp_path / "weights.pth")
    table = model.layers[0].blocks[0].attn.relative_position_bias_table
    old = small().layers[0].blocks[0].attn.relative_position_bias_table
    expected = functional.interpolate(old[:, 1].view(1, 1, 7, 7), size=(7, 15), mode="bicubic").flatten()
    torch.testing.assert_close(table[:, 1], expected)


def test_absolute_position_embedding_is_resized_when_the_image_changes(tmp_path):
    source, model = small(ape=True), small(1, ape=True, img_size=(32, 64))
    torch.save({"model": official(source)}, tmp_path / "weights.pth")
    told = Wanted(sizes=Sizes(image=32))
    report = load_pretrained(model, tmp_path / "weights.pth", wanted=told)
    old = source.absolute_pos_embed.view(1, 16, 16, 8).permute(0, 3, 1, 2)
    expected = functional.interpolate(old, size=(16, 32), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 512, 8)
    torch.testing.assert_close(model.absolute_pos_embed, expected)
    assert report.resized == ["absolute_pos_embed"]


def test_class_map_is_the_official_one():
    indices = classes_of_22k()
    text = "".join(f"{index}\n" for index in indices)
    expected = "844b5d131d31b69f63786a69144e749bfe08eaa52e8de8057831c7edb4402e04"
    assert hashlib.sha256(text.encode()).hexdigest() == expected
    assert len(set(indices)) == 1000 and indices[850] == 5564


def test_head_of_imagenet_22k_is_mapped_to_imagenet_1k(tmp_path):
    source, model = small(num_classes=21841), small(1, num_classes=1000)
    torch.save({"model": official(source)}, tmp_path / "weights.pth")
    report = load_pretrained(model, tmp_path / "weights.pth", new_head=False)
    indices = classes_of_22k()
    assert torch.equal(model.head.weight, source.head.weight[indices])
    assert torch.equal(model.head.bias, source.head.bias[indices])
    assert "mapped" in report.head
    assert_taken(model, source, but=("head.weight", "head.bias"))


def test_head_of_another_class_count_starts_from_zero_and_the_log_says_so(tmp_path, caplog):
    source, model = small(num_classes=7), small(1)
    torch.save({"model": official(source)}, tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO, logger="swin"):
        report = load_pretrained(model, tmp_path / "weights.pth")
    assert (model.head.weight == 0).all() and (model.head.bias == 0).all()
    assert report.missing == ["head.weight", "head.bias"]
    assert "7 classes" in caplog.text and "head of 5 classes is reset" in caplog.text
    assert_taken(model, source, but=("head.weight", "head.bias"))


def test_head_of_another_class_count_is_refused_where_no_new_one_is_wanted(tmp_path):
    torch.save({"model": official(small(num_classes=7))}, tmp_path / "weights.pth")
    assert "7 classes, expected 5" in refusal(small(1), tmp_path / "weights.pth", new_head=False)


def test_features_without_a_head_serve_a_model_with_one_and_the_other_way_round(tmp_path):
    features, classifier = small(num_classes=0), small()
    torch.save(features.state_dict(), tmp_path / "features.pth")
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    with_head, without = small(1), small(1, num_classes=0)
    load_pretrained(with_head, tmp_path / "features.pth")
    load_pretrained(without, tmp_path / "classifier.pth")
    assert_taken(with_head, features)
    assert_taken(classifier, without)


def test_weights_take_the_precision_of_the_model(tmp_path):
    torch.save(small().half().state_dict(), tmp_path / "weights.pth")
    model = small(1)
    load_pretrained(model, tmp_path / "weights.pth")
    assert model.norm.weight.dtype == torch.float32
    assert_taken(model.half(), small().half())


def test_extra_tensors_that_are_no_part_of_the_model_are_reported(tmp_path):
    torch.save(dict(small().state_dict(), **{"norm0.weight": torch.ones(8)}), tmp_path / "weights.pth")
    assert load_pretrained(small(1), tmp_path / "weights.pth").unexpected == ["norm0.weight"]


@pytest.mark.parametrize(
    "other, words",
    [
        (dict(embed_dim=16), r"patch_embed.proj.weight is 16x3x2x2, not 8x3x2x2"),
        (dict(depths=(2, 3)), r"layers.1.blocks.2.norm1.weight 16 is not in the model"),
        (dict(depths=(2, 1)), r"layers.1.blocks.1.norm1.weight is missing"),
        (dict(num_heads=(4, 8)), r"bias_table is 49x4, not 49x2"),
        (dict(qkv_bias=False), r"qkv.bias is missing"),
        (dict(ape=True), r"absolute_pos_embed 1x256x8 is not in the model"),
        (dict(patch_size=4, img_size=64), r"patch_embed.proj.weight is 8x3x4x4, not 8x3x2x2"),
    ],
)
def test_another_architecture_is_refused_with_keys_and_shapes(other, words, tmp_path):
    torch.save({"model": official(small(**other))}, tmp_path / "weights.pth")
    message = refusal(small(1), tmp_path / "weights.pth")
    assert "another architecture" in message
    assert re.search(words, message), message


def test_another_programs_model_is_refused_with_its_first_keys(tmp_path):
    torch.save({"model": {"conv1.weight": torch.zeros(64, 3, 7, 7)}}, tmp_path / "resnet.pth")
    assert "conv1.weight 64x3x7x7" in refusal(small(), tmp_path / "resnet.pth")


def test_table_that_is_not_square_is_refused(tmp_path):
    state = small().state_dict()
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    state[name] = state[name][:-1]
    torch.save(state, tmp_path / "weights.pth")
    assert "48 rows" in refusal(small(1), tmp_path / "weights.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    state = small().state_dict()
    state["layers.1.blocks.0.mlp.fc1.weight"][3, 2] = value
    torch.save(state, tmp_path / "weights.pth")
    assert "layers.1.blocks.0.mlp.fc1.weight is not finite" in refusal(small(1), tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "contents",
    [
        [1, 2],
        {},
        {"model": {}},
        {"model": {"norm.weight": 3}},
        {3: torch.ones(1)},
        {"norm.weight": torch.eye(3).to_sparse()},
    ],
)
def test_files_without_plain_tensors_by_name_are_refused(contents, tmp_path):
    torch.save(contents, tmp_path / "weights.pth")
    refusal(small(), tmp_path / "weights.pth")


def test_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path):
    state = dict(small().state_dict(), **{"absolute_pos_embed": torch.zeros(1).expand(1 << 40)})
    torch.save(state, tmp_path / "weights.pth")
    assert "absolute_pos_embed claims to be 1099511627776, more than" in refusal(small(), tmp_path / "weights.pth")


@pytest.mark.parametrize("contents", [b"", b"<html>not found</html>", b"PK\x03\x04 and no more"])
def test_files_that_torch_did_not_write_are_refused(contents, tmp_path):
    (tmp_path / "weights.pth").write_bytes(contents)
    refusal(small(), tmp_path / "weights.pth")


def test_missing_file_is_refused(tmp_path):
    refusal(small(), tmp_path / "nowhere.pth")


class Payload:
    """Runs a command when unpickled."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_beside_the_weights_is_never_run(zipped, tmp_path):
    marker, source, model = tmp_path / "ran", small(), small(1)
    state = {"model": source.state_dict(), "extra": Payload(f"touch {marker}")}
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    load_pretrained(model, tmp_path / "weights.pth")
    assert_taken(model, source)
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_the_place_of_a_tensor_is_never_run_and_named(zipped, tmp_path):
    marker = tmp_path / "ran"
    state = dict(small().state_dict(), **{"norm.weight": Payload(f"touch {marker}")})
    torch.save(state, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    assert "norm.weight is a posix.system" in refusal(small(1), tmp_path / "weights.pth")
    assert not marker.exists()


def test_formats_before_pytorch_1_6_are_read(tmp_path):
    source, model = small(), small(1)
    state = {"model": official(source.half()), "optimizer": torch.optim.SGD(source.parameters(), 0.1).state_dict()}
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_pretrained(model, tmp_path / "old.pth")
    assert_taken(model.half(), source)


def test_pickle_that_torch_did_not_write_is_refused(tmp_path):
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"norm.weight": [1.0]}))
    assert "not written by torch.save" in refusal(small(1), tmp_path / "pickle.pth")


def test_compressed_archives_are_refused(tmp_path):
    plain = io.BytesIO()
    torch.save(small().state_dict(), plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "compressed" in refusal(small(1), tmp_path / "bomb.pth")
