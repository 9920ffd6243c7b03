# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Shards: the samples of the folder in its order, packing that goes on, and nothing believed unchecked."""

import json
import logging
import os
import pickle
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import accelerator
from common import files
from common.errors import EXIT_DATA, EXIT_RESOURCE, EXIT_USAGE, Refusal
from dataset import pack
from dataset.build_ipu import build_dataset
from dataset.decode import BadImage
from dataset.image_folder import open_split
from dataset.prepare import main as prepare
from dataset.samples import DataError
from dataset.shards import MANIFEST, RECORD, ShardedImages
from tests.backend import DEVICE
from tests.data_sets import encoded, photo, small_config, write_folders
from tests.dataset.test_build_ipu import options_of, read, same

COUNTS = {"train": {"a": 14, "b": 13}, "validation": {"a": 5, "b": 4}}
SPLITS = (("train", True), ("validation", False))


@pytest.fixture(scope="module", autouse=True)
def device():
    accelerator.select(DEVICE)
    yield
    accelerator._selected = None


def shards(source: Path, out: Path) -> Path:
    prepare(["shards", "--source", str(source), "--out", str(out)])
    return out


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(pack, "SHARD_IMAGES", 4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return write_folders(tmp_path_factory.mktemp("images"), COUNTS)


@pytest.fixture(scope="module")
def packed(folders, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "SHARD_IMAGES", 4)
        return shards(folders, tmp_path_factory.mktemp("out") / "shards")


@pytest.fixture
def root(packed, tmp_path) -> Path:
    """Shards that a test may damage."""
    for file in packed.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


class TestSamples:
    @pytest.mark.parametrize("split, training", SPLITS)
    def test_files_are_kept_bit_for_bit_in_the_order_of_the_folder(self, folders, packed, split, training):
        ours, theirs = ShardedImages(packed, split), open_split(folders, training)
        assert ours.classes == theirs.classes and ours.labels.tolist() == theirs.labels.tolist()
        for index in range(len(theirs)):
            assert ours.relative(index) == theirs.relative(index) and ours.read(index) == theirs.read(index)

    @pytest.mark.parametrize("split, training", SPLITS)
    def test_samples_are_those_of_the_folder(self, folders, packed, split, training):
        ours, theirs = (build_dataset(small_config(place), training) for place in (packed, folders))
        assert ours.classes == theirs.classes and len(ours) == len(theirs)
        for index in range(len(theirs)):
            image, label = ours.sample(3, index)
            assert torch.equal(image, theirs.sample(3, index)[0]) and label == theirs.sample(3, index)[1]

    @pytest.mark.parametrize(
        "mode, workers", [*(("sync", count) for count in (0, 1, 2, 5)), ("async", 0), ("rebatched", 2)]
    )
    @pytest.mark.filterwarnings("ignore:This DataLoader will create 5 worker processes")
    def test_every_loader_goes_on_inside_an_epoch_with_the_batches_of_the_folder(self, folders, packed, mode, workers):
        expected = read(small_config(folders), options_of(accumulation=4), epochs=2)
        config = small_config(packed, DATA__LOADER=mode, DATA__NUM_WORKERS=workers)
        found = read(config, options_of(accumulation=4), epochs=2, start_step=1)
        assert len(found) == 5 and same(found, expected[1:])

    @pytest.mark.parametrize("process", [0, 1])
    def test_each_of_two_processes_reads_what_it_reads_from_the_folder(self, folders, packed, process):
        ours, theirs = (
            read(small_config(place), options_of(1, 2, 1, process, processes=2), start_step=1)
            for place in (packed, folders)
        )
        assert len(theirs) == 2 and same(ours, theirs)

    def test_split_of_evaluation_is_the_same(self, folders, packed):
        ours, theirs = (
            read(small_config(place, TEST__BATCH_SIZE=4), options_of(), training=False) for place in (packed, folders)
        )
        assert len(ours) == 3 and same(ours, theirs)

    def test_unpickled_data_set_reads_the_same(self, packed):
        images = ShardedImages(packed, "train")
        copy = pickle.loads(pickle.dumps(images))
        assert len(pickle.dumps(images)) < 4096  # it takes the index along as a place, not as a copy
        assert [copy.read(index) for index in range(27)] == [images.read(index) for index in range(27)]
        assert copy.name(26) == images.name(26) and copy.labels.tolist() == images.labels.tolist()

    def test_shards_are_tar_archives_that_give_the_folder_back(self, folders, packed, tmp_path):
        for shard in sorted(packed.glob("train-*.tar")):
            with tarfile.open(shard) as archive:
                archive.extractall(tmp_path)
        found = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.jpg"))
        assert found == sorted(path.relative_to(folders / "train") for path in (folders / "train").rglob("*.jpg"))
        assert all((tmp_path / name).read_bytes() == (folders / "train" / name).read_bytes() for name in found)

    def test_names_that_are_long_or_no_text_are_kept(self, tmp_path):
        write_folders(tmp_path / "in", {"train": {"a": 1}, "validation": {"a": 1}})
        for name in (b"x" * 200 + b".jpg", b"\xff\xfe.jpg", "größe\n.jpg".encode()):
            with open(os.path.join(os.fsencode(tmp_path / "in" / "train" / "a"), name), "wb") as stream:
                stream.write(encoded(photo(1)))
        ours, theirs = (
            ShardedImages(shards(tmp_path / "in", tmp_path / "out"), "train"),
            open_split(tmp_path / "in", True),
        )
        assert [ours.relative(index) for index in range(4)] == [theirs.relative(index) for index in range(4)]

    def test_class_without_images_is_refused_unless_the_configuration_allows_it(self, folders, tmp_path):
        write_folders(tmp_path / "in", {"train": {"a": 2, "b": 1}, "validation": {"a": 1}})
        out = shards(tmp_path / "in", tmp_path / "out")
        with pytest.raises(Refusal, match="no images of validation in b; DATA.ALLOW_EMPTY_CLASSES") as caught:
            build_dataset(small_config(out), training=False)
        assert caught.value.code == EXIT_DATA
        config = small_config(out, DATA__ALLOW_EMPTY_CLASSES=True)
        assert build_dataset(config, training=False).classes == ["a", "b"]


class TestPacking:
    def interrupted(self, monkeypatch, source, out, after):
        write, written = pack._write_shard, []

        def stopped(path, *rest):
            if len(written) == after:
                raise KeyboardInterrupt
            written.append(path.name)
            return write(path, *rest)

        monkeypatch.setattr(pack, "_write_shard", stopped)
        with pytest.raises(KeyboardInterrupt):
            shards(source, out)
        assert not out.exists()
        written.clear()
        monkeypatch.setattr(pack, "_write_shard", lambda path, *rest: written.append(path.name) or write(path, *rest))
        return written

    @pytest.mark.parametrize("after", [0, 1, 6, 8])
    def test_interrupted_packing_goes_on_where_it_was(self, monkeypatch, folders, packed, tmp_path, after):
        written = self.interrupted(monkeypatch, folders, tmp_path / "out", after)
        shards(folders, tmp_path / "out")
        assert len(written) == 7 + 3 - after
        assert {file.name: file.read_bytes() for file in packed.iterdir()} == {
            file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()
        }

    def test_shard_of_files_that_changed_meanwhile_is_made_again(self, monkeypatch, tmp_path):
        source = write_folders(tmp_path / "in", COUNTS)
        written = self.interrupted(monkeypatch, source, tmp_path / "out", 8)
        path = source / "train" / "a" / "005.jpg"  # in the second shard
        status = path.stat()
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        images = ShardedImages(shards(source, tmp_path / "out"), "train")
        assert written == ["train-00001.tar", "validation-00001.tar", "validation-00002.tar"]
        assert images.read(5) == path.read_bytes()

    def test_shards_of_a_source_that_had_more_images_do_not_stay(self, monkeypatch, tmp_path):
        source = write_folders(tmp_path / "in", COUNTS)
        self.interrupted(monkeypatch, source, tmp_path / "out", 7)
        for number in range(2, 14):
            (source / "train" / "a" / f"{number:03d}.jpg").unlink()
        out = shards(source, tmp_path / "out")
        assert sorted(file.name for file in out.glob("train-*")) == [f"train-0000{number}.tar" for number in range(4)]
        assert len(ShardedImages(out, "train")) == 15

    def test_leftovers_of_another_preparation_are_not_taken_for_shards(self, folders, packed, tmp_path):
        partial = tmp_path / "out.partial"
        (partial / "train").mkdir(parents=True)
        (partial / "train-00000.tar").write_bytes(b"something else")
        out = shards(folders, tmp_path / "out")
        assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in packed.iterdir())

    def test_what_is_there_is_kept_or_refused_but_never_overwritten(self, folders, root, tmp_path, caplog):
        before = {file.name: file.read_bytes() for file in root.iterdir()}
        with caplog.at_level(logging.INFO, "swin"):
            shards(folders, root)
        assert {file.name: file.read_bytes() for file in root.iterdir()} == before
        (tmp_path / ".prepared.json").unlink()
        with pytest.raises(Refusal, match="not overwritten"):
            shards(folders, root)

    def test_disk_that_gives_back_something_else_is_noticed(self, monkeypatch, folders, tmp_path):
        def damaging(descriptor):
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if path.endswith("train-00001.tmp"):
                with open(path, "r+b") as stream:
                    stream.seek(700)
                    stream.write(b"\0\1\2")

        monkeypatch.setattr(pack.os, "fsync", damaging)
        with pytest.raises(Refusal, match="train-00001.tmp does not hold what was written") as caught:
            shards(folders, tmp_path / "out")
        assert caught.value.code == EXIT_RESOURCE and not (tmp_path / "out").exists()

    def test_file_that_changes_while_it_is_packed_is_noticed(self, monkeypatch, tmp_path):
        source = write_folders(tmp_path / "in", {"train": {"a": 2}, "validation": {"a": 1}})
        verify = pack._verify
        monkeypatch.setattr(
            pack, "_verify", lambda *rest: (source / "train/a/001.jpg").write_bytes(b"") or verify(*rest)
        )
        with pytest.raises(Refusal, match="changed while it was packed"):
            shards(source, tmp_path / "out")

    def test_file_that_cannot_be_read_is_named(self, tmp_path):
        source = write_folders(tmp_path / "in", {"train": {"a": 2}, "validation": {"a": 1}})
        (source / "train" / "a" / "000.jpg").unlink()
        (source / "train" / "a" / "000.jpg").symlink_to("nowhere")
        with pytest.raises(Refusal, match="000.jpg cannot be read") as caught:
            shards(source, tmp_path / "out")
        assert caught.value.code == EXIT_DATA

    def test_source_is_required(self, tmp_path):
        with pytest.raises(Refusal, match="--source") as caught:
            prepare(["shards", "--out", str(tmp_path / "out")])
        assert caught.value.code == EXIT_USAGE

    def test_shards_grow_so_that_they_stay_few(self, monkeypatch, folders, tmp_path):
        monkeypatch.setattr(pack, "MOST_SHARDS", 2)
        out = shards(folders, tmp_path / "out")
        assert len(list(out.glob("train-*.tar"))) == 2 and len(ShardedImages(out, "train")) == 27


