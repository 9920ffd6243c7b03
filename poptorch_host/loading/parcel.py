# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Passes a dataset to the process of an asynchronous accessor."""

import ctypes
import io
import pickle
import sys
import tempfile
from multiprocessing.reduction import DupFd, ForkingPickler
from typing import Any, BinaryIO, Dict, Optional, Tuple

import torch
import torch.multiprocessing  # noqa: F401 (teaches ForkingPickler to share the memory of tensors)

from .._alias import PACKAGE, alias
from ..enums import SharingStrategy


class Parcel:
    """A dataset, which is pickled when a process starts and opened inside it.

    Custom parsers are not included: a new process has those that its modules register when they are imported.

    - Fork: nothing is pickled.
    - ForkServer: passed through the pipe that starts the process. Tensors in shared memory stay shared.
    - FileSystem: passed through a temporary file, for large datasets.
    - SharedMemory: all tensors are moved to shared memory, and not copied.
    """

    aliases: Dict[str, str]  # set when unpickled

    def __init__(self, dataset: Any, strategy: SharingStrategy) -> None:
        self._dataset = dataset
        self._strategy = strategy
        self._file: Optional[BinaryIO] = None  # open until the process has started

    def __getstate__(self) -> Dict[str, Any]:
        return {"aliases": _aliases(), "content": self._content()}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        vars(self).update(state)

    def _content(self) -> Any:
        if self._strategy == SharingStrategy.SharedMemory:
            return bytes(ForkingPickler.dumps(self._dataset))
        if self._strategy == SharingStrategy.FileSystem:
            self._file = tempfile.TemporaryFile()
            _ValuePickler(self._file).dump(self._dataset)
            self._file.flush()
            return DupFd(self._file.fileno())
        content = io.BytesIO()
        _ValuePickler(content).dump(self._dataset)
        return content.getvalue()

    def open(self) -> Any:
        """Returns the dataset. Call once, in the new process."""
        if "content" not in vars(self):  # forked
            if isinstance(self._dataset, torch.utils.data.DataLoader):
                self._dataset._iterator = None  # persistent workers are children of another process
            return self._dataset
        for name, actual in self.aliases.items():
            if name not in sys.modules:
                alias(name, actual)
        content = vars(self).pop("content")  # to free it, since it may be large
        if isinstance(content, bytes):
            return _ValueUnpickler(io.BytesIO(content)).load()
        with open(content.detach(), "rb") as file:
            file.seek(0)
            return _ValueUnpickler(file).load()


def _aliases() -> Dict[str, str]:
    """Returns the names other than its own under which modules of this package are imported, with the real names."""
    loaded = [(name, getattr(module, "__name__", "")) for name, module in list(sys.modules.items())]
    return {name: actual for name, actual in loaded if actual.split(".")[0] == PACKAGE and actual != name}


class _ValuePickler(ForkingPickler):
    """Pickles what a starting process may receive, with the values of tensors that are not in shared memory.

    PyTorch alone would move all of them there, one open file each, of which a process has few.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._written: Dict[int, Any] = {}

    def persistent_id(self, value: Any) -> Optional[Tuple[int, Optional[pickle.PickleBuffer]]]:
        if not isinstance(value, torch.UntypedStorage) or value.device.type != "cpu" or value.is_shared() or not value:
            return None
        address = value.data_ptr()
        if address in self._written:
            return address, None
        self._written[address] = value  # a reference, so that no other storage gets the same address
        return address, pickle.PickleBuffer((ctypes.c_char * len(value)).from_address(address))


class _ValueUnpickler(pickle.Unpickler):
    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self._read: Dict[int, torch.UntypedStorage] = {}

    def persistent_load(self, identity: Tuple[int, Optional[bytearray]]) -> torch.UntypedStorage:
        address, content = identity
        if content is not None:
            self._read[address] = torch.frombuffer(content, dtype=torch.uint8).untyped_storage()
        return self._read[address]
