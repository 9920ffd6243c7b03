# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Files of torch.save, read as data only: nothing in them is executed, and all sizes are checked.

A file is read once. The same bytes are checked and used: tensors are views of them, so that a file takes the memory of
its size and no more, whatever sizes it states.
"""

from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional, Tuple

import torch

from common import seal
from common.files import read_regular
from common.memory import available_memory
from common.plain_pickle import BadPickle, Constructor, Machine, Plain
from common.zip_members import BadArchive, stored_members
from utils import reason

MAX_BYTES = 64 << 30  # a Swin-L with its optimizer takes 2.4 GB
MAX_PICKLE_BYTES = 16 << 20
MAX_DEPTH = 16
MAX_VALUES = 1_000_000
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class DamagedFile(Exception):
    """The file is damaged, or not a checkpoint of this program; the message says why."""


class Archive(NamedTuple):
    """The contents of a file."""

    contents: Any  # numbers, texts, None, lists, tuples, dictionaries and dense tensors on the CPU
    sealed: bool  # whether the file has a digest, which was verified; see common/seal.py


def read_archive(path: Path) -> Archive:
    """The contents of a file that torch.save wrote, as data only.

    The digest of a sealed file is verified first; without one, the checksums of the archive are. torch.load checks
    neither: flipped bits would change weights silently. Compressed members are refused, since a small file could unpack
    into a large one, and so are formats before PyTorch 1.6.

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
        self._room = 2 * size  # bytes for all tensors; tied weights count each time
        if bytes(members.get(f"{self._root}/byteorder", b"little")) != b"little":
            raise BadArchive("it is not little-endian")

    def read(self) -> Any:
        """The object."""
        pickled = self._members[f"{self._root}/data.pkl"]
        if len(pickled) > MAX_PICKLE_BYTES:
            raise BadPickle(f"its pickle has {len(pickled)} bytes, more than {MAX_PICKLE_BYTES}")
        names: Dict[str, Any] = {f"torch {name}": dtype for name, dtype in STORAGES.items()}
        names["collections OrderedDict"] = Constructor(Plain)
        names["torch._utils _rebuild_tensor_v2"] = Constructor(self._tensor)
        names["torch._utils _rebuild_parameter"] = Constructor(lambda data, requires_grad, hooks: data)
        return plain(Machine(bytes(pickled), names, self._storage).run())

    def _storage(self, identity: Any) -> torch.Tensor:
        """The values of a storage as a 1-D tensor, from ("storage", type, name, device, how many)."""
        if type(identity) is not tuple or len(identity) != 5 or identity[0] != "storage":
            raise BadPickle("it refers to an object that is not a storage")
        _, dtype, name, _, count = identity
        contents = self._members.get(f"{self._root}/data/{name}")
        if not isinstance(dtype, torch.dtype) or type(name) is not str or type(count) is not int or contents is None:
            raise BadPickle("it refers to a storage that it does not hold")
        if count * _bytes_of(dtype) != len(contents):
            raise BadPickle(f"its storage {name} has {len(contents)} bytes, not those of {count} numbers")
        return torch.frombuffer(contents, dtype=dtype) if count else torch.empty(0, dtype=dtype)

    def _tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, *_: Any
    ) -> torch.Tensor:
        numbers = [offset, *size, *stride] if type(size) is type(stride) is tuple else [None]
        if not isinstance(storage, torch.Tensor) or storage.dim() != 1:
            raise BadPickle("it has a tensor without a storage")
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            raise BadPickle("it has a tensor with an invalid shape")
        if len(size) != len(stride) or len(size) > MAX_DEPTH:
            raise BadPickle("it has a tensor with an invalid shape")
        count = 1
        for length in size:
            count *= length
        last = offset + sum((length - 1) * step for length, step in zip(size, stride)) if count else -1
        if count > len(storage) - offset or last >= len(storage):
            raise BadPickle(f"it has a tensor of shape {size}, which is more than the file holds")
        self._room -= count * storage.element_size()
        if self._room < 0:
            raise BadPickle("its tensors together are more than the file holds")
        return storage.as_strided(size, stride, offset)


def plain(value: Any) -> Any:
    """A copy of nested containers as plain dicts, lists and tuples.

    Raises:
        BadPickle: for anything but plain values, and for too many or too deeply nested ones.
    """
    return _Copier().copy(value, 0)


class _Copier:
    """Counts what it copies: a shared container counts each time, and one that contains itself exceeds the limit."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def copy(self, value: Any, depth: int) -> Any:
        """A copy of `value`, which is nested `depth` levels deep."""
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise BadPickle(f"it holds more than {MAX_VALUES} values, or deeper than {MAX_DEPTH}")
        kind = type(value)
        if kind in (dict, Plain):
            return {key: self.copy(item, depth + 1) for key, item in value.items()}
        if kind in (list, tuple):
            return kind([self.copy(item, depth + 1) for item in value])
        if value is None or kind in (str, int, float, bool, torch.Tensor):
            return value
        raise BadPickle(f"it holds {kind.__name__}: only plain data are read")


def _bytes_of(dtype: torch.dtype) -> int:
    return torch.empty(0, dtype=dtype).element_size()


def first_non_finite(tensors: Mapping[str, Any]) -> Optional[str]:
    """The name of the first tensor in nested containers with a NaN or infinite value, or None."""
    for name, tensor in tensors_of(tensors):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None


def tensors_of(values: Any, name: str = "") -> Iterator[Tuple[str, torch.Tensor]]:
    """Yields (dotted name, tensor) for every tensor in nested containers."""
    if isinstance(values, torch.Tensor):
        yield name, values
    elif isinstance(values, (dict, list, tuple)):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from tensors_of(value, f"{name}.{key}" if name else str(key))
