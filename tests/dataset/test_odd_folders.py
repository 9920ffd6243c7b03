# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Folders and pictures as people have them: what is read, what is left out, and that each is said."""

import io
import json
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from common.errors import EXIT_DATA, EXIT_USAGE, Refusal
from dataset import prepare
from dataset.build_ipu import build_dataset, build_images
from dataset.cached_image_folder import MAP_22K, open_22k
from dataset.decode import BadImage, decode
from dataset.image_folder import open_split
from dataset.listing import image_files
from dataset.transforms import build_transform
from tests.data_sets import encoded, photo, small_config, write_folders


@pytest.fixture
def root(tmp_path):
    return write_folders(tmp_path, {"train": {"cat": 3, "dog": 3}, "validation": {"cat": 2, "dog": 2}})


def samples(root, training=True, **keys):
    dataset = build_dataset(small_config(root, **keys), training)
    return [dataset[index] for index in range(len(dataset))]


# Pictures that are odd and good.


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (1, 3000)])
@pytest.mark.parametrize("training", [True, False])
def test_smallest_and_narrowest_pictures_are_samples(root, size, training):
    split = "train" if training else "validation"
    (root / split / "cat" / "000.jpg").write_bytes(encoded(photo(7, size), "PNG"))
    assert all(label >= 0 for _, label in samples(root, training))


def test_every_crop_of_the_smallest_picture_has_a_pixel():
    transform = build_transform(small_config("unread", AUG__REPROB=0.0), training=True)
    picture = Image.new("RGB", (1, 1), (9, 9, 9))
    assert all(transform(picture).shape == (3, 32, 32) for _ in range(60))


@pytest.mark.parametrize("mode, options", [("RGB", {}), ("L", {}), ("CMYK", {}), ("P", {}), ("1", {}), ("RGBA", {})])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiff_is_read(mode, options, compression):
    picture = photo(3).convert("RGB")
    buffer = io.BytesIO()
    picture.convert(mode).save(buffer, "TIFF", compression=compression, **options)
    assert np.asarray(decode(buffer.getvalue())).shape == (30, 40, 3)


def test_tiff_that_is_cut_off_or_a_bomb_is_bad():
    data = encoded(photo(3), "TIFF")
    with pytest.raises(BadImage):
        decode(data[: len(data) // 2])
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "TIFF", compression="tiff_deflate")
    with pytest.raises(BadImage, match="more than|bomb"):
        decode(bomb.getvalue())


def test_tiff_files_are_images_of_their_class(root):
    for name in ("a.tif", "b.TIFF"):
        (root / "train" / "dog" / name).write_bytes(encoded(photo(5), "TIFF"))
    assert len(samples(root)) == 8


@pytest.mark.parametrize("interpolation", ["lanczos", "hamming", "random"])
@pytest.mark.parametrize("training", [True, False])
def test_every_interpolation_of_the_official_program_works(root, interpolation, training):
    assert samples(root, training, DATA__INTERPOLATION=interpolation)


def test_random_interpolation_evaluates_bilinearly(root):
    random, bilinear = (samples(root, False, DATA__INTERPOLATION=name) for name in ("random", "bilinear"))
    assert all((left[0] == right[0]).all() for left, right in zip(random, bilinear))


# Pictures that are bad.


def test_picture_too_narrow_to_be_resized_is_bad_and_named(root, caplog):
    (root / "validation" / "cat" / "000.jpg").write_bytes(encoded(Image.new("1", (1, 70_000)), "PNG"))
    labels = [label for _, label in samples(root, False, DATA__IMG_SIZE=32)]
    assert min(labels) == -2 and "000.jpg of 1x70000 pixels is too narrow" in caplog.text


def test_whatever_fails_between_reading_and_the_sample_is_under_the_policy(root, monkeypatch, caplog):
    dataset = build_dataset(small_config(root), training=True)
    transform = dataset._transform

    def failing(picture, into):
        if failing.left:
            failing.left -= 1
            raise ZeroDivisionError("division by zero")
        return transform(picture, into)

    failing.left = 1
    monkeypatch.setattr(dataset, "_transform", failing)
    assert dataset[0][0].shape == (3, 32, 32)
    assert "000.jpg gives no sample: division by zero" in caplog.text


def test_named_files_go_on_after_a_bad_one_and_keep_their_names(root, caplog, monkeypatch):
    monkeypatch.chdir(root)
    (root / "bad.jpg").write_bytes(b"no picture")
    dataset = build_images(small_config(root), ["./bad.jpg", "train/cat/000.jpg"])
    assert [dataset[index][1] for index in (0, 1)] == [-2, 1]
    assert "\n./bad.jpg" in "\n" + "\n".join(record.getMessage() for record in caplog.records)


# Folders.


def test_files_that_are_not_read_are_counted_once_by_ending(root, caplog):
    for name in ("a.jp2", "b.avif", "c.JP2", "notes.txt", "README"):
        (root / "train" / "dog" / name).write_bytes(b"?")
    with caplog.at_level(logging.WARNING, logger="swin"):
        assert len(open_split(root, training=True)) == 6
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "5 files are not read: 2 of .jp2, 1 of " in lines[0]


def test_picture_outside_the_class_folders_is_said_not_to_be_read(root, caplog):
    for name in ("lost.JPG", ".hidden.jpg", "notes.txt"):
        (root / "train" / name).write_bytes(b"?")
    with caplog.at_level(logging.WARNING, logger="swin"):
        assert len(open_split(root, training=True)) == 6
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}/train: 1 files are not read: 1 of .jpg outside the class folders"
    ]


