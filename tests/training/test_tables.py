# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The tables that validate.py writes: exact for any batches, whatever the classes and files are called."""

import csv
import os
import re

import pytest

import train_swin
import validate
from common.errors import EXIT_RESOURCE, EXIT_USAGE, Refusal
from tests.backend import DEVICE
from tests.data_sets import write_folders
from tests.runs import SMALL

CLASSES = ["<b>bold", "=1+1", 'comma, "quote"', "line\nbreak"]


def rows(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Data of oddly named classes, with one damaged image, and the checkpoint of a model that learned from them."""
    root = tmp_path_factory.mktemp("odd")
    write_folders(root, {"train": dict.fromkeys(CLASSES, 8), "validation": dict.fromkeys(CLASSES, 3)}, (20, 20))
    folder = root / "validation" / "line\nbreak"
    (folder / "000.jpg").write_bytes(b"no picture")
    os.rename(os.fsencode(folder / "001.jpg"), os.fsencode(folder) + b"/\xff,1.jpg")  # no UTF-8
    train_swin.main([*SMALL, "--epochs", "2", "--data-path", str(root), "--output", str(root / "out"), "--ga", "1"])
    return root, root / "out" / "best.pth"


def validated(trained, *flags):
    root, weights = trained
    validate.main(["--data-path", str(root), "--checkpoint", str(weights), "--device", DEVICE, *map(str, flags)])


def written(trained, folder, *flags):
    folder.mkdir()
    names = ("--per-class", "--confusion-matrix", "--predictions")
    validated(trained, *(part for name in names for part in (name, folder / f"{name[2:]}.csv")), *flags)
    return [rows(folder / f"{name[2:]}.csv") for name in names]


def test_tables_agree_with_each_other_and_with_the_accuracy_that_is_logged(trained, tmp_path, capsys):
    classes, cells, images = written(trained, tmp_path / "a")
    said = capsys.readouterr().out
    top1 = float(re.search(r"validation: top-1: ([\d.]+) % images: 12$", said, re.MULTILINE)[1])
    assert sum(int(row["correct"]) for row in images) == round(top1 * 12 / 100)
    assert [row["class"] for row in classes] == CLASSES and [row["images"] for row in classes] == ["3", "3", "3", "2"]
    for label, row in enumerate(classes):
        mine = [image for image in images if image["class"] == CLASSES[label]]
        right = sum(int(image["correct"]) for image in mine)
        assert float(row["top1"]) == pytest.approx(100 * right / int(row["images"]), abs=1e-4)
        predicted = [image for image in images if image["predicted_1"] == CLASSES[label]]
        assert int(row["predicted"]) == len(predicted)
        assert row["precision"] == (f"{100 * right / len(predicted):.4f}" if predicted else "")
        for cell in (cell for cell in cells if cell["class"] == CLASSES[label]):
            assert int(cell["images"]) == sum(image["predicted_1"] == cell["predicted"] for image in mine)
    assert sum(int(cell["images"]) for cell in cells) == 11
    shares = [[float(image[f"probability_{rank}"]) for rank in range(1, 5)] for image in images if image["predicted_1"]]
    assert all(sum(share) == pytest.approx(1, abs=1e-4) and share == sorted(share)[::-1] for share in shares)


def test_every_image_has_a_row_with_its_path_even_one_that_cannot_be_read(trained, tmp_path):
    *_, images = written(trained, tmp_path / "a")
    expected = [str(path) for path in sorted((trained[0] / "validation").rglob("*.jpg"))]
    assert [row["path"] for row in images] == expected
    (bad,) = [row for row in images if row["path"].endswith("break/000.jpg")]
    assert (bad["class"], bad["correct"], bad["predicted_1"], bad["probability_4"]) == ("line\nbreak", "0", "", "")


def test_tables_do_not_depend_on_batch_and_replicas(trained, tmp_path):
    one = written(trained, tmp_path / "a", "--batch-size", "1", "--replicas", "1")
    many = written(trained, tmp_path / "b", "--batch-size", "5", "--replicas", "2")
    assert one[0] == many[0] and one[1] == many[1]
    assert [(row["path"], row["predicted_1"]) for row in one[2]] == [
        (row["path"], row["predicted_1"]) for row in many[2]
    ]


def test_calibration_error_is_logged_and_class_names_break_no_line(trained, capsys):
    validated(trained, "--per-class")
    said = capsys.readouterr().out
    assert re.search(r"expected calibration error: 0\.\d{4} in 15 bins", said)
    assert r"class 'line\nbreak': top-1:" in said


def test_tables_that_cannot_be_made_are_refused_before_the_weights_are_read(tmp_path, monkeypatch):
    (tmp_path / "mine.csv").write_text("keep")
    (tmp_path / "shut").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.basename(str(path)) != "shut")  # root may write all
    cases = (
        (["--predictions", tmp_path / "mine.csv"], "exists already", EXIT_USAGE),
        (["--per-class", tmp_path / "none" / "a.csv"], "does not exist", EXIT_USAGE),
        (["--confusion-matrix", tmp_path / "shut" / "a.csv"], "read-only", EXIT_RESOURCE),
        (["--per-class", tmp_path / "a.csv", "--predictions", tmp_path / "a.csv"], "two results", EXIT_USAGE),
    )
    for flags, said, code in cases:
        with pytest.raises(Refusal, match=said) as caught:
            validate.main(["--checkpoint", str(tmp_path / "no.pth"), *map(str, flags)])
        assert caught.value.code == code
    assert (tmp_path / "mine.csv").read_text() == "keep" and len(list(tmp_path.iterdir())) == 2
