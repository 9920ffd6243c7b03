# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Reads files of torch.save as data only: nothing in them is executed, and all sizes are checked.

A file is read once, and the bytes that were checked are the ones used. Tensors are views of them, so a file takes no
more memory than its size, whatever sizes it claims.
"""

import io
import math
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, NamedTuple, Optional, Tuple, Union

import torch

from common import seal
from common.files import read_regular
from common.memory import available_memory
from common.pickles import BadPickle, StoredTensor, described, read_pickle
from common.zip_members import BadArchive, stored_members
from utils import reason

MAX_BYTES = 64 << 30  # a Swin-L with its optimizer takes 2.4 GB
MAX_DEPTH = 16
MAX_DIMENSIONS = 16
MAX_VALUES = 1_000_000
TOO_MUCH = f"it holds more than {MAX_VALUES} values, or nests them deeper than {MAX_DEPTH}"
PART = 1 << 18  # values of a tensor checked at once


class DamagedFile(Exception):
    """The file is damaged, or not a checkpoint of this program; the message says why."""


class Archive(NamedTuple):
    """The contents of a file."""

    contents: Any  # numbers, strings, None, lists, tuples, dicts and dense tensors on the CPU
    sealed: bool  # whether the file has a (verified) digest; see common/seal.py


def read_archive(path: Path) -> Archive:
    """The contents of a file written by torch.save, as data only.

    Verifies the digest of a sealed file, or else the checksums of the archive. torch.load checks neither, so flipped
    bits would change weights silently. Formats older than PyTorch 1.6 are refused, and so are compressed members, since
    a small file could unpack into a large one.

    Raises:
        DamagedFile: if the file cannot be read or its contents are not plain data.
    """
    try:
        view = memoryview(read_regular(path, _room()))
    except OSError as error:
        raise DamagedFile(reason(error)) from error
    sealed = seal.is_sealed(view)
    if sealed and not seal.is_intact(view):
        raise DamagedFile("its digest is wrong: it was changed or damaged after it was written")
    try:
        members = stored_members(view, seal.LENGTH if sealed else 0, checksums=not sealed)
        return Archive(_Contents(members, len(view)).read(), sealed)
    except (BadArchive, BadPickle) as error:
        raise DamagedFile(str(error)) from error


def _room() -> int:
    """Maximum size of a file in bytes."""
    available = available_memory()
    return MAX_BYTES if available is None else min(MAX_BYTES, available)


class _Contents:
    """The object stored in the members of an archive.

    Args:
        members: contents by name.
        size: bytes of the whole file.
    """

    def __init__(self, members: Mapping[str, memoryview], size: int) -> None:
        roots = [name[: -len("/data.pkl")] for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise BadArchive("it is not a file of torch.save, which has one data.pkl")
        self._members, self._root = members, roots[0]
        self._size = size
        self._room = 2 * size  # bytes for all tensors; tied weights count each time
        if bytes(members.get(f"{self._root}/byteorder", b"little")) != b"little":
            raise BadArchive("it is not little-endian")

    def read(self) -> Any:
        """The object: plain containers, numbers, strings and dense tensors.

        Raises:
            BadPickle: for anything else, and for too many or too deeply nested values.
        """
        pickled = io.BytesIO(self._members[f"{self._root}/data.pkl"])
        return plain(read_pickle(pickled, self._size), self._tensor)

    def _tensor(self, stored: StoredTensor) -> torch.Tensor:
        contents = self._members.get(f"{self._root}/data/{stored.storage.key}")
        if contents is None:
            raise BadPickle("it refers to a missing storage")
        try:
            tensor = dense_tensor(stored, contents)
        except BadPickle as error:
            raise BadPickle(f"one of its tensors {error}") from error
        self._room -= tensor.numel() * tensor.element_size()
        if self._room < 0:
            raise BadPickle("its tensors together are larger than the file")
        return tensor


def plain(value: Any, tensor: Callable[[StoredTensor], torch.Tensor]) -> Any:
    """A copy of a result of `read_pickle` with tensors; shared containers are copied each time they occur.

    Raises:
        BadPickle: for anything but plain containers, numbers, strings and tensors, and for too many or too deep values.
    """
    count, height = _extent(value, 0, {})
    if count > MAX_VALUES or height > MAX_DEPTH:
        raise BadPickle(TOO_MUCH)
    return _copied(value, tensor)


def _extent(value: Any, depth: int, known: Dict[int, Tuple[int, int]]) -> Tuple[int, int]:
    """The number of values in a value, including itself, and its levels of containers; visits shared ones once.

    Args:
        depth: levels around the value.
        known: results by the id of a container.
    """
    if type(value) not in (list, tuple, dict):
        return 1, 0
    if depth > MAX_DEPTH:
        raise BadPickle(TOO_MUCH)
    if id(value) not in known:
        items = value.values() if type(value) is dict else value
        parts = [_extent(item, depth + 1, known) for item in items]
        known[id(value)] = 1 + sum(count for count, _ in parts), 1 + max((height for _, height in parts), default=0)
    return known[id(value)]


def _copied(value: Any, tensor: Callable[[StoredTensor], torch.Tensor]) -> Any:
    kind = type(value)
    if kind is StoredTensor:
        return tensor(value)
    if kind is dict:
        return {key: _copied(item, tensor) for key, item in value.items()}
    if kind in (list, tuple):
        return kind([_copied(item, tensor) for item in value])
    if value is None or kind in (str, int, float, bool):
        return value
    raise BadPickle(f"it holds {described(value)}: only plain data is read")


def dense_tensor(stored: StoredTensor, contents: Union[memoryview, bytearray]) -> torch.Tensor:
    """The tensor described by a pickle, as a view of the bytes of its storage.

    Raises:
        BadPickle: if it extends beyond its storage, or has more values.
    """
    storage, offset, size, stride = stored
    sound = type(size) is type(stride) is tuple and len(size) == len(stride) <= MAX_DIMENSIONS
    numbers = (offset, storage.first, *size, *stride) if sound else (None,)
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise BadPickle("has an invalid size, stride or offset")
    dtype = getattr(torch, storage.dtype)
    values, count = len(contents) // torch.empty(0, dtype=dtype).element_size(), math.prod(size)
    if not count:
        return torch.empty(0, dtype=dtype).as_strided(size, stride)
    offset += storage.first
    last = offset + sum((side - 1) * step for side, step in zip(size, stride))
    if count > values or last >= values:
        shape = "x".join(map(str, size)) or "a number"
        raise BadPickle(f"claims to be {shape}, more than the file holds")
    return torch.frombuffer(contents, dtype=dtype, count=values).as_strided(size, stride, offset)


def first_non_finite(tensors: Mapping[str, Any]) -> Optional[str]:
    """The name of the first tensor with a NaN or infinite value in nested containers, or None."""
    for name, tensor in tensors_of(tensors):
        parts = tensor.reshape(-1).split(PART) if tensor.is_floating_point() else ()  # isfinite copies its argument
        if not all(torch.isfinite(part).all() for part in parts):
            return name
    return None


def tensors_of(values: Any, name: str = "") -> Iterator[Tuple[str, torch.Tensor]]:
    """Yields (dotted name, tensor) for every tensor in nested containers."""
    if isinstance(values, torch.Tensor):
        yield name, values
    elif isinstance(values, (dict, list, tuple)):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from tensors_of(value, f"{name}.{key}" if name else str(key))
