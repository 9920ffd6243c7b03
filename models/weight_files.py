# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Files of weights: zip and older files of torch.save, safetensors and ONNX, recognised by their contents.

Nothing in a file is executed, and sizes in it are compared with its length before they are used.
"""

import contextlib
import importlib.util
import json
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, Optional

import safetensors
import torch
from torch import Tensor

from common.archive import dense_tensor
from common.files import open_regular
from common.pickles import MAX_PICKLE_BYTES, BadPickle, Storage, read_pickle
from utils import one_line, reason

ZIP_START, OLD_START = b"PK\x03\x04", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
OLD_HEADERS = 3  # pickles before the contents: a magic number, a version, sizes of types
IN_FOLDER = "model.safetensors"  # the file of weights in a folder for Hugging Face or timm
NUMBERED = re.compile(r"_\d+$")  # a constant of an ONNX exporter
ONNX_VERSION, ONNX_NEXT = (
    0x08,
    b"\x12\x1a\x22\x28\x32\x3a\x42",
)  # tags of ModelProto's fields, in order
ENCRYPTED = 1  # flag bit of a zip archive's member

ReadStorage = Callable[[Storage], bytes]


class BadFile(Exception):
    """The file has no readable weights; the message is the reason, without the path."""


class Contents:
    """The contents of a file.

    Args:
        kind: of file.
        values: plain containers with tensors or `StoredTensor`s; `tensor` reads one.
        read: the bytes of a storage.
        size: of the file in bytes.
        metadata: of safetensors and ONNX.
    """

    def __init__(
        self, kind: str, values: Any, read: ReadStorage, size: int, metadata: Optional[Dict[str, str]] = None
    ) -> None:
        self.kind, self.values, self.metadata = kind, values, metadata or {}
        self._read = read
        self._room = 2 * size  # bytes for all tensors; tied weights count each time

    def tensor(self, name: str, stored: Any) -> Tensor:
        """The tensor stored under a name.

        Raises:
            BadFile: if it is larger than the file or its bytes are damaged, or all tensors together are too large.
        """
        if isinstance(stored, Tensor):
            return stored
        contents = bytearray(self._read(stored.storage))
        try:
            tensor = dense_tensor(stored, contents)
        except BadPickle as error:
            raise BadFile(f"its tensor {name} {error}") from error
        size = tensor.numel() * tensor.element_size()
        self._room -= size
        if self._room < 0:
            raise BadFile("its tensors together are larger than the file")
        return tensor.clone() if size < len(contents) else tensor  # a part would keep the whole storage


def weights_at(path: Path) -> Path:
    """The file of weights at a path, which may be a folder with the layout of Hugging Face or timm."""
    return path / IN_FOLDER if path.is_dir() else path


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Contents]:
    """The contents of a file of weights, or of the one in a folder, while the context is open.

    Raises:
        BadFile: for a file of another kind, or a damaged one.
    """
    try:
        if path.is_dir() and not weights_at(path).exists():
            raise BadFile(f"it is a folder without {IN_FOLDER}: name the file")
        path = weights_at(path)
        with open(open_regular(path), "rb") as stream:
            start = stream.read(len(OLD_START))
            stream.seek(0)
            if start.startswith(ZIP_START):
                with zipfile.ZipFile(stream) as archive:
                    yield _zipped(archive, os.fstat(stream.fileno()).st_size)
            elif start == OLD_START:
                yield _old(stream)
            elif _begins_safetensors(start, os.fstat(stream.fileno()).st_size):
                yield _safetensors(path)
            elif _begins_onnx(start):
                yield _onnx(stream)
            else:
                raise BadFile(_unknown(start))
    except BadPickle as error:
        raise BadFile(str(error)) from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError) as error:
        raise BadFile(one_line(reason(error)) or type(error).__name__) from error


def _unknown(start: bytes) -> str:
    if not start:
        return "it is empty"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page instead of the download"
    if start.startswith(b"\x89HDF"):
        return "it is an HDF5 file, as written by Keras: only PyTorch weights are read"
    if start.startswith(b"version http"):
        return "it is a pointer of Git LFS, not the file itself: git lfs pull fetches that"
    if start.startswith(b"\x80"):
        return "it is a pickle not written by torch.save"
    return "it is not a file of torch.save, safetensors or ONNX, or it is damaged"


def _zipped(archive: zipfile.ZipFile, size: int) -> Contents:
    """A file of torch.save since PyTorch 1.6: one folder with data.pkl and a member for each storage."""
    members = {member.filename: member for member in archive.infolist()}
    if any(name.rpartition("/")[2] == "constants.pkl" for name in members):
        raise BadFile("it is a TorchScript program, whose code is not run: save its state_dict() with torch.save")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        raise BadFile("its members are compressed, which torch.save never does")
    if any(member.flag_bits & ENCRYPTED for member in members.values()):
        raise BadFile("its members are encrypted")
    if sum(member.file_size for member in archive.infolist()) > size:
        raise BadFile("its members state more bytes than the file has")
    found = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(found) != 1:
        raise BadFile("it is a zip archive, but not of torch.save")
    folder = found[0][: -len("data.pkl")]
    if f"{folder}byteorder" in members and _member(archive, f"{folder}byteorder", 16) != b"little":
        raise BadFile("it was written on a big-endian machine")

    def read(storage: Storage) -> bytes:
        name = f"{folder}data/{storage.key}"
        if name not in members:
            raise BadFile(f"its storage {storage.key[:40]!r} is missing")
        return _member(archive, name, members[name].file_size)

    if members[found[0]].file_size > MAX_PICKLE_BYTES:
        raise BadFile(f"its pickle is larger than {MAX_PICKLE_BYTES >> 20} MiB")
    with archive.open(found[0]) as stream:
        values = read_pickle(stream, size)
        stream.read()  # to the end, where the checksum is verified
    return Contents("torch.save", values, read, size)


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A member of at most `limit` bytes; its checksum is verified when the last byte is read."""
    with archive.open(name) as stream:
        return stream.read(most + 1)


