# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Preparation of real data sets: what is written, and that nothing half-written is taken for a data set."""

import errno
import fcntl
import gzip
import hashlib
import io
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from common.errors import EXIT_BUSY, EXIT_DATA, EXIT_USAGE, Refusal
from dataset import prepare as module
from dataset.image_folder import open_split
from dataset.prepare import prepare, unpack_imagenette
from tests.data_sets import encoded, photo, write_folders

COMMAND = [sys.executable, "-m", "dataset.prepare"]
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(module.__file__).resolve().parent.parent))


def refusal(call, *arguments) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value


def digest(folder: Path) -> str:
    """Hash of the names and contents of all files."""
    sums = [
        f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "digits"
    prepare("digits", out)
    return out


class TestDigits:
    def test_all_1797_scans_of_10_classes_are_split_80_to_20_in_every_class(self, digits):
        training, validation = (open_split(digits, training) for training in (True, False))
        assert training.classes == validation.classes == [str(digit) for digit in range(10)]
        assert len(training) + len(validation) == 1797
        share = np.bincount(validation.labels) / (np.bincount(training.labels) + np.bincount(validation.labels))
        assert np.abs(share - 0.2).max() < 0.004

    def test_both_splits_together_are_scikit_learns_scans_each_once(self, digits):
        from sklearn.datasets import load_digits

        data = load_digits()
        written = sorted(
            (path.parent.name, np.asarray(Image.open(str(path))).tobytes()) for path in digits.rglob("*.png")
        )
        assert written == sorted(
            (str(label), np.rint(image * 255 / 16).astype(np.uint8).tobytes())
            for image, label in zip(data.images, data.target)
        )

    def test_split_is_fixed(self, digits, tmp_path):
        prepare("digits", tmp_path / "again")
        assert digest(tmp_path / "again") == digest(digits)

    def test_second_preparation_changes_nothing(self, digits):
        before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
        prepare("digits", digits)
        assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before

    def test_source_has_no_meaning_and_is_refused(self, tmp_path):
        assert refusal(prepare, "digits", tmp_path / "out", tmp_path).code == EXIT_USAGE


class TestOut:
    def test_folder_with_other_contents_is_not_overwritten(self, tmp_path):
        (tmp_path / "mine.txt").write_text("keep")
        error = refusal(prepare, "digits", tmp_path)
        assert error.code == EXIT_USAGE and str(tmp_path) in str(error)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_other_data_set_is_not_overwritten(self, digits, tmp_path):
        before = digest(digits)
        refusal(prepare, "zip", digits, digits)
        assert digest(digits) == before

    def test_file_at_out_is_not_overwritten(self, tmp_path):
        (tmp_path / "out").write_text("keep")
        refusal(prepare, "digits", tmp_path / "out")
        assert (tmp_path / "out").read_text() == "keep"

    def test_empty_folder_and_missing_parents_are_fine(self, tmp_path):
        (tmp_path / "a").mkdir()
        for out in (tmp_path / "a", tmp_path / "b" / "c" / "d"):
            prepare("digits", out)
            assert (out / "train").is_dir() and not out.with_name(f"{out.name}.partial").exists()

    def test_killed_preparation_leaves_no_data_set_and_is_made_good_by_the_next(self, digits, tmp_path):
        out = tmp_path / "out"
        victim = subprocess.Popen([*COMMAND, "digits", "--out", str(out)], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while victim.poll() is None and not list((tmp_path / "out.partial").glob("train/*/*")):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL and not out.exists()
        prepare("digits", out)
        assert digest(out) == digest(digits)

    def test_failed_preparation_leaves_nothing(self, tmp_path, monkeypatch):
        def fail_half_way(out, source):
            (out / "half").mkdir()
            raise Refusal("no")

        monkeypatch.setitem(module.PREPARERS, "digits", fail_half_way)
        refusal(prepare, "digits", tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_preparation_in_progress_elsewhere_is_left_alone(self, tmp_path):
        partial = tmp_path / "out.partial"
        partial.mkdir()
        (partial / "half").write_text("in progress")
        descriptor = os.open(str(partial), os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            assert refusal(prepare, "digits", tmp_path / "out").code == EXIT_BUSY
        finally:
            os.close(descriptor)
        assert (partial / "half").exists()


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path) -> Path:
    """A small Fashion-MNIST; the validation half is gzipped."""
    source = tmp_path / "idx"
    source.mkdir()
    generator = np.random.RandomState(0)
    for prefix, count, pack, suffix in (("train", 30, bytes, ""), ("t10k", 20, gzip.compress, ".gz")):
        images, labels = generator.randint(0, 256, (count, 28, 28)), np.arange(count) % 10
        (source / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (source / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))
    return source


class TestFashionMnist:
    def test_idx_files_become_folders_in_the_order_of_the_labels(self, fashion, tmp_path):
        prepare("fashion-mnist", tmp_path / "out", fashion)
        training, validation = (open_split(tmp_path / "out", training) for training in (True, False))
        assert (len(training), len(validation)) == (30, 20) and training.classes[0] == "0-t-shirt"
        assert training.labels.tolist() == sorted(np.arange(30) % 10)
        first = np.asarray(Image.open(str(tmp_path / "out" / "train" / "0-t-shirt" / "00000.png")))
        assert np.array_equal(first, module.read_idx(fashion / "train-images-idx3-ubyte")[0])

    def test_debian_folder_is_used_where_it_exists(self, fashion, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "DEBIAN_FASHION_MNIST", fashion)
        prepare("fashion-mnist", tmp_path / "out")
        assert len(open_split(tmp_path / "out", False)) == 20

    def test_download_is_torchvisions_and_leaves_no_archives(self, fashion, tmp_path, monkeypatch):
        def download(root, download):
            (Path(root) / "FashionMNIST").mkdir()
            (Path(root) / "FashionMNIST" / "raw").symlink_to(fashion)

        monkeypatch.setattr(module, "DEBIAN_FASHION_MNIST", tmp_path / "absent")
        monkeypatch.setattr(datasets, "FashionMNIST", download)
        prepare("fashion-mnist", tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".prepared.json", "train", "validation"]

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:-1],
            lambda data: b"",
            lambda data: b"\0\0\x0d" + data[3:],
            lambda data: data + b"x",
            lambda data: data[:6],
        ],
    )
    def test_damaged_file_is_refused_by_name(self, fashion, tmp_path, damage):
        path = fashion / "train-images-idx3-ubyte"
        path.write_bytes(damage(path.read_bytes()))
        error = refusal(prepare, "fashion-mnist", tmp_path / "out", fashion)
        assert error.code == EXIT_DATA and str(path) in str(error)

    def test_labels_that_do_not_fit_are_refused(self, fashion, tmp_path):
        (fashion / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(29)))
        assert refusal(prepare, "fashion-mnist", tmp_path / "out", fashion).code == EXIT_DATA

    def test_missing_file_is_refused_by_name(self, tmp_path):
        assert "train-images-idx3-ubyte" in str(refusal(prepare, "fashion-mnist", tmp_path / "out", tmp_path))


