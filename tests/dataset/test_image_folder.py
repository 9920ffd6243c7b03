# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Folder data sets, decoding of untrusted files, and the policy for bad images."""

import errno
import io
import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from common import files
from common.errors import EXIT_DATA, EXIT_USAGE, Refusal
from dataset import decode
from dataset.build_ipu import build_dataset
from dataset.decode import BadImage
from dataset.image_folder import ImageFolder, open_split
from dataset.path_table import PathTable
from dataset.samples import UNREADABLE, DataError
from tests.data_sets import encoded, photo, small_config, write_folders


@pytest.fixture(params=["simplejpeg", "Pillow"])
def decoder(request, monkeypatch) -> str:
    """Runs a test with each JPEG decoder."""
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr(decode, "fast_jpeg", lambda: None)
    return request.param


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folders(tmp_path, {"train": {"cat": 12, "dog": 8}, "validation": {"cat": 2, "dog": 3}})


def refusal(call, *arguments) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value


class TestLayout:
    def test_labels_follow_sorted_class_folders(self, root):
        folder = open_split(root, training=True)
        assert folder.classes == ["cat", "dog"]
        assert folder.labels.tolist() == [0] * 12 + [1] * 8
        assert folder.name(0) == str(root / "train" / "cat" / "000.jpg")
        assert folder.read(19) == (root / "train" / "dog" / "007.jpg").read_bytes()

    def test_val_serves_as_validation(self, root):
        (root / "validation").rename(root / "val")
        assert len(open_split(root, training=False)) == 5

    def test_hidden_entries_and_other_files_do_not_count(self, root):
        (root / "train" / ".cache").mkdir()
        (root / "train" / "cat" / "._000.jpg").write_bytes(b"resource fork")
        (root / "train" / "cat" / "notes.txt").write_text("no picture")
        assert len(open_split(root, training=True)) == 20

    def test_images_in_nested_folders_belong_to_the_class(self, root):
        (root / "train" / "dog" / "more").mkdir()
        (root / "train" / "dog" / "more" / "a.PNG").write_bytes(encoded(photo(1), "PNG"))
        folder = open_split(root, training=True)
        assert folder.relative(20) == "dog/more/a.PNG" and folder.labels[20] == 1

    def test_classes_are_taken_from_the_folders_not_from_the_configuration(self, root):
        assert build_dataset(small_config(root), training=True).classes == ["cat", "dog"]

    @pytest.mark.parametrize("training, path", [(True, "train"), (False, "validation")])
    def test_missing_split_is_refused_naming_root_and_layout(self, tmp_path, training, path):
        error = refusal(open_split, tmp_path, training)
        assert error.code == EXIT_DATA and str(tmp_path) in str(error) and path in str(error)

    def test_split_without_classes_is_refused(self, tmp_path):
        (tmp_path / "train").mkdir()
        error = refusal(open_split, tmp_path, True)
        assert error.code == EXIT_DATA and str(tmp_path / "train") in str(error)

    def test_empty_class_is_refused_by_name(self, root):
        (root / "train" / "fox").mkdir()
        (root / "validation" / "fox").mkdir()
        error = refusal(open_split, root, True)
        assert error.code == EXIT_DATA and "fox" in str(error) and str(root / "train") in str(error)

    @pytest.mark.parametrize("training", [True, False])
    def test_classes_that_differ_between_splits_are_refused_by_name(self, root, training):
        (root / "validation" / "dog").rename(root / "validation" / "dgo")
        error = refusal(open_split, root, training)
        assert error.code == EXIT_DATA and "dog" in str(error) or "dgo" in str(error)

    def test_data_path_that_is_no_folder_is_refused(self, tmp_path):
        error = refusal(build_dataset, small_config(tmp_path / "nowhere"), True)
        assert error.code == EXIT_DATA and str(tmp_path / "nowhere") in str(error)

    def test_no_data_path_is_a_usage_error(self):
        assert refusal(build_dataset, small_config(""), True).code == EXIT_USAGE

    def test_more_classes_than_the_configuration_has_are_refused(self, root):
        error = refusal(build_dataset, small_config(root, MODEL__NUM_CLASSES=1), True)
        assert error.code == EXIT_DATA and "2 classes" in str(error)

    @given(st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1)))
    def test_path_table_gives_back_every_path(self, paths):
        encodable = [path for path in paths if not any("\ud800" <= letter <= "\udfff" for letter in path)]
        assert list(PathTable.of(encodable)) == encodable

    def test_path_table_keeps_names_that_are_not_text(self):
        name = os.fsdecode(b"\xff\xfe.jpg")
        assert list(PathTable.of(["a", name])) == ["a", name]

    def test_class_folder_may_be_a_link(self, root):
        (root / "train" / "dog").rename(root / "dogs")
        (root / "train" / "dog").symlink_to(root / "dogs")
        assert len(open_split(root, training=True)) == 20


