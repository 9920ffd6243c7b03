# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Names of a million files, in arrays that worker processes share instead of copying."""

import os
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterable, Union

import numpy as np

from common.files import open_regular


class MappedArray:
    """A read-only array that is a part of a file, in memory that all processes share, also those that are not forked.

    On Linux it is a copy of the file: what was checked stays what is read, whatever becomes of the file. Reading a
    mapped file that somebody has cut off ends the process. Elsewhere the file itself is mapped.

    Args:
        path: a regular file.
        dtype: of the elements.
        count: of elements, at least one.
        offset: of the first one in the file, in bytes.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is too short.
    """

    def __init__(self, path: Path, dtype: Any, count: int, offset: int = 0):
        size = np.dtype(dtype).itemsize * count
        with open(open_regular(path), "rb") as stream:
            if offset + size > os.fstat(stream.fileno()).st_size:
                raise ValueError(f"{path.name} is shorter than it should be")
            if hasattr(os, "memfd_create"):
                self._shared = _copied(stream, offset, size)
                place, offset = f"/proc/{os.getpid()}/fd/{self._shared.fileno()}", 0
            else:
                place = str(path)
        self._state: Dict[str, Any] = dict(filename=place, dtype=np.dtype(dtype), shape=(count,), offset=offset)
        self._map()

    def _map(self) -> None:
        self.values = np.memmap(mode="r", **self._state).view(np.ndarray)  # whose elements are read faster

    def __getstate__(self) -> Dict[str, Any]:
        return self._state

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self._state = state
        self._map()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: Any) -> Any:
        return self.values[key]


def _copied(stream: BinaryIO, begin: int, size: int) -> BinaryIO:
    """A file in memory, which lives as long as it is open or mapped, with `size` bytes of another one."""
    shared = open(os.memfd_create("swin"), "w+b", buffering=0)
    os.ftruncate(shared.fileno(), size)
    done = 0
    while done < size:
        count = os.sendfile(shared.fileno(), stream.fileno(), begin + done, size - done)
        if not count:
            raise ValueError("it became shorter while it was read")
        done += count
    return shared


class PathTable:
    """An immutable list of paths in two arrays.

    Worker processes would copy a list of a million strings page by page, since reading it changes reference counts.

    Args:
        ends: int64, where each path ends in `text`.
        text: uint8, all paths in the encoding of the file system.
    """

    def __init__(self, ends: Union[np.ndarray, MappedArray], text: Union[np.ndarray, MappedArray]):
        self.ends = ends
        self.text = text

    @classmethod
    def of(cls, paths: Iterable[str]) -> "PathTable":
        """The table of some paths."""
        encoded = [os.fsencode(path) for path in paths]
        ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        return cls(ends, np.frombuffer(b"".join(encoded), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.text[start : self.ends[index]].tobytes())