class TestDownloads:
    def test_cifar10_is_what_torchvision_gives(self, tmp_path, monkeypatch):
        class Fake:
            classes = ["airplane", "bird"]

            def __init__(self, root, train, download):
                assert download
                self.data = np.full((4 if train else 2, 32, 32, 3), 200 if train else 100, np.uint8)
                self.targets = [0, 1] * (2 if train else 1)

        monkeypatch.setattr(datasets, "CIFAR10", Fake)
        prepare("cifar10", tmp_path / "out")
        assert open_split(tmp_path / "out", True).labels.tolist() == [0, 0, 1, 1]
        written = Image.open(str(tmp_path / "out" / "validation" / "bird" / "00001.png"))
        assert written.size == (32, 32) and written.getpixel((0, 0)) == (100, 100, 100)

    def test_no_network_is_one_line_that_names_the_way_out(self, tmp_path, monkeypatch):
        def unreachable(*_, **__):
            raise urllib.error.URLError("Name or service not known")

        monkeypatch.setattr(datasets, "CIFAR10", unreachable)
        error = refusal(prepare, "cifar10", tmp_path / "out")
        assert error.code == EXIT_DATA and "--source" in str(error) and not (tmp_path / "out").exists()

    def test_imagenette_archive_with_another_checksum_is_refused(self, tmp_path):
        (tmp_path / "imagenette2-320.tgz").write_bytes(b"something else")
        error = refusal(prepare, "imagenette", tmp_path / "out", tmp_path)
        assert error.code == EXIT_DATA and "imagenette2-320.tgz" in str(error)

    def test_imagenette_members_land_in_their_classes_and_nowhere_else(self, tmp_path):
        picture = encoded(photo(0))
        members = {
            "imagenette2-320/train/n01440764/a.JPEG": picture,
            "imagenette2-320/val/n02102040/b.JPEG": picture,
            "imagenette2-320/noise.csv": b"x",
            "../../escape.JPEG": b"x",
            "/tmp/train/n01440764/abs.JPEG": b"x",
            "x/train/n01440764/../../../up.JPEG": b"x",
            "x/train/n01440764/..JPEG": b"x",
        }
        with tarfile.open(str(tmp_path / "a.tgz"), "w:gz") as archive:
            for name, data in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
            link = tarfile.TarInfo("x/train/n01440764/link.JPEG")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        out = tmp_path / "deep" / "out"
        unpack_imagenette(tmp_path / "a.tgz", out)
        files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
        assert files == ["a.tgz", "deep/out/train/n01440764/a.JPEG", "deep/out/validation/n02102040/b.JPEG"]

    @pytest.mark.parametrize(
        "data", [b"no archive", gzip.compress(b"no archive")[:20]], ids=["no archive", "cut off"]
    )  # not the bytes: they hold the time
    def test_damaged_archive_is_refused(self, tmp_path, data):
        (tmp_path / "a.tgz").write_bytes(data)
        assert refusal(unpack_imagenette, tmp_path / "a.tgz", tmp_path / "out").code == EXIT_DATA