def refusal(root: Path, split: str = "train") -> Refusal:
    with pytest.raises(Refusal) as caught:
        ShardedImages(root, split)
    assert caught.value.code == EXIT_DATA and "\n" not in str(caught.value) and str(root) in str(caught.value)
    return caught.value


class TestDamage:
    def rewrite(self, root, change):
        """Changes the records of the training split, and its checksum, as somebody who means harm would."""
        records = np.fromfile(root / "train.index", RECORD)
        change(records)
        records.tofile(root / "train.index")
        manifest = json.loads((root / MANIFEST).read_text())
        manifest["splits"]["train"]["index_crc"] = zlib.crc32(records.tobytes())
        (root / MANIFEST).write_text(json.dumps(manifest))

    @pytest.mark.parametrize(
        "key, row, value",
        [
            ("offset", 3, -1),
            ("offset", 3, 1 << 20),
            ("offset", 3, (1 << 63) - 1),
            ("offset", 3, -(1 << 63)),
            ("size", 3, 1 << 20),
            ("size", 3, (1 << 32) - 1),
            ("shard", 3, 7),
            ("shard", 0, (1 << 32) - 1),
            ("label", 3, 2),
            ("label", 3, (1 << 32) - 1),
            ("name_end", 0, 0),
            ("name_end", 3, 1),
            ("name_end", 3, 1 << 62),
            ("name_end", 26, 1 << 30),
            ("name_end", 0, -(1 << 63)),
        ],
    )
    def test_index_that_lies_is_refused(self, root, key, row, value):
        def lie(records):
            records[key][row] = value

        self.rewrite(root, lie)
        refusal(root)

    @pytest.mark.parametrize("name", ["train.index", "train.names"])
    def test_index_with_a_flipped_bit_is_refused(self, root, name):
        data = bytearray((root / name).read_bytes())
        data[len(data) // 2] ^= 4
        (root / name).write_bytes(data)
        assert "checksum" in str(refusal(root))

    @pytest.mark.parametrize("name", ["train.index", "train.names", "train-00000.tar", "train-00006.tar"])
    @pytest.mark.parametrize("damage", ["cut", "empty", "missing", "pipe", "folder"])
    def test_file_that_is_cut_off_missing_or_no_file_is_refused(self, root, name, damage):
        data = (root / name).read_bytes()
        (root / name).unlink()
        if damage == "pipe":
            os.mkfifo(root / name)
        elif damage == "folder":
            (root / name).mkdir()
        elif damage != "missing":
            (root / name).write_bytes(data[: len(data) // 2 if damage == "cut" else 0])
        refusal(root)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "not json",
            "[]",
            "null",
            "7",
            '{"version": 1}',
            '{"version": 2, "classes": ["a"], "splits": {}}',
            '{"version": 1, "classes": ["a"], "splits": []}',
            '{"version": 1, "classes": ["a"], "splits": {"train": 3}}',
            "[" * 100_000,
            "\udcff",
        ],
    )
    def test_manifest_of_something_else_is_refused(self, root, text):
        (root / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
        refusal(root)

    @pytest.mark.parametrize("key, values", [
        ("images", [0, -1, 26, 28, 1 << 40, 1 << 70, True, None, "27", 27.0]),
        ("bytes", [0, -1, 1 << 62, 1 << 80, None, "x"]),
        ("index_crc", [0, -1, 1 << 90, None, []]),
        ("shards", [[], [1], ["train-00000.tar"] * 7, None, 7, [0] * 7, [1 << 70] * 7, [-1] * 7, [1] * 2000]),
    ])  # fmt: skip
    def test_manifest_that_lies_is_refused(self, root, key, values):
        sound = (root / MANIFEST).read_text()
        for value in values:
            manifest = json.loads(sound)
            manifest["splits"]["train"][key] = value
            (root / MANIFEST).write_text(json.dumps(manifest))
            refusal(root)

    @pytest.mark.parametrize("classes", [[], ["a"], [1, 2], "ab", None, {"a": 0}, ["a", "c"], ["b", "a"]])
    def test_classes_that_are_no_names_are_refused(self, root, classes):
        manifest = json.loads((root / MANIFEST).read_text())
        manifest["classes"] = classes
        (root / MANIFEST).write_text(json.dumps(manifest))
        refusal(root)

    def test_file_whose_checksum_does_not_match_is_a_bad_image(self, root, caplog):
        offset = int(np.fromfile(root / "train.index", RECORD)["offset"][5])
        with open(root / "train-00001.tar", "r+b") as stream:
            stream.seek(offset + 100)
            stream.write(b"\0\0\0\0\1")
        with pytest.raises(BadImage, match="checksum"):
            ShardedImages(root, "train").read(5)
        dataset = build_dataset(small_config(root), training=True)
        with caplog.at_level(logging.WARNING, "swin"):
            assert torch.equal(dataset.sample(0, 5)[0], dataset.sample(0, 6)[0])
        assert f"{root}/train-00001.tar@/a/005.jpg is damaged" in caplog.text
        with pytest.raises(DataError, match="train-00001.tar@/a/005.jpg"):
            build_dataset(small_config(root, DATA__BAD_IMAGES="fail"), training=True).sample(0, 5)

    def test_storage_that_fails_for_a_moment_is_asked_again(self, packed, monkeypatch):
        images, pread, failures = ShardedImages(packed, "train"), os.pread, [5, 5]  # EIO
        expected = images.read(0)

        def flaky(*arguments):
            if failures:
                raise OSError(failures.pop(), "Input/output error")
            return pread(*arguments)

        monkeypatch.setattr(os, "pread", flaky)
        monkeypatch.setattr(files.time, "sleep", lambda _: None)
        assert images.read(0) == expected
        failures += [5, 5, 5]
        with pytest.raises(BadImage, match="Input/output"):
            images.read(0)

    def test_names_are_escaped_in_messages(self, root):
        def rename(place: slice) -> None:
            text = bytearray((root / "train.names").read_bytes())
            text[place] = b"\x1b["
            (root / "train.names").write_bytes(text)
            manifest = json.loads((root / MANIFEST).read_text())
            manifest["splits"]["train"]["names_crc"] = zlib.crc32(text)
            (root / MANIFEST).write_text(json.dumps(manifest))

        rename(slice(2, 4))  # of a file
        assert build_dataset(small_config(root), True).name(0).isprintable()
        rename(slice(0, 2))  # of a class
        with pytest.raises(Refusal, match="calls class 0 'a'") as caught:
            build_dataset(small_config(root), True)
        assert str(caught.value).isprintable()

    def test_every_undecodable_file_that_the_folder_has_is_one_here(self, tmp_path):
        source = write_folders(tmp_path / "in", {"train": {"a": 3}, "validation": {"a": 1}})
        (source / "train" / "a" / "000.jpg").write_bytes(b"")
        (source / "train" / "a" / "001.jpg").write_bytes(b"no picture")
        ours, theirs = (
            build_dataset(small_config(place), True) for place in (shards(source, tmp_path / "out"), source)
        )
        for index in range(3):
            assert torch.equal(ours.sample(0, index)[0], theirs.sample(0, index)[0])
