# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Reads a dataset ahead in a separate process."""

import multiprocessing
from typing import Any, Optional, Union

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..enums import SharingStrategy
from ..errors import check, createPoptorchError
from .fetcher import Message, Settings
from .fetcher_process import FetcherProcess, WorkerFailed


class AsynchronousDataAccessor:
    """Iterates over a dataset that a separate process reads ahead into buffers in shared memory.

    The elements are tensors in these buffers, which are overwritten after the next element is requested: clone tensors
    to keep them. Tuples are returned as lists. A new iteration begins with the first element of the next epoch, even
    if the previous iteration did not reach the end.

    The generators of `random`, NumPy and PyTorch in the separate process are seeded from PyTorch's generator in this
    process.

    Args:
        dataset: a dataset of tensors, flat lists, tuples or dictionaries of tensors, or objects of a type given to
            `registerCustomArgParser`. All elements must have the shapes of the first, and are converted to its dtypes.
            Must be picklable, like the options of a DataLoader, except with SharingStrategy.Fork.
        buffer_size: the number of buffers, including the one in use.
        miss_sleep_time_in_ms: checked, but without effect: PopTorch polls for buffers at this interval, while this
            class blocks until one is available.
        load_indefinitely: whether to begin the next epoch when one ends.
        early_preload: whether to fill the buffers before the first iteration begins.
        sharing_strategy: how the dataset is passed to the process.
        rebatched_size: the number of rows to gather into one element, from elements with a batch dimension.

    Raises:
        Error: if the dataset cannot be read in a separate process, is empty, or fails at its first element; or if it is
            a DataLoader that already has an accessor.
        AttributeError, TypeError, pickle.PicklingError, NotImplementedError: if the dataset cannot be pickled.
        AssertionError: for arguments out of range; for a DataLoader whose last batch may be smaller than the others.
    """

    def __init__(
        self,
        dataset: Union[Dataset[Any], DataLoader[Any]],
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
                "this DataLoader already has an accessor, due to its mode: iterate over the DataLoader, "
                "or create it with DataLoaderMode.Sync"
            )
        check(
            rebatched_size is not None or not getattr(loader, "_may_end_short", False),
            "the last batch of this DataLoader may be smaller than the others: use drop_last=True or "
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
        self._epoch = -1  # the current epoch, counted from 0
        self._begun = False  # whether an element of it was returned
        self._ended = True  # whether all its elements were returned
        self._in_use: Optional[int] = None  # the slot of the element that was returned last
        self._failure = ""

    def terminate(self) -> None:
        """Ends the process. No more elements can be read."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def __len__(self) -> int:
        """Returns the number of elements in an epoch.

        With `rebatched_size`, only full elements count. An element of the dataset is assumed to be one row, and a batch
        of a DataLoader as many rows as it has samples.
        """
        if self._length is None:
            raise TypeError("the dataset of this accessor has no length")
        return self._length

    def __iter__(self) -> "AsynchronousDataAccessor":
        process = self._require_process()
        if self._ended or self._begun:
            self._epoch += 1
            self._begun = self._ended = False
            process.send(Message.WANT, self._epoch)
        return self

    def __next__(self) -> Any:
        if self._epoch < 0:
            iter(self)
        process = self._require_process()
        self._release(process)
        while not self._ended:
            kind, epoch, *where = self._receive(process)
            if epoch < self._epoch:  # from an iteration that did not reach the end
                if kind == Message.ELEMENT:
                    process.send(Message.FREE, where[0])
            elif kind == Message.ELEMENT:
                return self._hand_out(process, *where)
            else:
                self._ended = True
        raise StopIteration

    def _hand_out(self, process: FetcherProcess, slot: int, rows: Optional[int]) -> Any:
        self._in_use = slot
        self._begun = True
        # New views, so that in-place changes of their metadata do not affect the buffers.
        tensors = [tensor.view(tensor.shape) if rows is None else tensor[:rows] for tensor in process.ring[slot]]
        return process.layout.put_together(tensors)

    def _release(self, process: FetcherProcess) -> None:
        if self._in_use is not None:
            process.send(Message.FREE, self._in_use)
            self._in_use = None

    def _receive(self, process: FetcherProcess) -> Any:
        try:
            return process.receive()
        except WorkerFailed as error:
            self._failure = f"An error occurred in the data fetcher: {error}"
            self.terminate()
            raise AssertionError(self._failure) from None

    def _require_process(self) -> FetcherProcess:
        check(not self._failure, self._failure)
        if self._process is None:
            raise AssertionError("this accessor was terminated: create a new one")
        return self._process


def _strategy(value: Any) -> SharingStrategy:
    """The strategy that `value` equals. PopTorch takes any other value, such as a name, for SharedMemory."""
    return next((strategy for strategy in SharingStrategy if strategy == value), SharingStrategy.SharedMemory)


def _length(dataset: Any, rebatched_size: Optional[int]) -> Optional[int]:
    try:
        length = len(dataset)
    except (TypeError, NotImplementedError):  # an iterable without a length
        return None
    # The length of a loader that rebatches is already in combined batches.
    if rebatched_size is None or hasattr(dataset, "rebatched_drop_last"):
        return length
    return _rows(dataset, length) // rebatched_size


def _rows(dataset: Any, length: int) -> int:
    """Returns the number of rows in an epoch of `length` elements, which are samples in batches of a DataLoader."""
    if not isinstance(dataset, DataLoader) or dataset.batch_size is None:
        return length
    counted: Any = dataset.dataset if isinstance(dataset.dataset, IterableDataset) else dataset.sampler
    return min(len(counted), length * dataset.batch_size)