@pytest.mark.parametrize(
    "name, source, out",
    [
        ("folder", "train", "train/out"),
        ("folder", "train", "link/a/out"),
        ("zip", ".", "train/out"),
        ("shards", ".", "validation/a/out"),
    ],
)
def test_out_among_the_images_that_are_read_is_refused(name, source, out, tmp_path):
    write_folders(tmp_path, {split: {"a": 2, "b": 2} for split in ("train", "validation")})
    (tmp_path / "link").symlink_to("train")
    before = sorted(tmp_path.rglob("*"))
    error = refusal(prepare, name, tmp_path / out, tmp_path / source)
    assert error.code == EXIT_USAGE and "--out is inside --source" in str(error)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["zip", "shards"])
def test_packed_data_may_lie_beside_the_splits(name, tmp_path):
    write_folders(tmp_path, {split: {"a": 2, "b": 2} for split in ("train", "validation")})
    prepare(name, tmp_path / "packed", tmp_path)
    assert (tmp_path / "packed").is_dir()


class TestZip:
    def test_maps_have_a_path_and_a_label_a_line(self, tmp_path):
        folders = write_folders(tmp_path / "in", {"train": {"a": 2, "b": 1}, "validation": {"a": 1, "b": 1}})
        prepare("zip", tmp_path / "out", folders)
        assert (tmp_path / "out" / "train_map.txt").read_text() == "a/000.jpg\t0\na/001.jpg\t0\nb/000.jpg\t1\n"
        assert (tmp_path / "out" / "validation_map.txt").read_text() == "a/000.jpg\t0\nb/000.jpg\t1\n"

    def test_same_folders_give_the_same_archive(self, tmp_path):
        folders = write_folders(tmp_path / "in", {"train": {"a": 2}, "validation": {"a": 1}})
        for out in ("one", "two"):
            prepare("zip", tmp_path / out, folders)
            times = {member.date_time for member in zipfile.ZipFile(str(tmp_path / out / "train.zip")).infolist()}
            assert times == {(1980, 1, 1, 0, 0, 0)}
        assert digest(tmp_path / "one") == digest(tmp_path / "two")

    def test_name_that_a_map_cannot_hold_is_refused(self, tmp_path):
        folders = write_folders(tmp_path / "in", {"train": {"a": 1}, "validation": {"a": 1}})
        (folders / "train" / "a" / "x\ty.jpg").write_bytes(encoded(photo(0)))
        assert refusal(prepare, "zip", tmp_path / "out", folders).code == EXIT_DATA

    def test_source_is_needed(self, tmp_path):
        assert "--source" in str(refusal(prepare, "zip", tmp_path / "out"))


def run_module(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *arguments], env=ENVIRONMENT, cwd=str(cwd), capture_output=True, text=True, check=False
    )


def test_command_prepares_and_says_where(tmp_path):
    done = run_module("digits", "--out", "with space/größe", cwd=tmp_path)
    assert done.returncode == 0 and "with space/größe" in done.stdout
    assert (tmp_path / "with space" / "größe" / "validation" / "9").is_dir()


def test_command_refuses_in_one_line_with_its_exit_code(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    done = run_module("digits", "--out", ".", cwd=tmp_path)
    assert done.returncode == EXIT_USAGE and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "argv, said",
    [
        (["digits"], "--out"),
        (["digit", "--out", "a"], "invalid choice: 'digit'"),
        (["digits", "--outt", "a", "--out", "b"], "did you mean --out"),
    ],
)
def test_bad_command_line_is_refused(argv, said):
    with pytest.raises(Refusal, match=said) as caught:
        module.main(argv)
    assert caught.value.code == EXIT_USAGE and "\n" not in str(caught.value)