def _old(stream: BinaryIO) -> Contents:
    """A file of torch.save before PyTorch 1.6: pickles, followed by the storages in the order of their keys."""
    end = os.fstat(stream.fileno()).st_size
    headers = [read_pickle(stream, end) for _ in range(OLD_HEADERS)]
    if not isinstance(headers[-1], dict) or headers[-1].get("little_endian") is not True:
        raise BadFile("it was written on a big-endian machine")
    dtypes: Dict[str, str] = {}
    values = read_pickle(stream, end, lambda storage: dtypes.setdefault(storage.key, storage.dtype))
    places = {}
    for key in _keys(read_pickle(stream, end)):
        if key not in dtypes or key in places:
            raise BadFile(f"its storage {key[:40]!r} belongs to no tensor")
        count = int.from_bytes(stream.read(8), "little")
        size = count * _itemsize(dtypes[key])
        if size > end - stream.tell():
            raise BadFile(f"its storage {key[:40]!r} claims more bytes than the file has")
        places[key] = (stream.tell(), size)
        stream.seek(size, os.SEEK_CUR)

    def read(storage: Storage) -> bytes:
        if storage.key not in places or dtypes[storage.key] != storage.dtype:
            raise BadFile(f"its storage {storage.key[:40]!r} is missing")
        position, size = places[storage.key]
        stream.seek(position)
        return stream.read(size)

    return Contents("torch.save before PyTorch 1.6", values, read, end)


def _keys(keys: Any) -> Iterator[str]:
    if not isinstance(keys, list):
        raise BadFile("it does not list its storages")
    return (str(key) for key in keys)


def _begins_safetensors(start: bytes, size: int) -> bool:
    """Whether a file starts as in the format: eight bytes with the length of a JSON object, then the object."""
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _safetensors(path: Path) -> Contents:
    try:
        with safetensors.safe_open(str(path), "pt") as stream:
            metadata = dict(stream.metadata() or {})
            weights = {name: stream.get_tensor(name) for name in stream.keys()}
    except (safetensors.SafetensorError, json.JSONDecodeError, KeyError, RuntimeError, ValueError) as error:
        raise BadFile(f"its safetensors are damaged: {one_line(error)}") from error
    return Contents("safetensors", weights, lambda storage: b"", 0, metadata)


def _begins_onnx(start: bytes) -> bool:
    """Whether a file starts with the version of the ONNX format, followed by another field of its ModelProto."""
    return len(start) > 2 and start[0] == ONNX_VERSION and start[1] < 128 and start[2] in ONNX_NEXT


def _onnx(stream: BinaryIO) -> Contents:
    """The named initializers of an ONNX graph, without constants numbered by the exporter.

    Tensors in other files are refused.
    """
    if importlib.util.find_spec("onnx") is None:
        raise BadFile("it is an ONNX file, which needs the package onnx: pip install onnx")
    import onnx  # optional
    from google.protobuf.message import DecodeError  # comes with it

    if os.fstat(stream.fileno()).st_size > onnx.checker.MAXIMUM_PROTOBUF:
        raise BadFile("it is larger than ONNX files can be")
    try:
        model = onnx.load_model_from_string(stream.read())
        stored = {
            tensor.name: tensor
            for tensor in model.graph.initializer
            if "." in tensor.name or not NUMBERED.search(tensor.name)
        }
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in stored.values()):
            raise BadFile("its weights are in another file: save it with external_data=False")
        weights = {name: torch.from_numpy(onnx.numpy_helper.to_array(part).copy()) for name, part in stored.items()}
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise BadFile(f"its graph is damaged: {one_line(error)}") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return Contents("ONNX", weights, lambda storage: b"", 0, metadata)


def _itemsize(dtype: str) -> int:
    return torch.empty((), dtype=getattr(torch, dtype)).element_size()
