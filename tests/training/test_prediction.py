# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Predictions: names of classes, where images come from, and the files that are written."""

import csv
import io
import json
import os
import re
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import predict
import train_swin
from common.errors import EXIT_DATA, EXIT_RESOURCE, EXIT_USAGE, Refusal
from config import get_config
from models.build import build_pipeline
from models.inspection import InspectedClassifier
from tests.backend import DEVICE
from tests.data_sets import encoded, photo, write_folders
from tests.runs import SMALL
from training.overlays import overlay
from training.prediction import describe

CLASSES = ["<b>bold", 'comma, "quote"', "line\rbreak\n"]


def test_classes_are_named_by_words_where_they_are_those_of_imagenet():
    assert describe([], 1000)[0] == describe(["n01440764", "a"], 2)[0]
    assert describe(["n01440764", "a"], 3) == ["n01440764 (tench, Tinca tinca)", "a", "2"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint whose classes have odd names."""
    root = tmp_path_factory.mktemp("odd")
    write_folders(root, {"train": dict.fromkeys(CLASSES, 11), "validation": dict.fromkeys(CLASSES, 1)}, (20, 20))
    train_swin.main([*SMALL, "--epochs", "2", "--data-path", str(root), "--output", str(root / "out"), "--ga", "1"])
    return root / "out" / "best.pth"


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """The current folder, with four images at two depths, one of them damaged and one with an odd name."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a.jpg", "b, c.jpg", "in/d.png", "in/e.jpg")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(photo(seed), "PNG" if name.endswith("png") else "JPEG"))
    (tmp_path / "in" / "e.jpg").write_bytes(b"no picture")
    return tmp_path


def predicted(capfd, weights, *argv, code=None):
    """What predict.py prints; `code` is the exit code of its refusal, if it refuses."""
    command = ["--checkpoint", str(weights), "--device", DEVICE, *argv]
    if code is None:
        predict.main(command)
    else:
        with pytest.raises(Refusal) as caught:
            predict.main(command)
        assert caught.value.code == code and "\n" not in str(caught.value)
    return capfd.readouterr().out


def test_three_formats_say_the_same(weights, pictures, capfd):
    text = predicted(capfd, weights, "a.jpg", "b, c.jpg").splitlines()
    table = list(csv.DictReader(io.StringIO(predicted(capfd, weights, "--format", "csv", "a.jpg", "b, c.jpg"))))
    lines = predicted(capfd, weights, "--format", "jsonl", "a.jpg", "b, c.jpg").splitlines()
    assert len(text) == len(table) == len(lines) == 2
    for said, row, line in zip(text, table, map(json.loads, lines)):
        assert row["path"] == line["path"] and said.startswith(f"{row['path']}: ")
        assert [row[f"predicted_{rank}"] for rank in (1, 2, 3)] == [guess["class"] for guess in line["predictions"]]
        assert sorted(guess["class"] for guess in line["predictions"]) == sorted(CLASSES)
        shares = [guess["probability"] for guess in line["predictions"]]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert [float(row[f"probability_{rank}"]) for rank in (1, 2, 3)] == pytest.approx(shares, abs=1e-5)
        assert re.findall(r" ([\d.]+)%", said) == [f"{100 * share:.1f}" for share in shares]


def test_output_is_a_new_file_in_the_format_of_its_ending_and_complete_when_images_are_damaged(
    weights, pictures, capfd
):
    assert predicted(capfd, weights, "--output", "out.jsonl", "--top", "1", "in", code=EXIT_DATA) == ""
    (line,) = map(json.loads, (pictures / "out.jsonl").read_text().splitlines())
    assert line["path"] == "in/d.png" and len(line["predictions"]) == 1
    before = (pictures / "out.jsonl").read_bytes()
    predicted(capfd, weights, "--output", "out.jsonl", "a.jpg", code=EXIT_USAGE)
    assert (pictures / "out.jsonl").read_bytes() == before