class TestFolder:
    @pytest.fixture
    def photos(self, tmp_path):
        return write_folders(tmp_path, {"photos": {"many": 20, "few": 2, "comma, <b>": 5}}) / "photos"

    def split(self, out):
        return {
            name: {path.relative_to(out / name).as_posix() for path in (out / name).rglob("*.jpg")}
            for name in ("train", "validation")
        }

    def test_every_class_is_split_in_the_same_share_and_no_image_is_lost(self, photos, tmp_path):
        module.main(["folder", "--source", str(photos), "--out", str(tmp_path / "out"), "--validation-share", "0.3"])
        parts = self.split(tmp_path / "out")
        assert parts["train"] | parts["validation"] == {
            path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg")
        }
        counts = [sum(name.startswith(kind) for name in parts["validation"]) for kind in ("many", "few", "comma")]
        assert counts == [6, 1, 2] and not parts["train"] & parts["validation"]

    def test_split_depends_on_the_seed_and_of_other_classes_on_nothing(self, photos, tmp_path):
        for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
            if out == "b":
                shutil.copytree(photos / "many", photos / "another")
            module.main(["folder", "--source", str(photos), "--out", str(tmp_path / out), "--seed", seed])
        many = [{name for name in self.split(tmp_path / out)["validation"] if name.startswith("many")} for out in "abc"]
        assert many[0] == many[1] != many[2]

    @pytest.mark.parametrize("mode", ["symlink", "hardlink"])
    def test_links_take_no_room_and_are_read_like_copies(self, photos, tmp_path, monkeypatch, mode):
        monkeypatch.chdir(tmp_path)
        module.main(["folder", "--source", "photos", "--out", "out", "--link-mode", mode])
        folder = open_split(tmp_path / "out", training=True)
        for index in range(len(folder)):
            original, link = photos / folder.relative(index), Path(folder.name(index))
            assert link.is_symlink() == (mode == "symlink") and link.samefile(original)
            assert folder.read(index) == original.read_bytes()

    @pytest.mark.parametrize(
        "mode, number, said",
        [
            ("hardlink", errno.EXDEV, "it is on another file system; use --link-mode copy or symlink"),
            ("hardlink", errno.EMLINK, "Too many links; use --link-mode copy or symlink"),
            ("symlink", errno.EPERM, "Operation not permitted; use --link-mode copy"),
        ],
    )
    def test_links_that_the_file_system_lacks_name_the_other_modes(
        self, photos, tmp_path, monkeypatch, mode, number, said
    ):
        def no_link(source, target):
            raise OSError(number, os.strerror(number), source, None, target)

        monkeypatch.setitem(module.PLACERS, mode, no_link)
        out = tmp_path / "out"
        error = refusal(module.main, ["folder", "--source", str(photos), "--out", str(out), "--link-mode", mode])
        assert error.code == EXIT_USAGE and str(error).startswith(f"--link-mode {mode}: ") and str(error).endswith(said)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]

    def test_other_options_are_another_data_set_which_is_not_overwritten(self, photos, tmp_path):
        command = ["folder", "--source", str(photos), "--out", str(tmp_path / "out")]
        module.main(command)
        before = digest(tmp_path / "out")
        module.main(command)
        error = refusal(module.main, [*command, "--seed", "3"])
        assert error.code == EXIT_USAGE and "with validation_share 0.2, seed 3, link_mode copy" in str(error)
        assert digest(tmp_path / "out") == before

    def test_a_source_that_does_not_exist_is_refused_by_its_name(self, tmp_path):
        error = refusal(module.main, ["folder", "--source", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
        assert error.code == EXIT_DATA and f"{tmp_path / 'none'} cannot be listed" in str(error)

    def test_a_folder_inside_the_source_is_refused_and_nothing_is_left_in_it(self, photos):
        before = sorted(photos.rglob("*"))
        error = refusal(module.main, ["folder", "--source", str(photos), "--out", str(photos / "out")])
        assert "--out is inside --source" in str(error)
        assert sorted(photos.rglob("*")) == before

    @pytest.mark.parametrize(
        "argv, said",
        [
            (["folder"], "--source"),
            (["folder", "--validation-share", "1.0"], "between 0 and 1"),
            (["folder", "--link-mode", "move"], "invalid choice"),
            (["digits", "--seed", "3"], "--seed has no effect for digits"),
        ],
    )
    def test_options_without_sense_are_refused(self, argv, said, tmp_path):
        error = refusal(module.main, [*argv, "--out", str(tmp_path / "out")])
        assert error.code == EXIT_USAGE and said in str(error) and not (tmp_path / "out").exists()