def test_linked_folder_inside_a_class_is_followed(root, tmp_path):
    other = write_folders(tmp_path / "disk", {"more": {"dogs": 4}})
    (root / "train" / "dog" / "linked").symlink_to(other / "more" / "dogs")
    assert len(open_split(root, training=True)) == 10


def test_links_that_lead_back_end(root):
    (root / "train" / "dog" / "back").symlink_to(root / "train" / "dog")
    (root / "train" / "cat" / "up").symlink_to(root / "train")
    (root / "train" / "cat" / "broken").symlink_to(root / "nowhere")
    assert len(list(image_files(root / "train", "dog"))) == 3
    assert len(set(image_files(root / "train", "cat"))) == len(list(image_files(root / "train", "cat")))


def test_empty_class_goes_on_only_when_it_is_allowed(root, caplog):
    (root / "train" / "fox").mkdir()
    (root / "validation" / "fox").mkdir()
    with pytest.raises(Refusal, match="in fox: remove .* DATA.ALLOW_EMPTY_CLASSES") as caught:
        open_split(root, training=True)
    assert caught.value.code == EXIT_DATA
    assert open_split(root, True, allow_empty=True).classes == ["cat", "dog", "fox"]
    assert "no images in fox" in caplog.text


def test_class_that_validation_lacks_goes_on_only_when_it_is_allowed(root):
    write_folders(root, {"train": {"ant": 2}})
    with pytest.raises(Refusal, match="ant; DATA.ALLOW_EMPTY_CLASSES"):
        open_split(root, training=False)
    dataset = build_dataset(small_config(root, DATA__ALLOW_EMPTY_CLASSES=True), training=False)
    assert dataset.classes == ["ant", "cat", "dog"] and [dataset[index][1] for index in range(4)] == [1, 1, 2, 2]


def test_class_that_training_lacks_is_refused_even_then(root):
    write_folders(root, {"validation": {"ant": 2}})
    with pytest.raises(Refusal, match="lacks 1 of the classes"):
        open_split(root, False, allow_empty=True)


def test_folder_without_any_image_is_refused_even_then(tmp_path):
    for name in ("train/a", "train/b"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(Refusal, match="no images"):
        open_split(tmp_path, True, allow_empty=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_folder_that_may_not_be_listed_is_refused_by_name(root):
    (root / "train" / "dog").chmod(0)
    with pytest.raises(Refusal, match="dog cannot be listed"):
        open_split(root, training=True)


@pytest.mark.parametrize("zipped", [False, True])
def test_second_set_of_validation_is_told_of_once_unless_it_is_a_link_to_the_first(root, zipped, caplog):
    if zipped:
        prepare.main(["zip", "--source", str(root), "--out", str(root / "zip")])
        root = root / "zip"
    ending = ".zip" if zipped else ""
    read, other = (root / f"{name}{ending}" for name in ("validation", "val"))
    other.symlink_to(read)
    config = small_config(root, DATA__ZIP_MODE=zipped)
    build_dataset(config, True), build_dataset(config, False)
    assert "beside it" not in caplog.text
    other.unlink()
    shutil.copy(str(read), str(other)) if zipped else other.mkdir()
    build_dataset(config, True), build_dataset(config, False)
    assert [record.getMessage() for record in caplog.records if "beside it" in record.getMessage()] == [
        f"{read} is read, {other} beside it is not: remove the wrong one"
    ]


def test_part_of_imagenet_22k_has_its_classes_and_gaps_are_told(tmp_path, caplog):
    (tmp_path / MAP_22K.format("train")).write_text(json.dumps([["a/1.jpg", 0], ["b/1.jpg", 3]]))
    images = open_22k(tmp_path, training=True)
    assert len(images.classes) == 21841 and images.classes[3] == "b"
    assert "names no image of 21839 of 21841 classes" in caplog.text
    assert len(open_22k(tmp_path, True, limit=4).classes) == 4


@pytest.mark.parametrize("policy", ["rand-m99x", "rand-m9-n2x", "rand-m9-mstd0.5x", "v9", "augmix-m5-w4x"])
def test_augmentation_that_timm_does_not_understand_is_one_line(policy):
    with pytest.raises(Refusal, match=policy) as caught:
        build_transform(small_config("unread", AUG__AUTO_AUGMENT=policy), training=True)
    assert caught.value.code == EXIT_USAGE and "\n" not in str(caught.value)
