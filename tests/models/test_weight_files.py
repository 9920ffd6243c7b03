# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Files of weights as other programs write them: containers, names, formats; and hostile ones."""

import argparse
import io
import logging
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import Any, Callable, Dict

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from yacs.config import CfgNode

from common.errors import EXIT_DATA, Refusal
from models.pretrained import Wanted, load_pretrained
from models.pretrained_sizes import Sizes
from models.weight_files import BadFile, opened
from tests.models.test_pretrained import SMALL, assert_taken, official, refusal, small

Weights = Dict[str, torch.Tensor]


def to_hugging_face(weights: Weights, base: str = "swin.") -> Weights:
    """Official weights by Hugging Face's names, with query, key and value apart."""
    renamed = {}
    for name, tensor in weights.items():
        if name.startswith("head."):
            renamed[name.replace("head.", "classifier.")] = tensor
            continue
        for ours, theirs in (
            ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
            ("patch_embed.norm.", "embeddings.norm."),
            ("absolute_pos_embed", "embeddings.position_embeddings"),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
            (".attn.proj.", ".attention.output.dense."),
            (".attn.relative", ".attention.self.relative"),
            (".mlp.fc1.", ".intermediate.dense."),
            (".mlp.fc2.", ".output.dense."),
            ("norm.", "layernorm."),
        ):
            if name.startswith(theirs.partition(".")[0]) or (ours == "norm." and not name.startswith("norm.")):
                continue
            name = name.replace(ours, theirs)
        name = name.replace("layers.", "encoder.layers.", 1) if name.startswith("layers.") else name
        if ".attn.qkv." in name:
            for part, value in zip(("query", "key", "value"), tensor.chunk(3)):
                renamed[base + name.replace(".attn.qkv.", f".attention.self.{part}.")] = value.contiguous()
        else:
            renamed[base + name] = tensor
    return renamed


def to_timm(weights: Weights) -> Weights:
    """Official weights by timm's names since 0.9."""
    renamed = {}
    for name, tensor in weights.items():
        if ".downsample." in name:
            layer = int(name.split(".")[1])
            name = name.replace(f"layers.{layer}.", f"layers.{layer + 1}.")
        renamed[name.replace("head.", "head.fc.")] = tensor
    return renamed


