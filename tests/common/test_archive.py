# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Archives: one reading of a file, and a memory of its own size whatever it claims."""

import io
import os
import pickle
import struct
import zipfile

import pytest
import torch

from common import archive
from common.archive import DamagedFile, read_archive
from common.files import NotRegular, open_regular, read_regular
from tests.peak_memory import REFUSAL_SPARE, peak_of


def saved(value, path):
    torch.save(value, path)
    return path


def with_pickle(path, pickled, **members):
    """An archive as torch.save writes it, with a pickle of our own."""
    with zipfile.ZipFile(path, "w") as writer:
        writer.writestr("archive/data.pkl", pickled)
        for name, contents in members.items():
            writer.writestr(f"archive/data/{name[1:]}", contents)
    return path


def rebuilt(storage, size, stride, offset=0):
    """The pickle of one tensor; `storage`: (name, how many floats it is said to hold)."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return ("storage", torch.FloatStorage, storage[0], "cpu", storage[1])

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump({"model": Tensor()})
    return stream.getvalue()


def test_everything_that_torch_saves_of_plain_data_is_read_equal(tmp_path):
    tensor = torch.arange(24.0).reshape(4, 6)
    value = {
        "transposed": tensor.t(),
        "part": tensor[1:, ::2],
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 3),
        "half": torch.ones(3, dtype=torch.float16),
        "brain": torch.ones(3, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "numbers": [0, -1, 255, 65536, -(2**31), 2**40, -(2**63), 1e-300, float("inf")],
        "texts": ("", "ü\ud800", None, True, False, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        5: torch.nn.Linear(2, 2).state_dict(),
    }
    read = read_archive(saved(value, tmp_path / "a.pth")).contents
    assert list(read) == list(value) and type(read[5]) is dict
    for name in ("transposed", "part", "scalar", "empty", "half", "brain", "mask", "parameter"):
        assert read[name].dtype == value[name].dtype and torch.equal(read[name], value[name]), name
    assert (read["numbers"], read["texts"]) == (value["numbers"], value["texts"])
    assert torch.equal(read[5]["weight"], value[5]["weight"])


def two_directories(first, second):
    """A file that holds two archives: readers that begin at its end and at its beginning see another one each."""
    end = bytearray(second)
    count, _, offset = struct.unpack_from("<HLL", end, len(end) - 12)
    del count
    struct.pack_into("<L", end, len(end) - 6, offset)
    return bytes(first) + bytes(end)


def test_file_with_two_directories_is_refused(tmp_path):
    one, other = (saved({"a": torch.full((3,), value)}, tmp_path / f"{value}").read_bytes() for value in (1.0, 2.0))
    (tmp_path / "both.pth").write_bytes(two_directories(one, other))
    with pytest.raises(DamagedFile, match="directory is damaged|overlap|disagree"):
        read_archive(tmp_path / "both.pth")
    (tmp_path / "after.pth").write_bytes(one + b"PK")
    with pytest.raises(DamagedFile, match="truncated, or not a file"):
        read_archive(tmp_path / "after.pth")


def test_members_that_overlap_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as writer:
        writer.writestr("archive/data.pkl", pickle.dumps({}, 2))
        writer.writestr("archive/data/0", bytes(100))
        writer.filelist.append(writer.filelist[-1])
    with pytest.raises(DamagedFile, match="overlap"):
        read_archive(path)


BOMBS = {
    "stride of zero": (rebuilt(("0", 1), (1 << 30,), (0,)), {"_0": bytes(4)}, "more than the file holds"),
    "shape beyond the storage": (rebuilt(("0", 1), (1 << 30,), (1,)), {"_0": bytes(4)}, "more than the file holds"),
    "offset beyond the storage": (rebuilt(("0", 1), (1,), (1,), 1), {"_0": bytes(4)}, "more than the file holds"),
    "negative stride": (rebuilt(("0", 2), (2,), (-1,), 1), {"_0": bytes(8)}, "an invalid size"),
    "storage that is smaller than it says": (rebuilt(("0", 1 << 30), (1 << 20,), (1,)), {"_0": bytes(4)}, "more than"),
    "storage that is not there": (rebuilt(("9", 1), (1,), (1,)), {"_0": bytes(4)}, "a missing storage"),
    "bytearray": (b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R.", {}, "__builtin__.bytearray: only plain"),
    "bytes of protocol 5": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b".", {}, "not a valid pickle"),
    "memo far away": (b"\x80\x02]r\xff\xff\xff\xff.", {}, ""),
    "nested shared lists": (
        b"\x80\x02]" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(60)) + b".",
        {},
        "deeper",
    ),
    "list in itself": (b"\x80\x02]q\x00h\x00a.", {}, "deeper"),
    "shared lists side by side": (
        b"\x80\x02](" + b"N" * 9000 + b"eq\x00](" + b"h\x00" * 9000 + b"e.",
        {},
        "more than 1000000 values",
    ),
    "tuple as a key": (b"\x80\x02}" + b")" + b"q\x00h\x00\x86" * 60 + b"Ns.", {}, ""),  # left out
    "operations without end": (b"\x80\x02" + b"]" * (1 << 20) + b".", {}, "instructions"),
    "pickle that is cut off": (b"\x80\x02X\xff\xff\xff\x7fabc", {}, "not a valid pickle"),
    "number of a million digits": (b"\x80\x02I" + b"9" * 1_000_000 + b"\n.", {}, "not a valid pickle"),
    "nothing on the stack": (b"\x80\x02.", {}, "not a valid pickle"),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.timeout(120)  # one that hangs fails
def test_bomb_is_refused_in_bounded_memory(tmp_path, name):
    pickled, members, said = BOMBS[name]
    path = with_pickle(tmp_path / "bomb.pth", pickled, **members)
    peak, refusal = peak_of(lambda: refusal_of(path))
    assert said in refusal and bool(said) == bool(refusal)
    assert peak < 2 * path.stat().st_size + REFUSAL_SPARE


@pytest.mark.parametrize("weights", [1 << 21, 1])
def test_larger_file_may_have_more_instructions(tmp_path, weights):
    path, values = tmp_path / "many.pth", [index / 7 for index in range(400_000)]
    torch.save({"weights": torch.zeros(weights), "values": values}, path)
    if weights == 1:
        assert refusal_of(path) == "it has more than 300000 instructions"
    else:
        assert read_archive(path).contents["values"] == values


def refusal_of(path):
    try:
        read_archive(path)
    except DamagedFile as error:
        return str(error)
    return ""


def test_checkpoint_of_three_times_the_tensors_of_swin_l_is_read(tmp_path):
    names = [f"layers.2.blocks.{block}.attn.qkv.weight" for block in range(3 * 329)]
    state = {part: {f"{part}___{name}": torch.zeros(1) for name in names} for part in "12345678"}  # moments, settings
    assert len(read_archive(saved(state, tmp_path / "a.pth")).contents) == 8


def test_many_views_of_one_storage_are_refused(tmp_path):
    storage = torch.zeros(1000)
    with pytest.raises(DamagedFile, match="together are larger than the file"):
        read_archive(saved({str(index): storage[:] for index in range(100)}, tmp_path / "a.pth"))


@pytest.mark.parametrize("kind", ["sparse", "quantised", "complex", "module", "meta"])
def test_what_is_no_dense_tensor_of_numbers_is_refused(tmp_path, kind):
    values = {
        "sparse": lambda: torch.eye(2).to_sparse(),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
        "complex": lambda: torch.zeros(2, dtype=torch.complex64),
        "module": lambda: torch.nn.Linear(1, 1),
        "meta": lambda: torch.zeros(2, device="meta"),
    }
    with pytest.raises(DamagedFile, match="only plain data is read"):
        read_archive(saved({"a": values[kind]()}, tmp_path / "a.pth"))


def test_name_that_leads_to_no_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in (tmp_path / "pipe", tmp_path / "folder", "/dev/zero"):
        with pytest.raises(DamagedFile, match="not a regular file"):
            read_archive(name)
        for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC):
            with pytest.raises(NotRegular):
                os.close(open_regular(name, flags))


def test_file_larger_than_the_memory_that_is_left_is_refused_before_it_is_read(tmp_path, monkeypatch):
    with open(tmp_path / "large.pth", "wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(DamagedFile, match="bytes, more than"):
        read_archive(tmp_path / "large.pth")
    monkeypatch.setattr(archive, "available_memory", lambda: 10)
    with pytest.raises(DamagedFile, match="more than 10"):
        read_archive(saved({}, tmp_path / "small.pth"))


def test_file_that_shrinks_while_it_is_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"abc")
    real = os.fstat
    monkeypatch.setattr("common.files.os.fstat", lambda fd: os.stat_result([*real(fd)[:6], 5, *real(fd)[7:10]]))
    with pytest.raises(OSError, match="ended after 3 of 5 bytes"):
        read_regular(tmp_path / "a", 10)