def test_images_are_found_by_folders_patterns_and_lines_of_standard_input(weights, pictures, capfd, monkeypatch):
    def paths(*names, code=None):
        out = predicted(capfd, weights, "--format", "csv", "--top", "1", *names, code=code)
        return [row["path"] for row in csv.DictReader(io.StringIO(out))]

    assert paths("*.jpg") == ["a.jpg", "b, c.jpg"]
    assert paths("**/[a-d].*") == ["a.jpg", "in/d.png"]
    assert paths(".", code=EXIT_DATA) == ["./a.jpg", "./b, c.jpg", "./in/d.png"]
    listed = b"in/d.png\r\n\nmissing.jpg\na.jpg"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(listed)))
    assert paths("-", code=EXIT_DATA) == ["in/d.png", "a.jpg"]  # the missing one is counted


@pytest.mark.parametrize("name, said", [("*.gif", "matches no images"), ("-", "lists no images"), ("none", "is not a")])
def test_no_image_is_refused(name, said, weights, pictures, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\n")))
    with pytest.raises(Refusal, match=said) as caught:
        predict.main(["--checkpoint", str(weights), "--device", DEVICE, name])
    assert caught.value.code == EXIT_DATA


def test_folder_of_shards_is_refused_and_what_predicts_them_named(weights, pictures):
    (pictures / "shards.json").write_text("{}")
    with pytest.raises(Refusal, match="holds shards: validate.py --predictions FILE"):
        predict.main(["--checkpoint", str(weights), "--device", DEVICE, "."])


def test_results_that_cannot_be_made_are_refused_before_the_weights_are_read(pictures, monkeypatch):
    (pictures / "taken.npy").write_bytes(b"mine")
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.basename(str(path)) != "in")  # root may write all
    cases = (
        (["--features", "taken.npy"], "exists already", EXIT_USAGE),
        (["--features", "f.txt"], "must end in .npy", EXIT_USAGE),
        (["--features", "f.npy", "--output", "f.csv"], "two results", EXIT_USAGE),
        (["--attention", "in"], "exists already", EXIT_USAGE),
        (["--output", "none/a.csv"], "does not exist", EXIT_USAGE),
        (["--output", "in/a.csv"], "read-only", EXIT_RESOURCE),
    )
    for flags, said, code in cases:
        with pytest.raises(Refusal, match=said) as caught:
            predict.main(["--checkpoint", "no.pth", *flags, "a.jpg"])
        assert caught.value.code == code
    assert (pictures / "taken.npy").read_bytes() == b"mine"


def test_features_are_those_before_the_head_in_the_order_of_the_paths_beside_them(weights, pictures, capfd):
    for name, batch in (("one", "1"), ("many", "3")):
        flags = ["--features", f"{name}.npy", "--batch-size", batch, "--replicas", "1" if batch == "1" else "2"]
        out = predicted(capfd, weights, "--format", "jsonl", *flags, ".", code=EXIT_DATA)
    features = np.load(pictures / "many.npy")
    assert features.dtype == np.float32 and features.shape == (3, 32)
    np.testing.assert_allclose(np.load(pictures / "one.npy"), features, atol=1e-5)
    paths = [row["path"] for row in csv.DictReader((pictures / "many.csv").open(newline=""))]
    told = [json.loads(line) for line in out.splitlines()]
    assert paths == [line["path"] for line in told]
    model = torch.load(weights, weights_only=True)["model"]
    shares = torch.softmax(torch.from_numpy(features) @ model["head.weight"].T + model["head.bias"], 1)
    expected = [[guess["probability"] for guess in line["predictions"]] for line in told]
    np.testing.assert_allclose(shares.sort(1, descending=True).values, expected, atol=1e-5)


def test_overlays_are_drawn_for_every_image_that_can_be_read(weights, pictures, capfd):
    predicted(capfd, weights, "--attention", "looks", ".", code=EXIT_DATA)
    drawn = sorted(path.name for path in (pictures / "looks").iterdir())
    assert drawn == ["0000001_a.png", "0000002_b, c.png", "0000003_d.png"]
    assert {Image.open(pictures / "looks" / name).size for name in drawn} == {(224, 224)}


