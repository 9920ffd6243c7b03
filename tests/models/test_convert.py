# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Weights on their way out: nothing is lost on a round trip, and other programs compute what ours computes."""

import functools
import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from common.errors import EXIT_DATA, EXIT_RESOURCE, EXIT_USAGE, Refusal
from common.files import open_regular
from config import get_config
from dataset.transforms import build_transform
from models import convert, exporting, weight_files
from models.build import MODELS
from models.export_names import to_hugging_face, to_timm
from models.pretrained import load_pretrained
from models.weight_names import plain_names
from predict import main as predict
from tests.data_sets import write_folders
from validate import main as validate

HOST = ["--device", "cpu", "--num-workers", "0"]
CLASSES = ["ant", "bee", "cat", "dog", "eel"]
SIZES = dict(PATCH_SIZE=2, EMBED_DIM=8, DEPTHS=[2, 2], NUM_HEADS=[2, 4], WINDOW_SIZE=4)
TYPES = ("swin", "swinv2")
LOADS_SQUARES_ONLY = (1, 0, 30)  # timm up to this release


def configuration(kind: str, size: Any = 32, crop: bool = True, **changes: Any) -> Dict[str, Any]:
    """The tree of a tiny model's configuration, with some of its hyper-parameters changed."""
    swin = {**SIZES, **({"PRETRAINED_WINDOW_SIZES": [0, 0]} if kind == "swinv2" else {}), **changes}
    section = {"swin": "SWIN", "swinv2": "SWINV2"}[kind]
    model = {"TYPE": kind, "NUM_CLASSES": len(CLASSES), section: swin}
    data = {"IMG_SIZE": size, "MEAN": [0.5, 0.4, 0.3], "STD": [0.2, 0.25, 0.3]}
    return {"DATA": data, "MODEL": model, "TEST": {"CROP": crop}}


def made(folder: Path, kind: str, half: bool = False, **changes: Any) -> Path:
    """A file with a model of random weights, the text of its configuration and its classes, as our checkpoints have."""
    (folder / "tiny.yaml").write_text(yaml.safe_dump(configuration(kind, **changes)))
    config = get_config(str(folder / "tiny.yaml"))
    torch.manual_seed(0)
    model = MODELS[kind](config, len(CLASSES))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {name: tensor.half() if half else tensor for name, tensor in model.state_dict().items()}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    contents = {"model": state, "config": config.dump(), "classes": CLASSES, "optimizer": optimizer}
    torch.save(contents, folder / "best.pth")
    return folder / "best.pth"


def small(kind: str) -> Dict[str, Any]:
    """Changes that leave one layer: exporting graphs takes long."""
    return dict(DEPTHS=[2], NUM_HEADS=[2], **({"PRETRAINED_WINDOW_SIZES": [0]} if kind == "swinv2" else {}))


def test_averaged_weights_are_converted_on_request(tmp_path):
    path = made(tmp_path, "swin")
    contents = torch.load(path, weights_only=True)
    contents["ema"] = {name: torch.zeros_like(tensor) for name, tensor in contents["model"].items()}
    torch.save(contents, path)
    convert.main([str(path), str(tmp_path / "out.pth"), "--to", "microsoft", "--use-ema"])
    assert not torch.load(tmp_path / "out.pth", weights_only=True)["model"]["head.bias"].any()
    assert exporting.read(path, None).weights["head.bias"].any()


def images(*size: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 3, *(size or (32, 32)))


def logits(path: Path, cfg: Any = None) -> torch.Tensor:
    leaving = exporting.read(path, cfg)
    height, width = leaving.config.DATA.IMG_SIZE if isinstance(leaving.config.DATA.IMG_SIZE, list) else (32, 32)
    with torch.no_grad():
        return leaving.model(images(height, width))


