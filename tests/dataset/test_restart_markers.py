# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Shards with restart markers: nothing is lost, and the samples are those of the folder."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import accelerator
from common.errors import EXIT_DATA, EXIT_USAGE, Refusal
from dataset import native, restart_markers
from dataset.build_ipu import build_dataset
from dataset.decode import decode
from dataset.image_folder import open_split
from dataset.jpeg_parts import read_header
from dataset.prepare import main as prepare
from dataset.restart_markers import TOOL, with_restart_markers
from dataset.shards import ShardedImages
from tests.backend import DEVICE
from tests.data_sets import encoded, photo, small_config, write_folders
from tests.dataset.test_build_ipu import options_of, read, same

needs_tool = pytest.mark.skipif(shutil.which(TOOL) is None, reason=f"{TOOL} is not installed")
UNCHANGED = ("000.jpg", "001.png", "002.jpg", "003.jpg")  # truncated, no JPEG, CMYK, damaged


@pytest.fixture(scope="module", autouse=True)
def device():
    accelerator.select(DEVICE)
    native.library()  # made now, since tests replace the function that starts the compiler
    yield
    accelerator._selected = None


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    root = write_folders(
        tmp_path_factory.mktemp("images"), {"train": {"a": 6, "b": 13}, "validation": {"a": 3}}, (75, 60)
    )
    (root / "validation" / "b").mkdir()
    (root / "validation" / "b" / "0.jpg").write_bytes(encoded(photo(50, (75, 60)), progressive=True))
    folder = root / "train" / "a"
    (folder / "000.jpg").write_bytes((folder / "000.jpg").read_bytes()[:-200])
    (folder / "001.jpg").unlink()
    (folder / "001.png").write_bytes(encoded(photo(51), "PNG"))
    (folder / "002.jpg").write_bytes(encoded(photo(52).convert("CMYK")))
    (folder / "003.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return root


@pytest.fixture(scope="module")
def packed(folders, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "shards"
    prepare(["shards", "--source", str(folders), "--out", str(out), "--restart-markers"])
    return out


@needs_tool
class TestPacked:
    @pytest.mark.parametrize("split, training", [("train", True), ("validation", False)])
    def test_jpegs_get_markers_and_keep_their_pixels_and_other_files_their_bytes(
        self, folders, packed, split, training
    ):
        ours, theirs = ShardedImages(packed, split), open_split(folders, training)
        assert len(ours) == len(theirs) and ours.labels.tolist() == theirs.labels.tolist()
        for index in range(len(theirs)):
            before, after = theirs.read(index), ours.read(index)
            if training and index < len(UNCHANGED):
                assert theirs.name(index).endswith(UNCHANGED[index]) and after == before
            else:
                assert after != before and np.array_equal(np.asarray(decode(after)), np.asarray(decode(before)))
                header = read_header(after)
                assert native.library() is None or (header is not None and header.interval == 1)

    def test_what_was_rewritten_is_counted(self, folders, tmp_path, capsys):
        prepare(["shards", "--source", str(folders), "--out", str(tmp_path / "out"), "--restart-markers"])
        said = capsys.readouterr().out
        assert "train: restart markers in 15 of 19 files; the others are unchanged" in said
        assert "validation: restart markers in 4 of 4 files" in said

    @pytest.mark.parametrize("dtype", ["float", "uint8"])
    @pytest.mark.parametrize("training", [True, False])
    def test_samples_are_those_of_the_folder(self, folders, packed, training, dtype):
        ours, theirs = (
            build_dataset(small_config(place, DATA__INPUT_DTYPE=dtype), training) for place in (packed, folders)
        )
        for index in range(len(theirs)):
            image, label = ours.sample(3, index)
            assert torch.equal(image, theirs.sample(3, index)[0]) and label == theirs.sample(3, index)[1]

    @pytest.mark.parametrize("mode, workers", [("sync", 0), ("sync", 2), ("sync", 5), ("async", 0)])
    @pytest.mark.filterwarnings("ignore:This DataLoader will create 5 worker processes")
    def test_loaders_go_on_inside_an_epoch_with_the_batches_of_the_folder(self, folders, packed, mode, workers):
        expected = read(small_config(folders), options_of(accumulation=4), epochs=2)
        config = small_config(packed, DATA__LOADER=mode, DATA__NUM_WORKERS=workers)
        found = read(config, options_of(accumulation=4), epochs=2, start_step=1)
        assert len(found) == 3 and same(found, expected[1:])

    @pytest.mark.parametrize("process", [0, 1])
    def test_each_of_two_processes_reads_what_it_reads_from_the_folder(self, folders, packed, process):
        ours, theirs = (
            read(small_config(place), options_of(1, 2, 1, process, processes=2)) for place in (packed, folders)
        )
        assert len(theirs) == 2 and same(ours, theirs)

    def test_shards_without_markers_are_another_data_set(self, folders, packed):
        with pytest.raises(Refusal, match="not overwritten"):
            prepare(["shards", "--source", str(folders), "--out", str(packed)])


class TestTool:
    def test_missing_tool_is_refused_before_anything_is_written(self, folders, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(Refusal, match="needs jpegtran: install libjpeg-turbo-progs") as caught:
            prepare(["shards", "--source", str(folders), "--out", str(tmp_path / "out"), "--restart-markers"])
        assert caught.value.code == EXIT_DATA and not (tmp_path / "out").exists()

    @pytest.mark.parametrize("output, code", [(encoded(photo(2)), 0), (b"", 0), (encoded(photo(1)), 1), (None, 0)])
    def test_result_that_is_not_the_same_picture_with_markers_is_not_taken(self, monkeypatch, output, code):
        def instead(command, **_):
            if output is None:
                raise subprocess.TimeoutExpired(command, 1)
            return subprocess.CompletedProcess(command, code, output, b"")

        monkeypatch.setattr(restart_markers.subprocess, "run", instead)
        assert with_restart_markers(encoded(photo(1)), TOOL) is None

    def test_other_pixels_are_not_taken(self, monkeypatch):
        other = encoded(photo(2), restart_marker_blocks=1)
        monkeypatch.setattr(
            restart_markers.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, other, b"")
        )
        assert with_restart_markers(encoded(photo(1)), TOOL) is None
        assert with_restart_markers(encoded(photo(2)), TOOL) == other

    def test_flag_without_effect_is_refused(self, folders, tmp_path):
        with pytest.raises(Refusal, match="--restart-markers has no effect for zip") as caught:
            prepare(["zip", "--source", str(folders), "--out", str(tmp_path / "out"), "--restart-markers"])
        assert caught.value.code == EXIT_USAGE