def to_transformers_5(weights: Weights) -> Weights:
    """Official weights by the names that Hugging Face's models have in memory since transformers 5."""
    renamed = {}
    for name, tensor in to_hugging_face(weights).items():
        for theirs, ours in (
            (
                "attention.self.relative_position_bias_table",
                "attention.relative_position_bias.relative_position_bias_table",
            ),
            ("attention.self.query", "attention.q_proj"),
            ("attention.self.key", "attention.k_proj"),
            ("attention.self.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    return renamed


def to_torchvision(weights: Weights) -> Weights:
    """Official weights by torchvision's names, with the index of the bias tables in one row."""
    renamed = {}
    for name, tensor in weights.items():
        first, *rest = name.split(".")
        if first == "layers":
            layer, part, *rest = rest
            first = f"features.{2 * int(layer) + 1 + (part == 'downsample')}"
        name = (
            ".".join([first, *rest])
            .replace("patch_embed.proj", "features.0.0")
            .replace("patch_embed.norm", "features.0.2")
        )
        renamed[name.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")] = tensor
        if name.endswith("index"):
            renamed[name] = tensor.flatten()
    return renamed


def prefixed(weights: Weights, prefix: str, **others: torch.Tensor) -> Weights:
    return dict({f"{prefix}{name}": tensor for name, tensor in weights.items()}, **others)


def cfg_node() -> CfgNode:
    return CfgNode({"DATA": {"IMG_SIZE": 32}, "MODEL": {"SWIN": {"WINDOW_SIZE": 4}}, "AUG": {"CUTMIX_MINMAX": None}})


def saved(value: Any, path, zipped: bool = True) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)


# The layouts of published checkpoints and of the programs that people train with.
LAYOUTS: Dict[str, Callable[[Weights], Any]] = {
    "official main.py": lambda w: {"model": w, "config": cfg_node(), "epoch": 299, "max_accuracy": 81.2},
    "official release": lambda w: {"model": w},
    "official SimMIM": lambda w: {"model": prefixed(w, "encoder.", **{"decoder.0.weight": torch.ones(3, 3)})},
    "official MoBY": lambda w: {"model": {**prefixed(w, "encoder."), **prefixed(to_timm(w), "projector.")}},
    "timm trainer": lambda w: {
        "state_dict": to_timm(w),
        "args": argparse.Namespace(model="swin", lr=1e-3, mean=(0.5,)),
        "metric": np.float64(81.2),
    },
    "timm trainer, EMA": lambda w: {"state_dict": {}, "state_dict_ema": to_timm(w), "version": 2},
    "timm hub": to_timm,
    "Hugging Face": to_hugging_face,
    "Hugging Face, no classifier": lambda w: {
        name: tensor for name, tensor in to_hugging_face(w, "").items() if not name.startswith("classifier")
    },
    "Hugging Face, wrapped": lambda w: prefixed(to_hugging_face(w), "model."),
    "transformers 5, in memory": to_transformers_5,
    "torchvision": to_torchvision,
    "plain": lambda w: w,
    "OrderedDict with metadata": lambda w: OrderedDict(w),
    "DistributedDataParallel": lambda w: {"model_state_dict": prefixed(w, "module.")},
    "torch.compile": lambda w: {"model": prefixed(w, "_orig_mod.")},
    "compiled and distributed": lambda w: {"model": prefixed(w, "_orig_mod.module.")},
    "Lightning": lambda w: {"state_dict": prefixed(w, "model."), "hyper_parameters": argparse.Namespace(lr=1)},
    "mmcv": lambda w: {"state_dict": prefixed(w, "backbone."), "meta": {"config": "x", "time": np.int64(3)}},
    "net": lambda w: {"net": w, "acc": 0.5},
    "nested": lambda w: {"state": 1, "model": {"state_dict": w}},
    "ConvNeXt trainer": lambda w: {"model": w, "model_ema": {n: t + 1 for n, t in w.items()}, "scaler": {}},
    "torchvision reference": lambda w: {"model": w, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1)},
    "parameters": lambda w: {name: torch.nn.Parameter(t) if t.is_floating_point() else t for name, t in w.items()},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_published_layout_loads(layout, zipped, tmp_path):
    source, model = small(), small(1)
    saved(LAYOUTS[layout](official(source)), tmp_path / "weights.pth", zipped)
    report = load_pretrained(model, tmp_path / "weights.pth")
    assert_taken(model, source, but=("head.weight", "head.bias") if report.missing else ())
    assert not report.missing or layout == "Hugging Face, no classifier"


@pytest.mark.parametrize("names", [dict, to_timm, to_hugging_face])
def test_safetensors_load_whatever_their_name(names, tmp_path):
    source, model = small(), small(1)
    safetensors.torch.save_file(names(source.state_dict()), tmp_path / "weights.bin", {"format": "pt"})
    load_pretrained(model, tmp_path / "weights.bin")
    assert_taken(model, source)


def test_what_was_taken_is_said_in_one_line(tmp_path, caplog):
    saved({"state_dict": prefixed(official(small()), "module.backbone.")}, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, logger="swin"):
        load_pretrained(small(1), tmp_path / "w.pth")
    line = next(record.getMessage() for record in caplog.records)
    assert (
        f"(state_dict, names after module.backbone.): {len(small().state_dict())} tensors matched, 0 missing" in line
    ), line


def test_averaged_weights_are_taken_when_asked_for_and_only_then(tmp_path):
    source, model = small(), small(1)
    averaged = {name: tensor + 1 for name, tensor in source.state_dict().items()}
    saved({"state_dict": source.state_dict(), "state_dict_ema": averaged}, tmp_path / "w.pth")
    load_pretrained(model, tmp_path / "w.pth")
    assert_taken(model, source)
    load_pretrained(model, tmp_path / "w.pth", wanted=Wanted(averaged=True))
    assert torch.equal(model.norm.weight, source.norm.weight + 1)
    saved({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    assert "no averaged weights" in refusal(model, tmp_path / "w.pth", wanted=Wanted(averaged=True))


def test_names_are_checked_before_heads(tmp_path):
    saved(prefixed(official(small()), "strange."), tmp_path / "w.pth")
    message = refusal(small(1), tmp_path / "w.pth", new_head=False)
    assert "no Swin Transformer; it begins with strange.patch_embed.proj.weight" in message


def test_head_of_another_size_says_which_flag_to_set(tmp_path):
    saved(small(num_classes=7).state_dict(), tmp_path / "w.pth")
    assert "7 classes, expected 5: set --num-classes 7" in refusal(small(), tmp_path / "w.pth", new_head=False)
    saved(small(num_classes=0).state_dict(), tmp_path / "w.pth")
    assert "it has no head" in refusal(small(), tmp_path / "w.pth", new_head=False)


def test_torchscript_is_told_as_such(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pt")
    assert "TorchScript" in refusal(small(), tmp_path / "w.pt")


def test_model_that_was_saved_whole_is_told_by_its_class(tmp_path):
    for zipped in (True, False):
        saved(small(), tmp_path / "w.pth", zipped)
        assert "models.swin_transformer.SwinTransformer" in refusal(small(1), tmp_path / "w.pth")


def test_peers_of_the_family_are_told_by_name(tmp_path):
    peer = timm.models.swin_transformer_v2.SwinTransformerV2(**dict(SMALL, patch_size=2))
    saved(peer.state_dict(), tmp_path / "w.pth")
    assert "Swin Transformer V2" in refusal(small(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    "start, said",
    [
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        (b"", "empty"),
        (struct.pack("<Q", 20) + b"{" + bytes(40), "safetensors are damaged"),
    ],
)
def test_file_of_another_kind_is_told_by_its_contents(start, said, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(start)
    assert said in refusal(small(), tmp_path / "w.safetensors")


# Sizes that a file does not tell.


def test_embedding_of_another_image_with_as_many_rows_is_not_taken_as_it_is(tmp_path):
    source, model = small(ape=True, img_size=(16, 64)), small(1, ape=True)
    saved(source.state_dict(), tmp_path / "w.pth")
    assert "MODEL.PRETRAINED_IMG_SIZE" in refusal(model, tmp_path / "w.pth")
    report = load_pretrained(model, tmp_path / "w.pth", wanted=Wanted(sizes=Sizes(image=(16, 64))))
    assert report.resized == ["absolute_pos_embed"]
    assert "has 256 rows" in refusal(small(ape=True), tmp_path / "w.pth", wanted=Wanted(sizes=Sizes(image=64)))


def test_image_that_the_file_tells_is_known(tmp_path):
    source, model = small(ape=True), small(1, ape=True)
    saved({"model": source.state_dict(), "config": cfg_node()}, tmp_path / "w.pth")
    assert load_pretrained(model, tmp_path / "w.pth").resized == []
    assert_taken(model, source)
    told = (
        "DATA: {IMG_SIZE: [16, 64]}\nMODEL: {SWIN: {PATCH_SIZE: 2, WINDOW_SIZE: 4, DEPTHS: [2, 2], NUM_HEADS: [3, 6]}}"
    )
    told += "\nIPU: {LAYERS_PER_IPU: [4]}"
    saved({"model": small(ape=True, img_size=(16, 64)).state_dict(), "config": told}, tmp_path / "w.pth")
    assert load_pretrained(model, tmp_path / "w.pth").resized == ["absolute_pos_embed"]


def test_window_of_another_shape_with_as_many_rows_is_not_taken_as_it_is(tmp_path):
    source, model = small(window_size=(2, 4)), small(1, window_size=(4, 2))
    saved(source.state_dict(), tmp_path / "w.pth")
    assert "MODEL.PRETRAINED_WINDOW_SIZE" in refusal(model, tmp_path / "w.pth")
    for contents, wanted in (
        (official(source), Wanted()),
        (source.state_dict(), Wanted(sizes=Sizes(window=(2, 4)))),
    ):
        saved(contents, tmp_path / "w.pth")
        assert len(load_pretrained(model, tmp_path / "w.pth", wanted=wanted).resized) == 4


# Hostile files.


def zipped_pickle(path, data: bytes, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name, contents in members.items():
            archive.writestr(f"archive/{name}", contents)


def old_pickle(path, data: bytes) -> None:
    plain = io.BytesIO()
    torch.save({}, plain, _use_new_zipfile_serialization=False)
    start = plain.getvalue()
    headers = io.BytesIO(start)
    for _ in range(3):
        pickle.load(headers)
    path.write_bytes(start[: headers.tell()] + data + pickle.dumps([], 2))


NESTED_TUPLES = b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns."
SHARED_LISTS = b"\x80\x02]" + b"".join(b"q%c]h%ch%c\x86a" % (i, i, i) for i in range(200)) + b"."
HOSTILE = {
    "nested tuples as a key": NESTED_TUPLES,
    "lists within lists": SHARED_LISTS,
    "many instructions": b"\x80\x02" + b"]0" * 250_000 + b"N.",
    "a memo beyond memory": b"\x80\x02Nr\xff\xff\xff\xff.",
    "bytes that are not there": b"\x80\x04\x96" + struct.pack("<Q", 1 << 40) + b".",
    "text that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".",
    "extension registry": b"\x80\x02\x82\x01.",
    "empty stack": b"\x80\x02.",
    "pop without a mark": b"\x80\x021.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "no end": b"\x80\x02]",
    "getattr": b"\x80\x02cbuiltins\ngetattr\ncos\nX\x06\x00\x00\x00systemtR.",
    "a call of a call": b"\x80\x02cbuiltins\neval\n(X\x03\x00\x00\x001+1tR)R.",
    "instance": b"\x80\x00(S'echo'\nios\nsystem\n.",
    "a storage of no sound kind": b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nNNNtQ.",
}


@pytest.mark.parametrize("write", [zipped_pickle, old_pickle])
@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_pickle_is_refused_in_one_line(name, write, tmp_path):
    write(tmp_path / "w.pth", HOSTILE[name])
    refusal(small(), tmp_path / "w.pth")


def test_members_that_claim_more_than_the_file_has_are_refused(tmp_path):
    saved(small().state_dict(), tmp_path / "w.pth")
    data = bytearray((tmp_path / "w.pth").read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 1 << 30)  # the first member's size in the archive's directory
    (tmp_path / "w.pth").write_bytes(bytes(data))
    assert "state more bytes" in refusal(small(), tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_storage_smaller_than_its_tensor_is_refused(zipped, tmp_path):
    """A tensor is made over another's storage, which is a thousandth of it."""
    from_small = {"norm.weight": torch.zeros(16), "head.bias": torch.zeros(16000)}
    saved(from_small, tmp_path / "w.pth", zipped)
    data = (tmp_path / "w.pth").read_bytes()
    sizes = b"M\x80>\x85"  # the tuple (16000,)
    assert sizes in data
    if zipped:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(tmp_path / "w.pth", "w") as target:
            for name in archive.namelist():
                target.writestr(name, archive.read(name).replace(sizes, b"J\0\0\0\x40\x85"))
    else:
        (tmp_path / "w.pth").write_bytes(data.replace(sizes, b"J\0\0\0\x40\x85"))
    assert "head.bias claims to be 1073741824" in refusal(small(), tmp_path / "w.pth")


def test_flipped_bit_in_a_member_is_noticed(tmp_path):
    saved(small().state_dict(), tmp_path / "w.pth")
    data = bytearray((tmp_path / "w.pth").read_bytes())
    data[data.index(small().norm.bias.detach().numpy().tobytes())] ^= 1
    (tmp_path / "w.pth").write_bytes(bytes(data))
    assert "CRC" in refusal(small(), tmp_path / "w.pth")


def test_pipe_is_refused_and_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "w.pth")
    with pytest.raises(Refusal, match="not a regular file") as caught:
        load_pretrained(small(), tmp_path / "w.pth")
    assert caught.value.code == EXIT_DATA


def test_folder_without_a_file_of_weights_is_told_as_that(tmp_path):
    with pytest.raises(BadFile, match="folder without model.safetensors: name the file"):
        with opened(tmp_path):
            pass