def refused(*words: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        convert.main([str(word) for word in words])
    assert "\n" not in str(caught.value)
    return caught.value


def foreign(name: str) -> Any:
    """A package that only tests need."""
    return pytest.importorskip(name, reason=f"{name} is not installed: see requirements-test.txt")


@pytest.mark.parametrize("kind", TYPES)
def test_names_outward_are_the_inverse_of_those_inward(kind, tmp_path):
    weights = exporting.read(made(tmp_path, kind), None).weights
    for there in (to_timm(weights), to_hugging_face(weights, kind)):
        assert "head.weight" not in there
        back, _ = plain_names(there, lambda name, tensor: tensor)
        assert sorted(back) == sorted(weights)
        assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("target", ["microsoft", "timm", "huggingface", "safetensors"])
@pytest.mark.parametrize("kind", TYPES)
def test_round_trip_is_equal_to_the_bit(kind, target, half, tmp_path):
    source = made(tmp_path, kind, half)
    convert.main([str(source), str(tmp_path / "there"), "--to", target])
    convert.main(
        [str(tmp_path / "there"), str(tmp_path / "back"), "--to", "microsoft", "--cfg", str(tmp_path / "tiny.yaml")]
    )
    before, after = (torch.load(path, weights_only=True)["model"] for path in (source, tmp_path / "back"))
    assert list(before) == list(after)
    for name in before:
        assert before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("changes", [dict(), dict(size=[32, 64], WINDOW_SIZE=[4, 8]), dict(WINDOW_SIZE=16)])
@pytest.mark.parametrize("kind", TYPES)
def test_timm_opens_the_folder_and_gives_our_logits(kind, changes, tmp_path):
    source, folder = made(tmp_path, kind, **changes), tmp_path / "there"
    convert.main([str(source), str(folder), "--to", "timm"])
    if kind == "swin" and "size" in changes and tuple(map(int, timm.__version__.split(".")[:3])) <= LOADS_SQUARES_ONLY:
        pytest.skip("this timm takes the bias table of every rectangular window for a square's as it loads it")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert set(load_file(folder / "model.safetensors")) == set(model.state_dict())
    size = changes.get("size", [32, 32])
    with torch.no_grad():
        torch.testing.assert_close(model(images(*size)), logits(source), rtol=0, atol=1e-5)
    cfg = model.pretrained_cfg
    assert cfg["label_names"] == CLASSES and cfg["num_classes"] == 5
    assert (list(cfg["mean"]), list(cfg["std"])) == ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    data = timm.data.resolve_model_data_config(model)
    assert (data["crop_pct"], data["interpolation"], list(data["input_size"])) == (0.875, "bicubic", [3, *size])
    arguments = json.loads((folder / "config.json").read_text())["model_args"]
    name = json.loads((folder / "config.json").read_text())["architecture"]
    again = timm.create_model(
        name, num_classes=5, checkpoint_path=str(folder / "model.safetensors"), **arguments
    ).eval()
    with torch.no_grad():
        assert torch.equal(again(images(*size)), model(images(*size)))


@pytest.fixture(scope="module")
def transformers() -> Any:
    return foreign("transformers")


@pytest.mark.parametrize("changes", [dict(), dict(size=[32, 64], crop=False), dict(QKV_BIAS=False)])
@pytest.mark.parametrize("kind", TYPES)
def test_hugging_face_opens_the_folder_and_gives_our_logits(kind, changes, tmp_path, transformers):
    source, folder = made(tmp_path, kind, **changes), tmp_path / "there"
    convert.main([str(source), str(folder), "--to", "huggingface"])
    model, told = transformers.AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    size = changes.get("size", [32, 32])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images(*size)).logits, logits(source), rtol=0, atol=1e-5)
    assert model.config.id2label == dict(enumerate(CLASSES)) and model.config.label2id["cat"] == 2


def test_image_processor_of_the_folder_is_our_evaluation_transform(tmp_path, transformers):
    source, folder = made(tmp_path, "swin"), tmp_path / "there"
    convert.main([str(source), str(folder), "--to", "huggingface"])
    picture = (images(6, 4)[0].permute(1, 2, 0) * 60 + 128).clamp(0, 255).byte().numpy()
    picture = Image.fromarray(picture).resize((97, 61), Image.Resampling.BICUBIC)
    (theirs,) = transformers.AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
    ours = build_transform(exporting.read(source, None).config, training=False)(picture)
    assert (theirs - ours).abs().max() < 2.5 / 255 / 0.2


