# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""How a data set reaches the process of an asynchronous accessor."""

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
from ..inputs import custom_args


class Parcel:
    """A data set and what it needs around it, to be pickled while a process starts and opened inside.

    - Fork: nothing is pickled.
    - ForkServer: values travel through the pipe that starts the process; tensors in shared memory stay shared.
    - FileSystem: the same through a temporary file, for data sets that are large.
    - SharedMemory: the memory of all tensors becomes shared memory, and nothing is copied.
    """

    def __init__(self, dataset: Any, strategy: SharingStrategy) -> None:
        self._dataset = dataset
        self._strategy = strategy
        self._file: Optional[BinaryIO] = None  # open until the process has started

    def __getstate__(self) -> Dict[str, Any]:
        return {"aliases": _aliases(), "parsers": _parsers(), "content": self._content()}

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
        """The data set, in the new process. To be called once."""
        if "content" not in vars(self):  # forked
            return self._dataset
        for name, actual in self.aliases.items():
            if name not in sys.modules:
                alias(name, actual)
        for kind, parser in map(pickle.loads, self.parsers):
            custom_args.registerCustomArgParser(kind, parser)
        content = vars(self).pop("content")  # frees it afterwards: it may be large
        if isinstance(content, bytes):
            return _ValueUnpickler(io.BytesIO(content)).load()
        with open(content.detach(), "rb") as file:
            file.seek(0)
            return _ValueUnpickler(file).load()


def _aliases() -> Dict[str, str]:
    """Other names under which this program has imported this package, each with the real one."""
    loaded = [(name, getattr(module, "__name__", "")) for name, module in list(sys.modules.items())]
    return {name: actual for name, actual in loaded if actual.split(".")[0] == PACKAGE and actual != name}


def _parsers() -> Tuple[bytes, ...]:
    """The custom parsers that another process can know of. One that is defined inside a function it cannot."""
    pickled = []
    for item in custom_args._parsers.items():
        try:
            pickled.append(pickle.dumps(item))
        except (pickle.PicklingError, AttributeError, TypeError):
            continue  # if the data set needs it, the process says that its elements have no parser
    return tuple(pickled)


class _ValuePickler(ForkingPickler):
    """Pickles what a starting process may receive, with the values of tensors that are not in shared memory.

    PyTorch alone would move all of them there, one open file each, of which a process has few.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.dispatch_table[torch.Generator] = _reduce_generator
        self._written: Dict[int, Any] = {}

    def persistent_id(self, value: Any) -> Optional[Tuple[int, Optional[bytes]]]:
        if not isinstance(value, torch.UntypedStorage) or value.device.type != "cpu" or value.is_shared() or not value:
            return None
        address = value.data_ptr()
        if address in self._written:
            return address, None
        self._written[address] = value  # keeps it: no other storage gets the address meanwhile
        return address, ctypes.string_at(address, len(value))


class _ValueUnpickler(pickle.Unpickler):
    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self._read: Dict[int, torch.UntypedStorage] = {}

    def persistent_load(self, identity: Tuple[int, Optional[bytes]]) -> torch.UntypedStorage:
        address, content = identity
        if content is not None:
            self._read[address] = torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()
        return self._read[address]


def _reduce_generator(generator: torch.Generator) -> Tuple[Any, ...]:
    return _generator, (generator.device.type, generator.get_state())


def _generator(device: str, state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator(device)
    generator.set_state(state)
    return generator
