# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Checkpoints: what is saved loads, what is damaged is never used, and a save destroys nothing."""

import dataclasses
import errno
import io
import os
import pickle
import random
import stat
import zipfile
from pathlib import Path

import pytest
import timm
import torch

from common.errors import EXIT_CHECKPOINT, EXIT_DATA, EXIT_RESOURCE, Refusal
from tests.peak_memory import peak_of
from training import checkpoint
from training.progress import Progress


def state(update: int, **changes):
    generator = torch.Generator().manual_seed(update)
    return dict(
        {
            "model": {"head.weight": torch.randn(30, 20, generator=generator), "head.bias": torch.zeros(30)},
            "optimizer": {
                "ipu_state": {"Accl1___head.weight": torch.randn(30, 20, generator=generator)},
                "ipu_param": {},
                "state": {},
                "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1]}],
            },
            "rng_states": [[1, 2, 3]],
            "progress": dataclasses.asdict(Progress(update=update)),
            "config": "SEED: 0\n",
            "classes": ["a", "b"],
            "rng_device": "cpu",
            "training_images": 36,
        },
        **changes,
    )


def equal(left, right) -> bool:
    same = [left[field] == right[field] for field in ("progress", "config", "classes", "rng_states")]
    return torch.equal(left["model"]["head.weight"], right["model"]["head.weight"]) and all(same)


def test_saved_state_loads_equal(tmp_path):
    checkpoint.save(tmp_path, state(3), is_best=False)
    assert equal(checkpoint.load(tmp_path / "last.pth"), state(3))


def test_checkpoint_is_loaded_and_verified_in_less_memory_than_twice_its_size(tmp_path):
    checkpoint.save(tmp_path, state(1, model={"head.weight": torch.ones(8 << 20)}), is_best=False)
    peak, _ = peak_of(lambda: checkpoint.load(tmp_path / "last.pth"))
    assert peak < 2 * (tmp_path / "last.pth").stat().st_size


def test_saving_keeps_last_previous_and_best(tmp_path):
    for update, is_best in ((1, True), (2, False), (3, False)):
        checkpoint.save(tmp_path, state(update), is_best)
    updates = {path.name: checkpoint.load(path)["progress"]["update"] for path in tmp_path.iterdir()}
    assert updates == {"last.pth": 3, "previous.pth": 2, "best.pth": 1}


def test_damaged_last_checkpoint_gives_way_to_the_newest_good_one(tmp_path):
    for update in (1, 2, 3):
        checkpoint.save(tmp_path, state(update), is_best=update == 1)
    (tmp_path / "last.pth").write_bytes(b"")
    path, found = checkpoint.find(tmp_path)
    assert (path.name, found["progress"]["update"]) == ("previous.pth", 2)


def test_folder_with_only_damaged_checkpoints_is_refused(tmp_path):
    (tmp_path / "last.pth").write_bytes(b"nothing")
    with pytest.raises(Refusal) as caught:
        checkpoint.find(tmp_path)
    assert caught.value.code == EXIT_CHECKPOINT


def test_empty_folder_has_no_checkpoint_and_foreign_files_do_not_count(tmp_path):
    torch.save({"model": {}}, tmp_path / "swin_tiny_patch4_window7_224.pth")
    assert checkpoint.find(tmp_path) is None


def test_every_flipped_bit_is_found(tmp_path):
    """Padding, headers, time stamps and the digest itself included."""
    checkpoint.save(tmp_path, state(1), is_best=False)
    good = (tmp_path / "last.pth").read_bytes()
    chooser = random.Random(0)
    for position in [*(chooser.randrange(len(good)) for _ in range(150)), *range(len(good) - 50, len(good))]:
        data = bytearray(good)
        data[position] ^= 1 << chooser.randrange(8)
        (tmp_path / "last.pth").write_bytes(data)
        with pytest.raises(Refusal, match="cannot be used"):
            checkpoint.load(tmp_path / "last.pth")