def test_absolute_position_embeddings_travel_to_hugging_face(tmp_path, transformers):
    source, folder = made(tmp_path, "swin", APE=True), tmp_path / "there"
    convert.main([str(source), str(folder), "--to", "huggingface"])
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images()).logits, logits(source), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Callable[[str], Tuple[Path, Path]]:
    """The path of a small model of a kind, and that of its graph, which is exported once and not to be changed."""

    @functools.lru_cache(maxsize=None)
    def export(kind: str) -> Tuple[Path, Path]:
        foreign("onnx"), foreign("onnxscript")
        source = made(tmp_path_factory.mktemp(kind), kind, **small(kind))
        convert.main([str(source), str(source.with_name("there.onnx")), "--to", "onnx"])
        return source, source.with_name("there.onnx")

    return export


@pytest.mark.parametrize("kind", TYPES)
def test_onnx_has_our_weights_and_gives_our_logits_for_any_batch(kind, exported):
    onnx, onnxruntime = foreign("onnx"), foreign("onnxruntime")
    source, path = exported(kind)
    session = onnxruntime.InferenceSession(str(path))
    for batch in (1, 3):
        (found,) = session.run(None, {"images": images()[:batch].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits(source)[:batch], rtol=0, atol=1e-5)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}
    weights = exporting.read(source, None).weights
    assert all(torch.equal(torch.from_numpy(stored[name].copy()), tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("target", ["timm", "huggingface", "safetensors", "onnx"])
@pytest.mark.parametrize("kind", TYPES)
def test_weights_are_read_once_to_convert_and_then_to_predict_and_validate_without_a_configuration(
    kind, target, tmp_path, capsys, monkeypatch
):
    if target == "onnx":
        foreign("onnx"), foreign("onnxscript")
    source, there = made(tmp_path, kind, **(small(kind) if target == "onnx" else {})), tmp_path / "there"
    write_folders(tmp_path / "data", {"validation": dict.fromkeys(CLASSES, 2)})
    picture = next((tmp_path / "data" / "validation" / "ant").iterdir())
    said, opened = [], []
    monkeypatch.setattr(weight_files, "open_regular", lambda path: opened.append(path) or open_regular(path))
    convert.main([str(source), str(there), "--to", target])
    assert opened == [source]
    for path in (source, there):
        opened.clear()
        capsys.readouterr()
        validate([*HOST, "--data-path", str(tmp_path / "data"), "--checkpoint", str(path)])
        predict([*HOST, "--checkpoint", str(path), str(picture)])
        lines = capsys.readouterr().out.splitlines()
        said.append([line.split(" INFO ")[-1] for line in lines if "top-1" in line or picture.name in line])
    assert len(said[0]) == 2 and said[0] == said[1] and len(opened) == 2  # once a command
    assert any(name in said[1][-1] for name in CLASSES)


@pytest.mark.parametrize("kind", TYPES)
def test_onnx_comes_back_equal_to_the_bit(kind, exported, tmp_path):
    (source, there), back = exported(kind), tmp_path / "back"
    convert.main([str(there), str(back), "--to", "safetensors"])
    ours, returned = exporting.read(source, None), exporting.read(back, None)
    assert returned.classes == CLASSES and returned.config == ours.config
    assert list(returned.weights) == list(ours.weights)
    assert all(torch.equal(returned.weights[name], tensor) for name, tensor in ours.weights.items())


def test_damaged_onnx_is_refused(exported, tmp_path):
    onnx = foreign("onnx")
    path, there = exported("swin")[1], tmp_path / "there.onnx"
    content, model = path.read_bytes(), onnx.load(str(path))
    model.graph.initializer[0].dims[0] += 1
    other_shape = model.SerializeToString()
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    elsewhere = model.SerializeToString()
    damages = [content[: len(content) // 2], content[:3] + b"\xff" * 8 + content[11:], other_shape, elsewhere]
    for damaged in damages:
        there.write_bytes(damaged)
        assert refused(there, tmp_path / "back", "--to", "safetensors").code == EXIT_DATA
        assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("target", ["microsoft", "timm", "huggingface", "safetensors", "onnx"])
@pytest.mark.parametrize("kind", TYPES)
def test_predict_and_pretrained_take_every_format_whatever_its_name(kind, target, exported, tmp_path, capsys):
    there = tmp_path / "x.tmp"
    if target == "onnx":
        source, graph = exported(kind)
        shutil.copy(graph, there)
    else:
        source = made(tmp_path, kind)
        convert.main([str(source), str(there), "--to", target])
    cfg = source.with_name("tiny.yaml")
    model = MODELS[kind](get_config(str(cfg)), 7)
    report = load_pretrained(model, there)
    assert report.missing == ["head.weight", "head.bias"] and not report.unexpected
    Image.new("RGB", (40, 40), (200, 30, 90)).save(tmp_path / "red.png")
    capsys.readouterr()
    predict(
        [
            "--cfg",
            str(cfg),
            "--device",
            "cpu",
            "--num-workers",
            "0",
            "--checkpoint",
            str(there),
            str(tmp_path / "red.png"),
        ]
    )
    line = [line for line in capsys.readouterr().out.splitlines() if "red.png" in line][-1]
    picture = build_transform(get_config(str(cfg)), training=False)(Image.open(tmp_path / "red.png"))
    with torch.no_grad():
        label = int(exporting.read(source, None).model(picture[None]).argmax())
    assert f"red.png: {label} " in line


def test_onnx_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None)
    assert "pip install onnx" in str(refused(made(tmp_path, "swin"), tmp_path / "there", "--to", "onnx"))
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("target", ["timm", "huggingface"])
def test_validate_says_of_a_folder_what_it_says_of_the_checkpoint(target, tmp_path, capsys):
    source, there, cfg = made(tmp_path, "swinv2"), tmp_path / "there", tmp_path / "tiny.yaml"
    convert.main([str(source), str(there), "--to", target])
    write_folders(tmp_path / "data", {"train": dict.fromkeys(CLASSES, 1), "validation": dict.fromkeys(CLASSES, 2)})
    torch.save({"model": torch.load(source, weights_only=True)["model"]}, tmp_path / "plain.pth")
    flags = ["--cfg", str(cfg), "--device", "cpu", "--num-workers", "0", "--data-path", str(tmp_path / "data")]
    said = []
    for weights in (tmp_path / "plain.pth", there):
        capsys.readouterr()
        validate([*flags, "--checkpoint", str(weights)])
        said.append(capsys.readouterr().out.splitlines()[-1].partition("validation: ")[2])
    assert said[0] == said[1] and "images: 10" in said[0]


REFUSED = [
    ("timm", "swin", dict(APE=True), "APE"),
    ("timm", "swinv2", dict(PATCH_NORM=False), "PATCH_NORM"),
    ("timm", "swin", dict(QK_SCALE=0.5), "QK_SCALE"),
    ("timm", "swin", dict(size=[32, 64], WINDOW_SIZE=16), "layer 0 has windows of 16x16, shifted by 0x0"),
    ("huggingface", "swin", dict(PATCH_NORM=False), "PATCH_NORM"),
    ("huggingface", "swin", dict(QK_SCALE=0.5), "QK_SCALE"),
    (
        "huggingface",
        "swin",
        dict(WINDOW_SIZE=16),
        "layer 1 has windows of 8x8, shifted by 0x0, where it would have 16x16",
    ),
    ("huggingface", "swinv2", dict(APE=True), "APE"),
    ("huggingface", "swinv2", dict(size=[32, 64], WINDOW_SIZE=[4, 8], crop=False), "squares"),
    ("huggingface", "swinv2", dict(size=[64, 32], WINDOW_SIZE=16, crop=False), "layer 0"),
    ("huggingface", "swin", dict(size=[32, 64]), "crop squares only"),
    ("microsoft", "swin", dict(size=[32, 64], WINDOW_SIZE=[4, 8]), "squares"),
]


@pytest.mark.parametrize("target, kind, changes, words", REFUSED)
def test_a_model_that_a_format_cannot_hold_is_refused_with_the_reason(target, kind, changes, words, tmp_path):
    error = refused(made(tmp_path, kind, **changes), tmp_path / "there", "--to", target)
    assert error.code == EXIT_USAGE and words in str(error) and f"--to {target}" in str(error)
    assert sorted(os.listdir(tmp_path)) == ["best.pth", "tiny.yaml"]


def test_a_window_clamped_to_the_map_does_fail_in_hugging_faces_first_generation(tmp_path, transformers, monkeypatch):
    monkeypatch.setattr(exporting, "check_fits", lambda *_: None)
    monkeypatch.setattr("models.hub_folders.stated_window", lambda *_: 16)
    source, folder = made(tmp_path, "swin", WINDOW_SIZE=16), tmp_path / "there"
    convert.main([str(source), str(folder), "--to", "huggingface"])
    with pytest.raises(RuntimeError, match="size"):
        transformers.AutoModelForImageClassification.from_pretrained(folder)(images())


def test_weights_of_the_other_generation_are_refused(tmp_path):
    source = made(tmp_path, "swinv2")
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(configuration("swin")))
    error = refused(source, tmp_path / "there", "--to", "timm", "--cfg", tmp_path / "first.yaml")
    assert error.code == EXIT_DATA and "MODEL.TYPE" in str(error)


def test_nothing_is_overwritten(tmp_path):
    source = made(tmp_path, "swin")
    before = source.read_bytes()
    assert "exists already" in str(refused(source, source, "--to", "microsoft"))
    assert source.read_bytes() == before


@pytest.mark.parametrize("target", ["microsoft", "timm", "huggingface", "safetensors"])
def test_file_that_cannot_be_written_to_its_end_is_refused_and_leaves_nothing(target, tmp_path):
    source = made(tmp_path, "swin")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # as a full disk, but for the number of the error
    try:
        error = refused(source, tmp_path / "there", "--to", target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.code == EXIT_RESOURCE and "cannot be written: File too large" in str(error)
    assert sorted(os.listdir(tmp_path)) == ["best.pth", "tiny.yaml"]


def test_weights_without_a_configuration_need_one(tmp_path):
    torch.save(torch.load(made(tmp_path, "swin"), weights_only=True)["model"], tmp_path / "plain.pth")
    assert "--cfg" in str(refused(tmp_path / "plain.pth", tmp_path / "there", "--to", "timm"))
    assert "the file does not exist" in str(refused(tmp_path / "none.pth", tmp_path / "there", "--to", "timm"))
    (tmp_path / "folder").mkdir()
    assert "has no model.safetensors" in str(refused(tmp_path / "folder", tmp_path / "there", "--to", "timm"))


def test_state_of_the_optimizer_stays_behind_unless_asked_for(tmp_path):
    source = made(tmp_path, "swin")
    convert.main([str(source), str(tmp_path / "without"), "--to", "microsoft"])
    convert.main([str(source), str(tmp_path / "with"), "--to", "microsoft", "--optimizer"])
    without, there, before = (
        torch.load(tmp_path / name, weights_only=True) for name in ("without", "with", "best.pth")
    )
    assert list(without) == ["model"]
    assert torch.equal(there["optimizer"]["state"][0].pop("exp_avg"), before["optimizer"]["state"][0].pop("exp_avg"))
    assert there["optimizer"] == before["optimizer"]
    assert "cannot hold optimizer state" in str(refused(source, tmp_path / "there", "--to", "timm", "--optimizer"))
    assert "no known optimizer state" in str(
        refused(
            tmp_path / "without",
            tmp_path / "there",
            "--to",
            "microsoft",
            "--optimizer",
            "--cfg",
            tmp_path / "tiny.yaml",
        )
    )


def test_safetensors_keep_configuration_and_classes(tmp_path):
    source = made(tmp_path, "swin")
    convert.main([str(source), str(tmp_path / "weights.safetensors"), "--to", "safetensors"])
    leaving = exporting.read(tmp_path / "weights.safetensors", None)
    assert leaving.classes == CLASSES and leaving.config.MODEL.SWIN.WINDOW_SIZE == 4