V1 = {"MODEL.SWIN.EMBED_DIM": 8, "MODEL.SWIN.DEPTHS": [2, 2], "MODEL.SWIN.NUM_HEADS": [1, 2]}
V2 = {key.replace("SWIN", "SWINV2"): value for key, value in V1.items()}
SHAPES = {  # two or four windows a side in the last layer, of which the second block's are shifted
    "V1": {**V1, "MODEL.SWIN.WINDOW_SIZE": [4, 2]},
    "V2": {**V2, "MODEL.TYPE": "swinv2", "MODEL.SWINV2.WINDOW_SIZE": 4, "MODEL.SWINV2.PRETRAINED_WINDOW_SIZES": [0, 0]},
}


@pytest.mark.parametrize("generation", SHAPES)
def test_attention_map_is_the_mean_attention_that_each_token_receives(generation):
    config = get_config(overrides=[*SHAPES[generation].items(), ("DATA.IMG_SIZE", 64), ("IPU.LAYERS_PER_IPU", [4])])
    torch.manual_seed(0)
    model = build_pipeline(config, 3, training=False).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape))
    blocks, seen = model.layers[-1].blocks, []
    for block in blocks:
        block.attn.register_forward_hook(lambda attention, inputs, _: seen.append((attention, inputs[0])))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits, features, maps = InspectedClassifier(model)(images)
        expected = torch.zeros(2, 8, 8)
        for attention, x in seen[: len(blocks)]:
            for row, column in np.ndindex(8, 8):  # a value that only one token holds says who attends to it
                expected[:, row, column] += _looks_at(attention, x, row, column) / len(blocks)
        assert torch.equal(logits, model(images))
        torch.testing.assert_close(features @ model.head.weight.T + model.head.bias, logits)
    assert any(blocks[1].attn.shift) and maps.shape == (2, 8, 8)
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps.mean((1, 2)), torch.ones(2))


def _looks_at(attention, x, row, column):
    """The sum over all queries, and the mean over heads, of the weight on one token, by way of the forward pass."""
    project, proj = attention.project, attention.proj
    channels = x.shape[-1]

    def marked(tokens):
        parts = project(tokens).clone()
        parts[..., 2 * channels :] = 0
        at = [(place - moved) % 8 for place, moved in zip((row, column), attention.shift)]
        parts[:, at[0], at[1], 2 * channels :] = 1
        return parts

    attention.project, attention.proj = marked, torch.nn.Identity()
    try:
        return attention.forward(x).sum((1, 2, 3)) / channels
    finally:
        attention.proj = proj
        del attention.project


def test_overlay_is_blue_where_little_and_yellow_where_much_attention_is():
    black, attention = Image.new("RGB", (8, 8)), np.zeros((2, 2))  # enlarged by 28
    attention[1, 1] = 3.0
    drawn = np.asarray(overlay(black, attention)).astype(int)
    assert drawn[0, 0].tolist() == [0, 0, 64] and drawn[-1, -1].tolist() == [127, 127, 0]
    assert np.asarray(overlay(black, np.ones((2, 2)))).std((0, 1)).max() == 0


def test_reader_that_leaves_early_ends_the_command_as_sigpipe_would(weights, pictures, monkeypatch):
    """As in `predict.py ... | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as caught:
            predict.main(["--checkpoint", str(weights), "--device", DEVICE, "a.jpg"])
    assert caught.value.code == 128 + signal.SIGPIPE


def test_full_disk_behind_standard_output_is_one_line(weights, pictures, monkeypatch):
    with open("/dev/full", "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        with pytest.raises(Refusal, match="standard output cannot be written: No space left") as caught:
            predict.main(["--checkpoint", str(weights), "--device", DEVICE, "a.jpg"])
    assert caught.value.code == EXIT_RESOURCE
