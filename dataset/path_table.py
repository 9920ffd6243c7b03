# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Millions of file names in arrays, shared by worker processes without copies."""

import os
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterable, Union

import numpy as np

from common.files import open_regular


class MappedArray:
    """A read-only array from a part of a file, in memory shared by all processes, including those not forked.

    On Linux it is a copy of the file: the data that was checked is the data used, whatever happens to the file, and
    truncating a mapped file would kill the process. On other systems the file itself is mapped.

    Args:
        path: a regular file.
        dtype: of the elements.
        count: number of elements, at least one.
        offset: of the first element in the file, in bytes.

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
        self.values = np.memmap(mode="r", **self._state).view(np.ndarray)  # faster element access

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
    """A file in memory with `size` bytes of another file; it exists as long as it is open or mapped."""
    shared = open(os.memfd_create("swin"), "w+b", buffering=0)
    os.ftruncate(shared.fileno(), size)
    done = 0
    while done < size:
        count = os.sendfile(shared.fileno(), stream.fileno(), begin + done, size - done)
        if not count:
            raise ValueError("it was truncated while it was read")
        done += count
    return shared


class PathTable:
    """An immutable list of paths in two arrays.

    Worker processes would copy a list of a million strings page by page, since reading it changes reference counts.

    Args:
        ends: end of each path in `text`, int64.
        text: all paths in the encoding of the file system, uint8.
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
