# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""python -m dataset.check: what it finds, that this is what training does, and how it ends."""

import csv
import os
import random
import shutil
import signal
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

import dataset.check
import dataset.prepare
from common.errors import EXIT_DATA, EXIT_FINDINGS, EXIT_USAGE, Refusal
from dataset.build_ipu import build_dataset
from dataset.findings import NEAR, near_pairs
from dataset.image_folder import open_split
from tests.data_sets import encoded, photo, small_config, write_folders

NOTHING = 0


def checked(capsys, root, *flags, code=NOTHING):
    """What the check prints; `code` is the exit code that it has to end with."""
    argv = [str(root), "--num-workers", "1", *map(str, flags)]
    if code == NOTHING:
        dataset.check.main(argv)
    else:
        with pytest.raises(Refusal) as caught:
            dataset.check.main(argv)
        assert caught.value.code == code, caught.value
        assert "\n" not in str(caught.value)
    return capsys.readouterr().out


def rows(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return {row["path"]: row for row in csv.DictReader(stream)}


@pytest.fixture
def root(tmp_path):
    return write_folders(tmp_path / "data", {"train": {"a": 4, "b": 4}, "validation": {"a": 2, "b": 2}})


def test_sound_data_set_has_counts_sizes_and_modes_and_no_findings(root, capsys):
    photo(90, (60, 50)).convert("L").save(root / "train" / "b" / "grey.png")
    said = checked(capsys, root)
    assert "train: 9 images of 2 classes" in said and "validation: 4 images of 2 classes" in said
    assert "width 40 to 60, median 40; height 30 to 50, median 30" in said
    assert "JPEG RGB 8, PNG L 1; training converts them to RGB" in said
    assert "largest classes: b 5, a 4; smallest: a 4, b 5" in said
    assert "WARNING" not in said and "NOTE" not in said and "ERROR" not in said


FILES = {  # contents, severity, finding, what training does
    "train/a/cut.jpg": (encoded(photo(70))[:-300], "WARNING", "truncated", "neighbour"),
    "train/a/empty.jpg": (b"", "WARNING", "unreadable is empty", "neighbour"),
    "train/a/text.png": (b"no picture", "WARNING", "unreadable is not a JPEG", "neighbour"),
    "train/a/named.png": (encoded(photo(71)), "NOTE", "wrong ending is JPEG", "by its contents"),
    "train/a/image.jfif": (encoded(photo(72)), "WARNING", "image with another ending JPEG", "rename"),
    "train/b/notes.txt": (b"no picture", "NOTE", "other file", "not read"),
    "train/loose.jpg": (encoded(photo(73)), "WARNING", "outside of the classes", "into the folder of its class"),
}


@pytest.mark.parametrize("name", FILES)
def test_file_has_its_finding_and_its_effect(name, root, tmp_path, capsys):
    data, severity, finding, effect = FILES[name]
    (root / name).write_bytes(data)
    flags = ["--output", tmp_path / "out.csv"]
    said = checked(capsys, root, *flags, code=EXIT_FINDINGS if severity == "WARNING" else NOTHING)
    assert f"{severity} {finding.split(' is ')[0].rpartition(' JPEG')[0] or finding.split(' is ')[0]}: 1; " in said
    table = rows(tmp_path / "out.csv")
    row = table.pop(name)
    assert row["severity"] == severity and finding in row["findings"] and effect in row["training"]
    assert len(table) == 12 and {(row["findings"], row["training"]) for row in table.values()} == {("", "read")}


def test_turned_picture_is_noted(root, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "train" / "a" / "turned.jpg").write_bytes(encoded(photo(74), exif=exif))
    assert "NOTE orientation tag: 1; the tag is ignored" in checked(capsys, root)


def test_equal_files_are_found_within_a_class_across_classes_and_across_splits(root, tmp_path, capsys):
    train = root / "train"
    shutil.copy(train / "a" / "000.jpg", train / "a" / "again.jpg")
    shutil.copy(train / "a" / "001.jpg", train / "b" / "also.jpg")
    shutil.copy(train / "b" / "002.jpg", root / "validation" / "b" / "leak.jpg")
    checked(capsys, root, "--output", tmp_path / "out.csv", code=EXIT_FINDINGS)
    table = rows(tmp_path / "out.csv")
    found = {path: row["findings"].split(" equals ")[0] for path, row in table.items() if row["findings"]}
    assert found == {
        **dict.fromkeys(("train/a/000.jpg", "train/a/again.jpg"), "duplicate"),
        **dict.fromkeys(("train/a/001.jpg", "train/b/also.jpg"), "duplicate in another class"),
        **dict.fromkeys(("train/b/002.jpg", "validation/b/leak.jpg"), "duplicate across splits"),
    }
    assert "accuracy is too high" in table["validation/b/leak.jpg"]["training"]
    assert table["validation/b/leak.jpg"]["findings"].endswith("train/b/002.jpg")


def test_images_that_look_the_same_are_found_across_splits(root, tmp_path, capsys):
    pytest.importorskip("imagehash", reason="near duplicates need the optional package imagehash")
    picture = Image.fromarray(load_sample_image("flower.jpg"))
    picture.save(root / "train" / "a" / "large.jpg", quality=95)
    picture.resize((160, 107)).save(root / "validation" / "a" / "small.jpg", quality=60)
    flat = Image.new("RGB", (40, 30), "red")  # has no looks to compare
    flat.save(root / "train" / "b" / "red.png")
    Image.new("RGB", (40, 30), "green").save(root / "train" / "b" / "green.png")
    flags = ["--output", tmp_path / "out.csv", "--near-duplicates"]
    checked(capsys, root, *flags, code=EXIT_FINDINGS)
    found = {path: row["findings"] for path, row in rows(tmp_path / "out.csv").items() if row["findings"]}
    assert set(found) == {"train/a/large.jpg", "validation/a/small.jpg"}
    assert found["train/a/large.jpg"].startswith("near duplicate across splits looks like ")


def test_near_pairs_are_those_of_comparing_all_with_all():
    generator = random.Random(0)
    hashes = [generator.getrandbits(64) for _ in range(40)]
    for bits in (0, 1, 3, 4, 5, 6):
        flips = sum(1 << place for place in generator.sample(range(64), bits))
        hashes += [value ^ flips for value in hashes[:10]]
    expected = {
        (left, right)
        for left in range(len(hashes))
        for right in range(left + 1, len(hashes))
        if bin(hashes[left] ^ hashes[right]).count("1") <= NEAR
    }
    assert set(near_pairs(np.array(hashes, dtype=np.uint64))) == expected and len(expected) > 40


def test_missing_package_for_looks_is_one_line(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(Refusal, match="pip install imagehash"):
        dataset.check.main([str(root), "--near-duplicates"])


def test_what_training_refuses_is_an_error_in_its_words(root, capsys):
    shutil.rmtree(root / "validation" / "b")
    said = checked(capsys, root, code=EXIT_DATA)
    with pytest.raises(Refusal) as caught:
        build_dataset(small_config(root), training=True)
    assert f"ERROR {caught.value}" in said.splitlines()


def test_more_damaged_images_than_training_skips_are_an_error(root, capsys):
    for number in range(4):
        (root / "train" / "a" / f"00{number}.jpg").write_bytes(b"no picture")
        said = checked(capsys, root, code=EXIT_FINDINGS if number < 3 else EXIT_DATA)
    assert "ERROR train: 4 bad images of 8: more than 3 are not skipped" in said


@pytest.mark.parametrize("layout, flags", [("shards", []), ("zip", ["--zip"])])
def test_packed_data_sets_have_the_findings_of_their_folders(layout, flags, root, tmp_path, capsys):
    (root / "train" / "a" / "cut.jpg").write_bytes(encoded(photo(70))[:-300])
    shutil.copy(root / "train" / "a" / "000.jpg", root / "validation" / "b" / "leak.jpg")
    packed = tmp_path / "packed"
    dataset.prepare.main([layout, "--source", str(root), "--out", str(packed)])
    capsys.readouterr()
    said, found = [], []
    for number, command in enumerate(([root], [packed, *flags])):
        table = tmp_path / f"{number}.csv"
        said.append(checked(capsys, *command, "--output", table, code=EXIT_FINDINGS).split("WARNING")[0])
        facts = ("split", "class", "bytes", "width", "mode", "sha256", "severity", "training")
        found.append(sorted([row[name] for name in facts] for row in rows(table).values()))
    assert said[1] == said[0] and found[1] == found[0] and len(found[0]) == 14


def test_damage_in_a_shard_and_a_split_that_training_refuses_are_found(root, tmp_path, capsys):
    packed = tmp_path / "packed"
    dataset.prepare.main(["shards", "--source", str(root), "--out", str(packed)])
    capsys.readouterr()
    image, shard = (root / "train" / "b" / "002.jpg").read_bytes(), packed / "train-00000.tar"
    data = shard.read_bytes()
    shard.write_bytes(data.replace(image, image[:-20] + bytes(20)))
    said = checked(capsys, packed, code=EXIT_FINDINGS)
    assert "unreadable: 1; " in said and "b/002.jpg (is damaged: its checksum does not match)" in said
    (packed / "validation.index").write_bytes(b"")
    said = checked(capsys, packed, code=EXIT_DATA)
    with pytest.raises(Refusal) as caught:
        build_dataset(small_config(packed), training=False)
    assert f"ERROR {caught.value}" in said.splitlines() and "train: 7 images of 2 classes" in said


def test_images_of_an_archive_are_read_whatever_their_names(root, tmp_path, capsys):
    packed = tmp_path / "packed"
    packed.mkdir()
    for split in ("train", "validation"):
        files = sorted((root / split).rglob("*.jpg"))
        names = [f"{path.parent.name}/{path.stem}" for path in files]  # without an ending
        with zipfile.ZipFile(packed / f"{split}.zip", "w") as archive:
            for path, name in zip(files, names):
                archive.write(path, name)
        lines = [f"{name}\t{'ab'.index(name[0])}\n" for name in names]
        (packed / f"{split}_map.txt").write_text("".join(lines))
    said = checked(capsys, packed, "--zip")
    assert "train: 8 images of 2 classes" in said and "WARNING" not in said


def test_archives_without_the_flag_are_refused_as_in_training(tmp_path):
    (tmp_path / "train.zip").write_bytes(b"not read")
    with pytest.raises(Refusal, match="add --zip") as checking:
        dataset.check.main([str(tmp_path)])
    with pytest.raises(Refusal) as training:
        open_split(tmp_path, training=True)
    assert str(training.value) == str(checking.value)


def test_folder_of_classes_without_splits_is_checked_too(tmp_path, capsys):
    write_folders(tmp_path, {"photos": {"line\nbreak": 2, "<b>,": 3}})
    (tmp_path / "photos" / "line\nbreak" / "bad\n.jpg").write_bytes(b"no picture")
    said = checked(capsys, tmp_path / "photos", "--output", tmp_path / "o.csv", code=EXIT_FINDINGS)
    assert "folder: 5 images of 2 classes" in said and r"line\nbreak/bad\n.jpg' (is not a JPEG" in said
    assert rows(tmp_path / "o.csv")["line\nbreak/bad\n.jpg"]["class"] == "line\nbreak"


def test_linked_class_has_the_images_that_training_reads(root, capsys):
    for split in ("train", "validation"):
        (root / split / "alias").symlink_to(root / split / "a", target_is_directory=True)
    said = checked(capsys, root, code=EXIT_FINDINGS)
    assert f"train: {len(open_split(root, training=True))} images of 3 classes" in said
    assert "duplicate in another class" in said


def test_reader_that_leaves_early_ends_the_check_as_sigpipe_would(root, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as caught:
            dataset.check.main([str(root), "--num-workers", "1"])
    assert caught.value.code == 128 + signal.SIGPIPE


def test_folders_that_cannot_be_checked_and_files_that_exist_are_refused(root, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.csv").write_text("keep")
    cases = (
        ([tmp_path / "empty"], "no class folders", EXIT_DATA),
        ([tmp_path / "none"], "is not a folder", EXIT_DATA),
        ([root, "--output", tmp_path / "mine.csv"], "exists already", EXIT_USAGE),
        ([root, "--num-workers", "0"], "at least 1", EXIT_USAGE),
    )
    for argv, said, code in cases:
        with pytest.raises(Refusal, match=said) as caught:
            dataset.check.main([str(word) for word in argv])
        assert caught.value.code == code
    assert (tmp_path / "mine.csv").read_text() == "keep"


def test_as_many_processes_read_images_as_cores_are_usable(tmp_path, monkeypatch):
    """A container's quota and the affinity of the process count, not the cores of the machine."""
    asked = []
    monkeypatch.setattr(dataset.check, "usable_cores", lambda: 3)
    monkeypatch.setattr(dataset.check, "check", lambda root, processes, *_: asked.append(processes) or sys.exit())
    with pytest.raises(SystemExit):
        dataset.check.main([str(tmp_path)])
    assert asked == [3]