def test_file_without_a_digest_is_read_where_it_is_of_the_first_format_and_refused_where_it_is_not(tmp_path):
    old = state(1)
    del old["training_images"], old["rng_device"]
    for name in ("skipped", "skipped_in_epoch", "skipped_in_row"):
        del old["progress"][name]
    torch.save(dict(old, format=1), tmp_path / "old.pth")
    assert equal(checkpoint.load(tmp_path / "old.pth"), old)
    torch.save(dict(state(1), format=2), tmp_path / "new.pth")
    with pytest.raises(Refusal, match="its digest is missing"):
        checkpoint.load(tmp_path / "new.pth")


def test_checkpoint_is_read_by_torch_and_timm_as_any_other(tmp_path):
    checkpoint.save(tmp_path, state(1), is_best=False)
    path = tmp_path / "last.pth"
    assert equal(torch.load(path, weights_only=True), state(1)) and zipfile.ZipFile(path).testzip() is None
    model = torch.nn.Module()
    model.head = torch.nn.Linear(20, 30)
    timm.models.load_checkpoint(model, str(path))
    assert torch.equal(model.head.weight, state(1)["model"]["head.weight"])


@pytest.mark.parametrize("kept", [0, 1, 0.3, 0.9, -10, -1])
def test_truncated_file_is_refused(tmp_path, kept):
    checkpoint.save(tmp_path, state(1), is_best=False)
    data = (tmp_path / "last.pth").read_bytes()
    size = int(kept * len(data)) if 0 < kept < 1 else kept
    (tmp_path / "last.pth").write_bytes(data[:size])
    with pytest.raises(Refusal, match="cannot be used"):
        checkpoint.load(tmp_path / "last.pth")


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run(tmp_path, legacy):
    path, marker = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"model": Payload(marker)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(Refusal, match="truncated, or not a file" if legacy else "holds posix.mkdir: only plain data"):
        checkpoint.load(path)
    path.write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(Refusal, match="cannot be used"):
        checkpoint.load(path)
    assert not marker.exists()


