# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Reading a data set ahead, in a process of its own."""

import multiprocessing
from typing import Any, Optional, Union

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..enums import SharingStrategy
from ..errors import check, createPoptorchError
from .fetcher import Message, Settings
from .fetcher_process import FetcherProcess, WorkerFailed


class AsynchronousDataAccessor:
    """Iterates over a data set that another process reads ahead, into buffers in shared memory.

    What an iteration hands out are tensors in these buffers: they change once the next element is asked for, so clone
    those that are to stay. Tuples and lists come as lists. A new iteration begins with the first element of the next
    epoch, also where the one before was left early.

    The data set's random numbers (of `random`, NumPy and PyTorch) are seeded from PyTorch's generator in this process.

    Args:
        dataset: yields tensors, flat lists, tuples or dictionaries of tensors, or objects of a type given to
            `registerCustomArgParser`, all of the shapes of the first, and converted to its dtypes. Picklable, as the
            options of a DataLoader are too, except with SharingStrategy.Fork.
        buffer_size: elements that are held ready, the one in use included.
        miss_sleep_time_in_ms: PopTorch looks for a free or a filled buffer this often. Here whoever waits sleeps until
            there is one, so that nothing is late and nothing is used up by looking; the value is only checked.
        load_indefinitely: begin the next epoch as soon as one ends.
        early_preload: fill the buffers before the first iteration begins.
        sharing_strategy: how the data set reaches the process.
        rebatched_size: rows that are gathered into one element, from elements that have a batch dimension.

    Raises:
        Error: when the data set cannot be read in another process, is empty, or fails at its first element; when it is
            a DataLoader that has an accessor.
        AttributeError, TypeError, pickle.PicklingError, NotImplementedError: for what cannot be pickled.
        AssertionError: for arguments out of range; for a DataLoader whose last batch may be smaller than the others.
    """

    def __init__(
        self,
        dataset: Union[Dataset, DataLoader],
        buffer_size: int = 3,
        miss_sleep_time_in_ms: float = 0.1,
        load_indefinitely: bool = True,
        early_preload: bool = False,
        sharing_strategy: SharingStrategy = SharingStrategy.ForkServer,
        rebatched_size: Optional[int] = None,
    ):
        check(isinstance(buffer_size, int) and buffer_size > 0, f"buffer_size must be at least 1, not {buffer_size!r}")
        check(miss_sleep_time_in_ms >= 0, f"miss_sleep_time_in_ms must not be negative: {miss_sleep_time_in_ms!r}")
        check(rebatched_size is None or rebatched_size > 1, f"rebatched_size must exceed 1; it is {rebatched_size!r}")
        loader = dataset if isinstance(dataset, DataLoader) else None
        if getattr(loader, "_accessor", None) is not None:
            raise createPoptorchError(
                "the mode of this DataLoader has given it an accessor already: iterate over it, "
                "or make it with DataLoaderMode.Sync"
            )
        check(
            rebatched_size is not None or not getattr(loader, "_may_end_short", False),
            "the last batch of this DataLoader may be smaller than the others: give it drop_last=True or "
            "DataLoaderMode.AsyncRebatched",
        )
        self.rebatched_size = rebatched_size
        self._process: Optional[FetcherProcess] = None
        settings = Settings(
            slots=buffer_size,
            load_indefinitely=load_indefinitely,
            early_preload=early_preload,
            rebatched_size=rebatched_size,
            drop_last=getattr(loader, "rebatched_drop_last", True),
            seed=int(torch.empty((), dtype=torch.int64).random_()),
            start_method=multiprocessing.get_start_method(allow_none=True),
        )
        self._process = FetcherProcess(dataset, _strategy(sharing_strategy), settings)
        self._length = _length(dataset, rebatched_size)
        self._epoch = -1  # the one that is iterated over, from 0
        self._begun = False  # it has handed out an element
        self._ended = True  # it has no more elements
        self._in_use: Optional[int] = None  # slot of the element that was handed out last
        self._failure = ""

    def terminate(self) -> None:
        """Ends the process. There is nothing to iterate over any more."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def __len__(self) -> int:
        """Elements in an epoch; with `rebatched_size` whole ones, taking each of the data set's to be one row, and each
        batch of a loader as many as it has samples."""
        if self._length is None:
            raise TypeError("the data set of this accessor has no length")
        return self._length

    def __iter__(self) -> "AsynchronousDataAccessor":
        self._require_process()
        if self._ended or self._begun:
            self._epoch += 1
            self._begun = self._ended = False
            self._process.send(Message.WANT, self._epoch)
        return self

    def __next__(self) -> Any:
        if self._epoch < 0:
            iter(self)
        process = self._require_process()
        self._release()
        while not self._ended:
            kind, epoch, *where = self._receive()
            if epoch < self._epoch:  # of an iteration that was left early
                if kind == Message.ELEMENT:
                    process.send(Message.FREE, where[0])
            elif kind == Message.ELEMENT:
                return self._hand_out(*where)
            else:
                self._ended = True
        raise StopIteration

    def _hand_out(self, slot: int, rows: Optional[int]) -> Any:
        self._in_use = slot
        self._begun = True
        # Views of their own: what is done to one of them leaves the buffers' as they are.
        tensors = [tensor.view(tensor.shape) if rows is None else tensor[:rows] for tensor in self._process.ring[slot]]
        return self._process.layout.put_together(tensors)

    def _release(self) -> None:
        if self._in_use is not None:
            self._process.send(Message.FREE, self._in_use)
            self._in_use = None

    def _receive(self) -> Any:
        try:
            return self._process.receive()
        except WorkerFailed as error:
            self._failure = f"An error occurred in the data fetcher: {error}"
            self.terminate()
            raise AssertionError(self._failure) from None

    def _require_process(self) -> FetcherProcess:
        check(not self._failure, self._failure)
        if self._process is None:
            raise createPoptorchError("this accessor was terminated: make a new one to go on")
        return self._process


def _strategy(value: Any) -> SharingStrategy:
    """The strategy that `value` equals. PopTorch takes any other value, such as a name, for SharedMemory."""
    return next((strategy for strategy in SharingStrategy if strategy == value), SharingStrategy.SharedMemory)


def _length(dataset: Any, rebatched_size: Optional[int]) -> Optional[int]:
    try:
        length = len(dataset)
    except (TypeError, NotImplementedError):  # an iterable without one
        return None
    # A loader that rebatches counts combined batches itself.
    if rebatched_size is None or hasattr(dataset, "rebatched_drop_last"):
        return length
    return _rows(dataset, length) // rebatched_size


def _rows(dataset: Any, length: int) -> int:
    """Rows in an epoch of `length` elements: a loader's batches have as many as samples, all else is one by one."""
    if not isinstance(dataset, DataLoader) or dataset.batch_size is None:
        return length
    samples = len(dataset.dataset) if isinstance(dataset.dataset, IterableDataset) else len(dataset.sampler)
    return min(samples, length * dataset.batch_size)
