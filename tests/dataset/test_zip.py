# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Zip archives and map files: the same samples as folders, from any process, and refusals with file and line."""

import json
import multiprocessing
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import EXIT_DATA, EXIT_USAGE, Refusal
from dataset import zipreader
from dataset.build_ipu import build_dataset
from dataset.cached_image_folder import MAP_22K, open_22k, open_zip, read_map
from dataset.decode import MAX_FILE_BYTES, BadImage
from dataset.prepare import prepare
from dataset.zipreader import ZipReader
from tests.data_sets import encoded, photo, small_config, write_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    counts = {"train": {"n01": 6, "n02": 5}, "validation": {"n01": 2, "n02": 3}}
    return write_folders(tmp_path_factory.mktemp("folders"), counts)


@pytest.fixture
def zips(folders, tmp_path) -> Path:
    prepare("zip", tmp_path / "zips", folders)
    return tmp_path / "zips"


def refusal(call, *arguments) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    assert caught.value.code == EXIT_DATA and "\n" not in str(caught.value)
    return str(caught.value)


def archive(path: Path, members, method=zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(str(path), "w", method) as stream:
        for name, data in members.items():
            stream.writestr(name, data)
    return path


class TestZipMode:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("cache", ["no", "full", "part"])
    def test_samples_are_those_of_the_folders(self, folders, zips, training, cache):
        loose = build_dataset(small_config(folders), training)
        packed = build_dataset(small_config(zips, DATA__ZIP_MODE=True, DATA__CACHE_MODE=cache), training)
        assert packed.classes == loose.classes and len(packed) == len(loose)
        for index in range(len(loose)):
            assert torch.equal(packed[index][0], loose[index][0]) and packed[index][1] == loose[index][1]

    def test_val_zip_serves_as_validation(self, zips):
        (zips / "validation.zip").rename(zips / "val.zip")
        (zips / "validation_map.txt").rename(zips / "val_map.txt")
        assert len(open_zip(zips, False, "no", 0, 1)) == 5

    def test_flat_validation_archive_takes_class_names_from_training(self, zips):
        archive(zips / "validation.zip", {"a.jpg": encoded(photo(1)), "b.jpg": encoded(photo(2))})
        (zips / "validation_map.txt").write_text("a.jpg\t1\nb.jpg\t0\n")
        validation = open_zip(zips, False, "no", 0, 1)
        assert validation.classes == open_zip(zips, True, "no", 0, 1).classes == ["n01", "n02"]
        assert validation.labels.tolist() == [1, 0]

    def test_missing_archive_is_refused(self, folders):
        message = refusal(open_zip, folders, True, "no", 0, 1)
        assert "train.zip" in message and str(folders) in message and "leave --zip out" in message

    def test_missing_map_is_refused(self, zips):
        (zips / "train_map.txt").unlink()
        assert str(zips / "train_map.txt") in refusal(open_zip, zips, True, "no", 0, 1)

    def test_missing_member_is_refused_with_map_and_line(self, zips):
        lines = (zips / "train_map.txt").read_text().splitlines()
        lines[3] = "n01/absent.jpg\t0"
        (zips / "train_map.txt").write_text("\n".join(lines))
        message = refusal(open_zip, zips, True, "no", 0, 1)
        assert f"{zips / 'train_map.txt'}:4" in message and "n01/absent.jpg" in message

    def test_cut_archive_is_refused(self, zips):
        path = zips / "train.zip"
        path.write_bytes(path.read_bytes()[:-100])
        assert str(path) in refusal(open_zip, zips, True, "no", 0, 1)

    def test_label_that_only_validation_has_is_refused_with_its_line(self, zips):
        with open(zips / "validation_map.txt", "a") as stream:
            stream.write("n02/000.jpg\t2\n")
        assert f"{zips / 'validation_map.txt'}:6: label 2" in refusal(open_zip, zips, False, "no", 0, 1)

    def test_label_beyond_the_configured_classes_is_refused_with_its_line(self, zips):
        config = small_config(zips, DATA__ZIP_MODE=True, MODEL__NUM_CLASSES=1)
        assert f"{zips / 'train_map.txt'}:7: label 1" in refusal(build_dataset, config, True)


class TestCache:
    def warmed(self, zips, monkeypatch, cache, process, processes):
        ranges = []
        monkeypatch.setattr(zipreader.os, "pread", lambda _, size, offset: ranges.append((offset, offset + size)))
        open_zip(zips, True, cache, process, processes)
        return ranges

    def test_no_reads_nothing(self, zips, monkeypatch):
        assert self.warmed(zips, monkeypatch, "no", 0, 1) == []

    def test_full_reads_everything_in_each_process(self, zips, monkeypatch):
        assert self.warmed(zips, monkeypatch, "full", 1, 3) == [(0, (zips / "train.zip").stat().st_size)]

    def test_parts_of_all_processes_make_up_the_archive(self, zips, monkeypatch):
        parts = [self.warmed(zips, monkeypatch, "part", process, 3)[0] for process in range(3)]
        assert parts[0][0] == 0 and parts[2][1] == (zips / "train.zip").stat().st_size
        assert parts[0][1] == parts[1][0] and parts[1][1] == parts[2][0]

    def test_archive_larger_than_memory_is_left_on_disk(self, zips, monkeypatch):
        monkeypatch.setattr(zipreader, "available_memory", lambda: 10)
        assert self.warmed(zips, monkeypatch, "full", 0, 1) == []


class TestReader:
    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_members_are_read_back(self, tmp_path, method):
        members = {f"{number}.bin": os.urandom(number * 100) for number in range(5)}
        names = list(members)[::-1]
        reader = ZipReader(archive(tmp_path / "a.zip", members, method), names)
        assert [reader.read(position) for position in range(5)] == [members[name] for name in names]

    def test_copy_in_another_process_reads_by_itself(self, tmp_path):
        reader = ZipReader(archive(tmp_path / "a.zip", {"a": b"data"}), ["a"])
        copy = pickle.loads(pickle.dumps(reader))
        reader._stream.close()
        assert copy.read(0) == b"data"

    def test_forked_readers_do_not_disturb_each_other(self, tmp_path):
        members = {str(number): os.urandom(3000) for number in range(200)}
        reader = ZipReader(archive(tmp_path / "a.zip", members, zipfile.ZIP_DEFLATED), list(members))
        expected = list(members.values())

        def read_all(seed):
            order = np.random.RandomState(seed).permutation(np.repeat(np.arange(200), 10))
            os._exit(0 if all(reader.read(int(index)) == expected[index] for index in order) else 1)

        workers = [multiprocessing.get_context("fork").Process(target=read_all, args=(seed,)) for seed in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_flipped_bit_is_found(self, tmp_path, method):
        path = archive(tmp_path / "a.zip", {"a": bytes(range(256)) * 4}, method)
        data = bytearray(path.read_bytes())
        data[60] ^= 4
        path.write_bytes(bytes(data))
        with pytest.raises(BadImage, match="damaged"):
            ZipReader(path, ["a"]).read(0)

    def test_header_that_is_no_header_is_found(self, tmp_path):
        path = archive(tmp_path / "a.zip", {"a": b"data"})
        path.write_bytes(b"XX" + path.read_bytes()[2:])
        with pytest.raises(BadImage, match="damaged"):
            ZipReader(path, ["a"]).read(0)

    def test_member_larger_than_the_limit_is_not_unpacked(self, tmp_path):
        path = archive(tmp_path / "a.zip", {"a": bytes(MAX_FILE_BYTES + 1)}, zipfile.ZIP_DEFLATED)
        with pytest.raises(BadImage, match="larger"):
            ZipReader(path, ["a"]).read(0)

    def test_member_that_unpacks_to_more_than_announced_is_damaged(self, tmp_path):
        path = archive(tmp_path / "a.zip", {"a": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
        reader = ZipReader(path, ["a"])
        reader._table["size"] = 1000
        assert len(reader._unpack(reader._table[0])) == 1001
        with pytest.raises(BadImage, match="checksum"):
            reader.read(0)


class TestMaps:
    @pytest.mark.parametrize(
        "line",
        [
            "no-label",
            "a.jpg\tcat",
            "a.jpg\t-1",
            "a.jpg\t1.5",
            "a.jpg\t1\t2",
            "\t1",
            "",
            "/etc/passwd\t0",
            "../a.jpg\t0",
            "a/../../b.jpg\t0",
            '["a.jpg"]',
            '["a.jpg", null]',
            "[broken",
            "[3, 0]",
        ],
    )
    def test_bad_line_is_refused_with_its_number(self, tmp_path, line):
        path = tmp_path / "map.txt"
        path.write_text(f"ok.jpg\t0\n{line}\nalso.jpg\t0\n")
        assert f"{path}:2" in refusal(read_map, path)

    def test_at_signs_and_spaces_belong_to_the_path(self, tmp_path):
        path = tmp_path / "map.txt"
        path.write_bytes(b"a@b/c d@.jpg\t3\r\n\n")
        images = read_map(path)
        assert images.paths == ["a@b/c d@.jpg"] and images.labels.tolist() == [3]

    @pytest.mark.parametrize("text", ["", "\n\n", "[]"])
    def test_empty_map_is_refused(self, tmp_path, text):
        path = tmp_path / "map.txt"
        path.write_text(text)
        assert str(path) in refusal(read_map, path)

    def test_map_that_is_not_text_is_refused(self, tmp_path):
        path = tmp_path / "map.txt"
        path.write_bytes(b"\xff\xfe\x00")
        assert str(path) in refusal(read_map, path)


class Test22k:
    PAIRS = [["fall11_whole/n01/000.jpg", 0], ["fall11_whole/n02/001.jpg", 21840], ["fall11_whole/n02/000.jpg", 21840]]

    @pytest.fixture
    def root(self, folders, tmp_path):
        (tmp_path / "fall11_whole").symlink_to(folders / "train")
        (tmp_path / MAP_22K.format("val")).write_text(json.dumps(self.PAIRS[:1]))
        return tmp_path

    @pytest.mark.parametrize("form", ["json list", "json lines", "tabs"])
    def test_every_form_of_map_is_read(self, root, form):
        lines = {
            "json list": json.dumps(self.PAIRS),
            "json lines": "\n".join(json.dumps(pair) for pair in self.PAIRS),
            "tabs": "\n".join(f"{path}\t{label}" for path, label in self.PAIRS),
        }
        (root / MAP_22K.format("train")).write_text(lines[form])
        dataset = build_dataset(small_config(root, DATA__DATASET="imagenet22K"), training=True)
        assert len(dataset) == 3 and len(dataset.classes) == 21841
        assert [dataset[index][1] for index in range(3)] == [0, 21840, 21840]
        assert dataset.classes[0] == "n01" and dataset.classes[21840] == "n02" and dataset.classes[5] == "5"

    def test_validation_map_is_read_and_has_the_same_classes(self, root):
        (root / MAP_22K.format("train")).write_text(json.dumps(self.PAIRS))
        assert open_22k(root, False).classes == open_22k(root, True).classes and len(open_22k(root, False)) == 1

    def test_missing_map_is_refused_by_its_official_name(self, tmp_path):
        assert "ILSVRC2011fall_whole_map_train.txt" in refusal(open_22k, tmp_path, True)

    def test_broken_json_is_refused_by_file(self, root):
        path = root / MAP_22K.format("train")
        path.write_text(json.dumps(self.PAIRS)[:-5])
        assert str(path) in refusal(open_22k, root, True)

    def test_zip_mode_is_refused(self, root):
        with pytest.raises(Refusal) as caught:
            build_dataset(small_config(root, DATA__DATASET="imagenet22K", DATA__ZIP_MODE=True), True)
        assert caught.value.code == EXIT_USAGE