def test_compressed_archive_is_refused_before_it_unpacks(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
    with pytest.raises(Refusal, match="compressed"):
        checkpoint.load(path)


def test_checkpoint_with_a_weight_that_is_not_finite_is_refused(tmp_path):
    weights = {"head.weight": torch.tensor([1.0, float("nan")])}
    checkpoint.save(tmp_path, state(1, model=weights), is_best=False)
    with pytest.raises(Refusal, match="head.weight is not finite"):
        checkpoint.load(tmp_path / "last.pth")


def test_checkpoint_with_a_moment_that_is_not_finite_gives_way_to_an_older_one(tmp_path):
    checkpoint.save(tmp_path, state(1), is_best=False)
    poisoned = state(2)
    poisoned["optimizer"]["ipu_state"]["Accl1___head.weight"][3, 4] = float("inf")
    checkpoint.save(tmp_path, poisoned, is_best=True)
    _, found = checkpoint.find(tmp_path)
    assert found["progress"]["update"] == 1
    with pytest.raises(Refusal, match="optimizer.ipu_state.Accl1___head.weight is not finite"):
        checkpoint.load(tmp_path / "last.pth.damaged-1")


def test_damaged_checkpoint_is_kept_under_another_name_and_never_takes_the_place_of_a_good_one(tmp_path):
    for update in (1, 2):
        checkpoint.save(tmp_path, state(update), is_best=False)
    (tmp_path / "last.pth").write_bytes(b"damaged")
    checkpoint.find(tmp_path)
    checkpoint.save(tmp_path, state(3), is_best=False)
    assert (tmp_path / "last.pth.damaged-1").read_bytes() == b"damaged"
    updates = {name: checkpoint.load(tmp_path / name)["progress"]["update"] for name in ("last.pth", "previous.pth")}
    assert updates == {"last.pth": 3, "previous.pth": 1}


def test_last_checkpoints_are_kept_under_their_own_names_and_older_ones_deleted(tmp_path):
    for update in (1, 2, 3, 4):
        checkpoint.save(tmp_path, state(update), is_best=False, keep=2)
    assert checkpoint.kept(tmp_path) == ["update-00000003.pth", "update-00000004.pth"]
    for name in ("last.pth", "previous.pth", "update-00000004.pth"):
        (tmp_path / name).unlink()
    path, found = checkpoint.find(tmp_path)
    assert (path.name, found["progress"]["update"]) == ("update-00000003.pth", 3)


def test_run_begun_again_from_an_older_state_keeps_its_own_checkpoints_and_goes_on_from_them(tmp_path):
    for update in (7, 8, 9, 2, 3):
        checkpoint.save(tmp_path, state(update), is_best=False, keep=3)
    assert checkpoint.kept(tmp_path) == ["update-00000002.pth", "update-00000003.pth", "update-00000009.pth"]
    checkpoint.save(tmp_path, state(4), is_best=False, keep=3)
    assert checkpoint.kept(tmp_path) == [f"update-0000000{update}.pth" for update in (2, 3, 4)]


def test_damaged_last_checkpoint_gives_way_to_that_of_the_same_run(tmp_path):
    for update in (8, 9, 2, 3):
        checkpoint.save(tmp_path, state(update), is_best=False, keep=3)
    (tmp_path / "last.pth").unlink()
    (tmp_path / "last.pth").write_bytes(b"damaged")
    assert checkpoint.find(tmp_path)[1]["progress"]["update"] == 2


def test_file_whose_name_only_resembles_that_of_a_kept_checkpoint_is_left_alone(tmp_path):
    (tmp_path / "update-before-the-change.pth").write_bytes(b"mine")
    for update in (1, 2):
        checkpoint.save(tmp_path, state(update), is_best=False, keep=1)
    assert checkpoint.kept(tmp_path) == ["update-00000002.pth"]
    assert (tmp_path / "update-before-the-change.pth").read_bytes() == b"mine"


def test_nothing_is_deleted_before_the_new_file_was_read_back(tmp_path, monkeypatch):
    for update in (1, 2):
        checkpoint.save(tmp_path, state(update), is_best=False, keep=1)
    original = os.fsync

    def corrupting(descriptor):
        original(descriptor)
        os.pwrite(descriptor, b"what the disk made of it", 1000)

    monkeypatch.setattr(checkpoint.os, "fsync", corrupting)
    with pytest.raises(Refusal, match="the storage reports errors"):
        checkpoint.save(tmp_path, state(3), is_best=True, keep=1)
    monkeypatch.undo()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"last.pth", "previous.pth", "update-00000002.pth"}
    assert equal(checkpoint.load(tmp_path / "last.pth"), state(2))


@pytest.mark.parametrize(
    "number, said",
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "mount it writable"),
        (errno.EIO, "the storage reports errors"),
        (errno.EACCES, "permissions"),
    ],
)
def test_remedy_of_a_save_that_fails_is_that_of_its_cause(tmp_path, monkeypatch, number, said):
    def failing(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint.os, "fsync", failing)
    with pytest.raises(Refusal, match=f"{os.strerror(number)}; .*{said}"):
        checkpoint.save(tmp_path, state(1), is_best=False)
    assert list(tmp_path.iterdir()) == []


def test_save_is_done_again_after_a_passing_trouble_of_the_storage(tmp_path, monkeypatch):
    failures = [OSError(errno.EIO, "Input/output error")]
    original = os.fsync

    def failing_once(descriptor):
        if failures:
            raise failures.pop()
        original(descriptor)

    monkeypatch.setattr(checkpoint.os, "fsync", failing_once)
    checkpoint.save(tmp_path, state(1), is_best=False)
    assert equal(checkpoint.load(tmp_path / "last.pth"), state(1))


def test_fault_of_ours_in_a_save_is_not_called_one_of_the_disk(tmp_path):
    with pytest.raises(ZeroDivisionError):
        checkpoint.save(tmp_path, state(1, model={"a": Unsavable()}), is_best=False)


class Unsavable:
    def __reduce__(self):
        raise ZeroDivisionError


def test_full_disk_is_named_with_what_the_checkpoint_takes(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda *_: Full())
    with pytest.raises(Refusal, match=r"of 1\.2 MB cannot be saved.*No space left on device"):
        checkpoint.save(tmp_path, state(1, model={"head.weight": torch.zeros(300000)}), is_best=False)


