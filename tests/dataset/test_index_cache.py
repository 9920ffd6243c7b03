# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Lists of folder data sets that are kept: the same samples, every change is seen, nothing damaged is believed."""

import logging
import os
import pickle
import shutil
import stat
from pathlib import Path

import pytest

from common.errors import EXIT_DATA, Refusal
from dataset import index_cache
from dataset.build_ipu import build_dataset
from dataset.image_folder import ImageFolder, open_split
from tests.data_sets import small_config


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Where lists are kept: of any number of images, in folders that were made a moment ago."""
    monkeypatch.setattr(index_cache, "FEWEST", 1)
    monkeypatch.setattr(index_cache, "SETTLED", -(10**15))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path) -> Path:
    for name in (
        "train/cat/0.jpg",
        "train/cat/1.jpg",
        "train/dog/more/2.PNG",
        "train/dog/3.jpg",
        "train/dog/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def contents(root: Path, cache=None):
    folder = open_split(root, training=True, cache=cache)
    return [(folder.relative(index), folder.classes[label]) for index, label in enumerate(folder.labels)]


def kept(cache: Path) -> Path:
    [file] = cache.iterdir()
    return file


@pytest.fixture
def scans(monkeypatch):
    """One entry for each time that a folder is read."""
    read, done = index_cache.list_classes, []

    def counted(folder):
        done.append(folder)
        return read(folder)

    monkeypatch.setattr(index_cache, "list_classes", counted)
    return done


def test_kept_list_gives_what_reading_the_folder_gives(root, cache, scans, caplog):
    expected = contents(root)
    assert contents(root, cache) == expected and len(scans) == 2
    caplog.clear()
    assert contents(root, cache) == expected and len(scans) == 2
    assert "1 of .txt" in caplog.text  # files that are left out are told each time


def add_file(train):
    (train / "cat" / "9.jpg").touch()


def add_file_deeper(train):
    (train / "dog" / "more" / "9.jpg").touch()


def remove_file(train):
    (train / "cat" / "1.jpg").unlink()


def rename_file(train):
    (train / "cat" / "1.jpg").rename(train / "cat" / "7.jpg")


def move_file(train):
    (train / "cat" / "1.jpg").rename(train / "dog" / "1.jpg")


def add_class(train):
    (train / "fox").mkdir()
    (train / "fox" / "0.jpg").touch()


def rename_class(train):
    (train / "cat").rename(train / "ant")


def remove_class(train):
    shutil.rmtree(train / "cat")


def replace_class(train):
    """By a folder with the same times, as a copy that keeps them makes."""
    times = os.stat(train / "cat")
    shutil.rmtree(train / "cat")
    (train / "cat").mkdir()
    (train / "cat" / "5.jpg").touch()
    os.utime(train / "cat", ns=(times.st_atime_ns, times.st_mtime_ns))


def link_class_elsewhere(train):
    (train.parent / "other").mkdir()
    (train.parent / "other" / "8.jpg").touch()
    (train / "cat").rename(train.parent / "cats")
    (train / "cat").symlink_to(train.parent / "other")


@pytest.mark.parametrize(
    "change",
    [
        add_file,
        add_file_deeper,
        remove_file,
        rename_file,
        move_file,
        add_class,
        rename_class,
        remove_class,
        replace_class,
        link_class_elsewhere,
    ],
)
def test_change_is_seen(root, cache, scans, change):
    before = contents(root, cache)
    change(root / "train")
    assert contents(root, cache) == contents(root) != before
    assert contents(root, cache) == contents(root) and scans.count(root / "train") == 2 + 2  # kept anew, and used


def test_target_of_a_linked_class_is_watched(root, cache):
    (root / "train" / "cat").rename(root / "cats")
    (root / "train" / "cat").symlink_to(root / "cats")
    contents(root, cache)
    (root / "cats" / "9.jpg").touch()
    assert contents(root, cache) == contents(root) and len(contents(root)) == 5


def test_folder_that_changed_a_moment_before_is_not_kept(root, cache, monkeypatch):
    monkeypatch.setattr(index_cache, "SETTLED", 2_000_000_000)
    contents(root, cache)
    assert not cache.exists()


def test_folder_that_changes_while_it_is_read_is_not_kept(root, cache, monkeypatch):
    read = index_cache.list_classes

    def disturbed(folder):
        listing = read(folder)
        add_file(folder)
        return listing

    monkeypatch.setattr(index_cache, "list_classes", disturbed)
    contents(root, cache)
    assert not cache.exists()


def test_small_data_set_is_not_kept(root, cache, monkeypatch):
    monkeypatch.setattr(index_cache, "FEWEST", 5)
    contents(root, cache)
    assert not cache.exists()


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 11])
def test_damaged_list_is_not_used_wherever_it_is_damaged(root, cache, scans, step):
    expected = contents(root, cache)
    sound = kept(cache).read_bytes()
    for position in range(step, len(sound), 37):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << step % 8
        kept(cache).write_bytes(damaged)
        assert contents(root, cache) == expected


@pytest.mark.parametrize("length", [0, 1, 15, 16, 100, -1])
def test_list_that_is_cut_off_is_not_used(root, cache, length):
    expected = contents(root, cache)
    kept(cache).write_bytes(kept(cache).read_bytes()[:length])
    assert contents(root, cache) == expected == contents(root, cache)


def test_list_of_another_folder_is_not_used(root, cache, tmp_path):
    contents(root, cache)
    file = kept(cache)
    shutil.copytree(root / "train", tmp_path / "copy" / "train")
    (tmp_path / "copy" / "train" / "cat" / "0.jpg").unlink()
    expected = contents(tmp_path / "copy", cache)
    [other] = [entry for entry in cache.iterdir() if entry != file]
    other.write_bytes(file.read_bytes())
    assert contents(tmp_path / "copy", cache) == expected


def test_list_of_another_user_is_not_used(root, cache, scans, monkeypatch):
    contents(root, cache)
    monkeypatch.setattr(index_cache.os, "geteuid", lambda: 12345)
    owner = os.stat(kept(cache)).st_uid
    assert len(contents(root, cache)) == 4 and len(scans) == (1 if owner == 0 else 2)


def test_pipe_in_the_place_of_a_list_is_not_waited_for(root, cache):
    contents(root, cache)
    file = kept(cache)
    file.unlink()
    os.mkfifo(file)
    assert len(contents(root, cache)) == 4 and stat.S_ISREG(os.stat(file).st_mode)


def test_cache_that_cannot_be_written_is_told_and_harmless(root, cache, caplog):
    cache.write_text("a file, not a folder")
    with caplog.at_level(logging.INFO, "swin"):
        assert len(contents(root, cache)) == 4
    assert str(cache) in caplog.text and cache.read_text() == "a file, not a folder"


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the file itself is mapped here")
def test_list_is_read_as_it_was_checked_whatever_becomes_of_its_file(root, cache):
    names = [path for path, _ in contents(root, cache)]
    folder = open_split(root, training=True, cache=cache)
    copy = pickle.loads(pickle.dumps(folder))
    os.truncate(kept(cache), 0)
    later = pickle.loads(pickle.dumps(folder))
    for one in (folder, copy, later):
        assert [one.relative(index) for index in range(4)] == names


def test_classes_that_lack_a_folder_read_are_refused(root):
    with pytest.raises(Refusal, match="other classes") as caught:
        ImageFolder(root / "train", ["cat"])
    assert caught.value.code == EXIT_DATA


@pytest.mark.parametrize("value, place", [("auto", "home/swin_ipu"), ("here", "here"), ("", None)])
def test_configuration_names_the_place(tmp_path, monkeypatch, value, place):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    found = index_cache.cache_folder(small_config(tmp_path, DATA__INDEX_CACHE=value))
    assert found == (None if place is None else Path(place) if place == "here" else tmp_path / place)


def test_data_set_of_a_run_is_kept_where_the_configuration_says(root, cache):
    build_dataset(small_config(root, DATA__INDEX_CACHE=str(cache)), training=True)
    assert kept(cache).suffix == ".index"
