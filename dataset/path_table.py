# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Names of a million files, in arrays that worker processes share instead of copying."""

import os
from pathlib import Path
from typing import Any, Dict, Iterable, Union

import numpy as np

from common.files import open_regular


class MappedArray:
    """A read-only array that is a part of a file, mapped into memory.

    It is mapped anew where it is unpickled, so that processes that are not forked share it, too.

    Args:
        path: a regular file.
        dtype: of the elements.
        count: of elements, at least one.
        offset: of the first one in the file, in bytes.

    Raises:
        OSError: if the file cannot be opened or, where it is unpickled, is another one.
        ValueError: if the file is too short.
    """

    def __init__(self, path: Path, dtype: Any, count: int, offset: int = 0):
        self._state: Dict[str, Any] = dict(path=path, dtype=np.dtype(dtype), count=count, offset=offset, file=None)
        self._map()

    def _map(self) -> None:
        state = self._state
        with open(open_regular(state["path"]), "rb") as stream:
            status = os.fstat(stream.fileno())
            file = (status.st_ino, status.st_size, status.st_mtime_ns)
            if state["file"] not in (None, file):
                raise OSError(f"{state['path']} has changed since it was opened")
            state["file"] = file
            mapped = np.memmap(stream, state["dtype"], "r", state["offset"], (state["count"],))
        self.values = mapped.view(np.ndarray)  # whose elements are read faster

    def __getstate__(self) -> Dict[str, Any]:
        return self._state

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self._state = state
        self._map()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: Any) -> Any:
        return self.values[key]


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