def patched_jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose frame header claims other dimensions."""
    data = bytearray(encoded(photo(0)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def png_bomb(side: int) -> bytes:
    """A PNG header that announces side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    checked = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I", 9) + b"IDAT"


class TestDecoding:
    @pytest.mark.parametrize("tenth", range(1, 10))
    @pytest.mark.parametrize("kind, options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})])
    def test_truncated_file_is_bad(self, decoder, tenth, kind, options):
        data = encoded(photo(3, (200, 160)), kind, **options)
        with pytest.raises(BadImage):
            decode.decode(data[: len(data) * tenth // 10])

    @pytest.mark.skipif(decode.fast_jpeg() is None, reason="Pillow alone takes it for sound")
    @pytest.mark.parametrize(
        "mended",
        [
            lambda head, tail: head + b"\xff\xd9",
            lambda head, tail: head + tail[50:],
            lambda head, tail: head + bytes(len(tail) // 2) + tail[len(tail) // 2 :],
        ],
        ids=["cut and closed", "a part missing", "a part of zeros"],
    )
    def test_jpeg_whose_middle_is_lost_is_bad_rather_than_half_grey(self, mended):
        data = encoded(photo(3, (200, 160)))
        middle = len(data) // 2
        with pytest.raises(BadImage, match="premature end"):
            decode.decode(mended(data[:middle], data[middle:]))

    def test_jpeg_with_bytes_too_many_decodes_to_the_same_pixels(self):
        data = encoded(photo(3, (200, 160)))
        pixels = np.asarray(decode.decode(data[:-2] + b"\x12\x34" * 5 + data[-2:]))
        assert np.array_equal(pixels, np.asarray(decode.decode(data)))

    @pytest.mark.parametrize("data", [b"", b"hello", b"<html><body>404</body></html>", b"\xff\xd8\xff", b"\0" * 4096])
    def test_file_that_is_no_picture_is_bad(self, decoder, data):
        with pytest.raises(BadImage):
            decode.decode(data)

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    @pytest.mark.parametrize(
        "data",
        [patched_jpeg(12000, 12000), patched_jpeg(65500, 65500), png_bomb(60000)],
        ids=["jpeg", "large jpeg", "png"],
    )
    def test_bomb_is_refused_before_it_is_decoded(self, decoder, data):
        with pytest.raises(BadImage, match="pixels"):
            decode.decode(data)

    @pytest.mark.parametrize("kind", ["SGI", "EPS", "ICO", "TGA", "PCX"])
    def test_formats_beyond_the_list_are_not_decoded(self, kind):
        with pytest.raises(BadImage):
            decode.decode(encoded(photo(1, (32, 32)), kind))

    @pytest.mark.parametrize(
        "mode, kind",
        [
            ("L", "JPEG"),
            ("CMYK", "JPEG"),
            ("L", "PNG"),
            ("LA", "PNG"),
            ("RGBA", "PNG"),
            ("P", "PNG"),
            ("1", "PNG"),
            ("RGB", "BMP"),
            ("RGB", "WEBP"),
            ("P", "GIF"),
            ("RGB", "PPM"),
        ],
    )
    def test_every_mode_becomes_the_same_rgb_colours(self, decoder, mode, kind):
        grey = Image.new("RGB", (16, 16), (255, 255, 255) if mode == "1" else (102, 102, 102))  # in the web palette
        pixels = np.asarray(decode.decode(encoded(grey.convert(mode), kind)))
        assert pixels.shape == (16, 16, 3) and np.abs(pixels.astype(int) - np.asarray(grey)).max() <= 3

    def test_palette_with_transparency_keeps_its_colours(self):
        image = Image.new("P", (8, 8), 1)
        image.putpalette([10, 20, 30, 200, 100, 50])
        data = encoded(image, "PNG", transparency=b"\x00\x80")
        assert decode.decode(data).getpixel((0, 0)) == (200, 100, 50)

    def test_16_bit_grey_is_scaled_not_clipped(self):
        levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
        image = decode.decode(encoded(Image.fromarray(levels), "PNG"))
        assert np.asarray(image)[..., 0].ravel().tolist() == list(range(256))

    def test_png_named_jpeg_decodes(self, tmp_path):
        path = tmp_path / "n02105855_2933.JPEG"
        path.write_bytes(encoded(photo(5), "PNG"))
        assert np.array_equal(np.asarray(decode.decode(decode.read_file(str(path)))), np.asarray(photo(5)))

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    def test_broken_exif_and_orientation_are_ignored(self):
        plain = encoded(photo(7))
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = encoded(photo(7), exif=exif)
        broken = plain[:2] + b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\xff" + plain[2:]
        for data in (turned, broken):
            assert np.array_equal(np.asarray(decode.decode(data)), np.asarray(decode.decode(plain)))

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"progressive": True},
            {"subsampling": 0},
            {"subsampling": 1},
            {"quality": 20},
            {"quality": 98},
            {"restart_marker_blocks": 3},
        ],
    )
    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    @pytest.mark.parametrize("size", [(1, 1), (7, 9), (123, 77)])
    def test_decoded_pixels_are_those_of_pillow(self, options, mode, size):
        data = encoded(photo(2, size).convert(mode), **options)
        assert np.array_equal(np.asarray(decode.decode(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))

    def test_jpeg_in_red_green_blue_decodes(self):
        data = encoded(photo(4), keep_rgb=True)
        assert np.array_equal(np.asarray(decode.decode(data)), np.asarray(Image.open(io.BytesIO(data))))

    def test_junk_that_pillow_tolerates_is_tolerated(self):
        data = encoded(photo(4))
        for whole in (data + b"trailing bytes", data[:2] + b"\xff\xfe\0\6junk" + data[2:]):
            assert np.array_equal(np.asarray(decode.decode(whole)), np.asarray(decode.decode(data)))


class TestReading:
    def test_pipe_is_refused_without_waiting(self, tmp_path):
        os.mkfifo(str(tmp_path / "pipe.jpg"))
        with pytest.raises(BadImage, match="regular"):
            decode.read_file(str(tmp_path / "pipe.jpg"))

    def test_vanished_file_is_bad_at_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files.time, "sleep", lambda _: pytest.fail("a missing file is not tried again"))
        with pytest.raises(BadImage, match="No such file"):
            decode.read_file(str(tmp_path / "gone.jpg"))

    def test_oversized_file_is_not_read(self, tmp_path):
        path = tmp_path / "huge.jpg"
        with open(path, "wb") as stream:
            stream.truncate(decode.MAX_FILE_BYTES + 1)
        with pytest.raises(BadImage, match="larger"):
            decode.read_file(str(path))

    @pytest.mark.parametrize("failures, readable", [(2, True), (3, False)])
    def test_input_output_errors_are_tried_again_a_few_times(self, monkeypatch, failures, readable):
        waits, attempts = [], []

        def flaky(*_):
            attempts.append(1)
            if len(attempts) <= failures:
                raise OSError(errno.EIO, "Input/output error")
            return b"data"

        monkeypatch.setattr(files, "_read_once", flaky)
        monkeypatch.setattr(files.time, "sleep", waits.append)
        if readable:
            assert decode.read_file("x") == b"data"
        else:
            with pytest.raises(BadImage, match="Input/output"):
                decode.read_file("x")
        assert len(waits) == 2

    def test_control_characters_in_names_are_escaped(self):
        assert decode.shown("a\x1b[31m\n.jpg") == ascii("a\x1b[31m\n.jpg")
        assert decode.shown("/data/größe.jpg") == "/data/größe.jpg"


class TestBadImages:
    def test_skipped_image_is_its_neighbour_and_is_reported_once(self, root, caplog):
        bad = root / "train" / "cat" / "003.jpg"
        bad.write_bytes(bad.read_bytes()[:200])
        dataset = build_dataset(small_config(root), training=True)
        with caplog.at_level(logging.WARNING, "swin"):
            first, label = dataset.sample(5, 3)
            again, _ = dataset.sample(5, 3)
        neighbour, _ = dataset.sample(5, 4)
        assert torch.equal(first, neighbour) and torch.equal(again, neighbour) and label == 0
        assert [str(bad) in record.getMessage() for record in caplog.records] == [True]

    def test_last_image_is_replaced_by_the_first_across_the_end(self, root):
        (root / "train" / "dog" / "007.jpg").write_bytes(b"")
        dataset = build_dataset(small_config(root), training=True)
        assert torch.equal(dataset.sample(0, 19)[0], dataset.sample(0, 0)[0]) and dataset.sample(0, 19)[1] == 0

    def test_too_many_bad_images_stop_the_run(self, root):
        for number in range(0, 12, 2):
            (root / "train" / "cat" / f"{number:03d}.jpg").write_bytes(b"not a picture")
        dataset = build_dataset(small_config(root), training=True)
        with pytest.raises(DataError, match=r"4 bad images of 20"):
            for index in range(len(dataset)):
                dataset.sample(0, index)

    def test_policy_fail_stops_at_the_first(self, root):
        path = root / "train" / "cat" / "000.jpg"
        path.write_bytes(b"not a picture")
        dataset = build_dataset(small_config(root, DATA__BAD_IMAGES="fail"), training=True)
        with pytest.raises(DataError) as caught:
            dataset.sample(0, 0)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    def test_bad_validation_image_is_not_replaced(self, root):
        (root / "validation" / "dog" / "001.jpg").write_bytes(b"not a picture")
        image, label = build_dataset(small_config(root), training=False)[3]
        assert label == UNREADABLE and not image.any()


class TestSamples:
    def test_sample_depends_on_epoch_and_index_alone(self, root):
        first, second = (build_dataset(small_config(root), training=True) for _ in range(2))
        second.sample(0, 7)
        assert torch.equal(first.sample(3, 5)[0], second.sample(3, 5)[0])
        assert not torch.equal(first.sample(3, 5)[0], first.sample(4, 5)[0])

    def test_other_seed_augments_otherwise(self, root):
        first, second = (build_dataset(small_config(root, SEED=seed), training=True) for seed in (0, 1))
        assert not torch.equal(first.sample(0, 0)[0], second.sample(0, 0)[0])

    def test_indexing_gives_epoch_zero_and_ends(self, root):
        dataset = build_dataset(small_config(root), training=True)
        assert torch.equal(dataset[4][0], dataset.sample(0, 4)[0]) and dataset[19][1] == 1
        with pytest.raises(IndexError):
            dataset[20]

    def test_evaluation_image_is_the_same_in_every_epoch(self, root):
        dataset = build_dataset(small_config(root), training=False)
        assert torch.equal(dataset.sample(0, 1)[0], dataset.sample(9, 1)[0])

    def test_picture_channels_other_than_three_are_refused(self, root):
        config = small_config(root, MODEL__SWIN__IN_CHANS=1, DATA__MEAN=[0.5], DATA__STD=[0.5])
        assert refusal(build_dataset, config, True).code == EXIT_USAGE

    def test_source_is_plain_arrays_so_that_workers_share_it(self, root):
        folder = ImageFolder(root / "train")
        assert isinstance(folder.labels, np.ndarray) and isinstance(folder._paths.text, np.ndarray)