def test_failing_save_keeps_the_old_checkpoint_and_says_so(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, state(1), is_best=False)

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", no_space)
    with pytest.raises(Refusal, match="No space left") as caught:
        checkpoint.save(tmp_path, state(2), is_best=True)
    assert caught.value.code == EXIT_RESOURCE
    assert equal(checkpoint.load(tmp_path / "last.pth"), state(1))
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]


def test_save_is_on_the_disk_before_and_after_it_gets_its_name(tmp_path, monkeypatch):
    events = []

    def noting(name, original):
        def wrapped(*args):
            events.append("folder" if name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode) else name)
            return original(*args)

        return wrapped

    monkeypatch.setattr(checkpoint.os, "fsync", noting("fsync", os.fsync))
    monkeypatch.setattr(checkpoint.os, "replace", noting("replace", os.replace))
    checkpoint.save(tmp_path, state(1), is_best=True)
    assert events == ["fsync", "replace", "replace", "folder"]


@pytest.mark.parametrize("call", range(4))
def test_killed_save_leaves_a_good_checkpoint(tmp_path, monkeypatch, call):
    """The process dies at the n-th rename or link of a save; whatever is on the disk then is enough to go on."""
    checkpoint.save(tmp_path, state(1), is_best=True)
    calls = []

    class Killed(BaseException):
        pass

    def dying(original):
        def wrapped(*args):
            calls.append(args)
            if len(calls) > call:
                raise Killed
            return original(*args)

        return wrapped

    monkeypatch.setattr(checkpoint.os, "replace", dying(os.replace))
    monkeypatch.setattr(checkpoint.os, "link", dying(os.link))
    with pytest.raises(Killed):
        checkpoint.save(tmp_path, state(2), is_best=True)
    monkeypatch.undo()
    checkpoint.remove_leftovers(tmp_path)
    _, found = checkpoint.find(tmp_path)
    assert found["progress"]["update"] in (1, 2)
    assert not list(tmp_path.glob(".*"))


def test_weights_of_another_architecture_are_refused_by_name_and_shape():
    model = torch.nn.Linear(3, 4)
    weights = {"weight": torch.zeros(4, 5), "extra": torch.zeros(1)}
    with pytest.raises(Refusal) as caught:
        checkpoint.load_weights(model, weights, Path("a.pth"))
    assert caught.value.code == EXIT_CHECKPOINT
    for said in ("a.pth", "bias is missing", "extra is not in the model", "weight is (4, 5), not (4, 3)"):
        assert said in str(caught.value)


@pytest.mark.parametrize("found, said", [(["a"], "1 classes"), (["a", "c"], "class 1 of the data set is c, but b")])
def test_data_with_other_classes_is_refused(found, said):
    with pytest.raises(Refusal, match=said) as caught:
        checkpoint.check_classes(Path("a.pth"), ["a", "b"], found)
    assert caught.value.code == EXIT_DATA


def test_foreign_file_is_told_from_a_damaged_one(tmp_path):
    torch.save({"model": {"head.weight": torch.zeros(2)}}, tmp_path / "official.pth")
    assert checkpoint.load_own(tmp_path / "official.pth") is None
    with pytest.raises(Refusal, match="not a checkpoint of this program"):
        checkpoint.load(tmp_path / "official.pth")
    with pytest.raises(Refusal, match="No such file") as caught:
        checkpoint.load_own(tmp_path / "none.pth")
    assert str(caught.value).count("none.pth") == 1


def test_numbered_classes_take_the_names_of_the_other_side(caplog):
    with caplog.at_level("INFO", logger="swin"):
        assert checkpoint.check_classes(Path("a.pth"), ["n00", "n01", "n02"], ["0", "1"]) == ["n00", "n01", "n02"]
    assert "has no class names" in caplog.text
    assert checkpoint.check_classes(Path("a.pth"), ["0", "1"], ["n00", "n01"]) == ["n00", "n01"]
    with pytest.raises(Refusal, match="3 classes"):
        checkpoint.check_classes(Path("a.pth"), ["n00", "n01"], ["0", "1", "2"])
