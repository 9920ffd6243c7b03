# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The code that runs in the process of an asynchronous accessor, and reads a dataset into the slots of a ring buffer.

The two processes communicate over a socket, on which they block. Messages are tuples that begin with a `Message`.
To the accessor: READY with the layout, which it answers with the file descriptor of the ring; ELEMENT with epoch, slot
and rows; END with the epoch; FAILED with a text. From the accessor: WANT with an epoch, FREE with a slot. The process
ends when the accessor closes its connection, or the accessor's process ends.
"""

import collections
import enum
import multiprocessing
import os
import pickle
import random
import select
import shutil
import signal
import threading
import time
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, Deque, Iterator, List, NamedTuple, Optional, Sequence

import torch

from ..errors import Error, createPoptorchError
from . import ring
from .element import ElementLayout
from .parcel import Parcel

# Terminals and job schedulers send these to whole process groups. The parent handles them.
_GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SECONDS_TO_END = 5  # for loading a sample after the accessor has closed its connection
_SECONDS_TO_DIE = 5  # for a worker whose connections are already closed


class Message(enum.IntEnum):
    """The first member of every message."""

    READY = 0
    ELEMENT = 1
    END = 2
    FAILED = 3
    WANT = 4
    FREE = 5


class Settings(NamedTuple):
    """How a dataset is read.

    Attributes:
        slots: the number of buffers in the ring.
        load_indefinitely: whether to continue with the next epoch before it is requested.
        early_preload: whether to continue after the first element before an epoch is requested.
        rebatched_size: the number of rows to gather into one element; None to not gather rows.
        drop_last: whether to drop the rows at the end of an epoch that do not fill an element.
        seed: the seed of the random number generators in the process.
        start_method: the default start method of multiprocessing in the process.
    """

    slots: int
    load_indefinitely: bool
    early_preload: bool
    rebatched_size: Optional[int]
    drop_last: bool
    seed: int
    start_method: Optional[str]


def run(parcel: Parcel, settings: Settings, connection: Connection, inherited: Sequence[Connection]) -> None:
    """Reads the dataset for the accessor at the other end of `connection` until it is closed.

    Args:
        parcel: the dataset.
        settings: how to read it.
        connection: the connection to the accessor.
        inherited: connections of the parent that were copied by a fork.
    """
    for signal_number in _GROUP_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    for copy in inherited:
        copy.close()
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    # A process that was spawned or forked by a server would start its workers in the same way.
    multiprocessing.set_start_method(settings.start_method, force=True)
    torch.set_num_threads(1)  # as in PyTorch's workers, to leave the cores to the model
    _seed(settings.seed)
    try:
        _Fetcher(parcel.open(), settings, _Orders(connection, settings.early_preload)).run()
    except _HungUp:
        pass
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # any exception of the dataset is reported
        _report(_cause_of(error), connection)


class _HungUp(Exception):
    """The accessor has closed its connection."""


class _Orders:
    """The requests of the accessor.

    Attributes:
        wanted: the last requested epoch, counted from 0; -1 before the first request.
        free: the slots that may be written to.
    """

    def __init__(self, connection: Connection, early_preload: bool) -> None:
        self._connection = connection
        self.wanted = 0 if early_preload else -1
        self.free: Deque[int] = collections.deque()

    def read(self) -> None:
        """Reads all pending messages."""
        while self._connection.poll():
            self.wait()

    def wait(self) -> None:
        """Blocks until a message arrives, and reads it."""
        try:
            order, *value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise _HungUp from error
        if order == Message.WANT:
            self.wanted = value[0]
        else:
            self.free.append(value[0])

    def send(self, *message: Any) -> None:
        """Sends a message to the accessor."""
        try:
            self._connection.send_bytes(pickle.dumps(message))  # by value: send() would move tensors to shared memory
        except OSError as error:
            raise _HungUp from error

    def open_ring(self, layout: ElementLayout, slots: int) -> List[ring.Slot]:
        """Requests the ring for elements of a layout from the accessor."""
        self.send(Message.READY, layout)
        try:
            descriptor = recv_handle(self._connection)
        except (EOFError, OSError) as error:
            raise _HungUp from error
        try:
            mapped = ring.map_slots(descriptor, layout.specs, slots)
        finally:
            os.close(descriptor)
        self.free.extend(range(slots))
        return mapped


class _Fetcher:
    """Reads epochs in sequence, as far as free slots and requests allow."""

    def __init__(self, elements: Any, settings: Settings, orders: _Orders) -> None:
        self._elements = elements
        self._settings = settings
        self._orders = orders
        self._ring: List[ring.Slot] = []
        self._slot: Optional[int] = None  # the slot that is being filled
        self._filled = 0  # the number of its rows
        self._runs_ahead = settings.load_indefinitely

    def run(self) -> None:
        """Reads until an exception is raised, ultimately _HungUp."""
        epoch = 0
        while True:
            read = self._read_epoch(epoch)
            # Epochs without elements take no slots, so that a full ring would never stop them.
            self._runs_ahead = self._settings.load_indefinitely and read > 0
            epoch += 1

    def _read_epoch(self, epoch: int) -> int:
        """Reads an epoch until its end, or until a later one is requested. Returns the number of elements."""
        elements: Optional[Iterator[Any]] = None
        read = 0
        self._filled = 0
        while self._may_read(epoch):
            elements = _iterate(self._elements) if elements is None else elements
            try:
                element = next(elements)
            except StopIteration:
                self._end_epoch(epoch)
                break
            self._store(element, epoch)
            read += 1
        return read

    def _may_read(self, epoch: int) -> bool:
        """Blocks until another element may be read. Returns False once a later epoch is requested."""
        if not self._ring:  # its size depends on the first element
            return True
        orders = self._orders
        orders.read()
        while orders.wanted <= epoch:
            permitted = orders.wanted == epoch or (orders.wanted >= 0 and self._runs_ahead)
            if permitted and (orders.free or self._slot is not None):
                return True
            orders.wait()
        return False

    def _store(self, element: Any, epoch: int) -> None:
        with torch.no_grad():
            if not self._ring:
                self._layout = ElementLayout(element, self._settings.rebatched_size)
                self._ring = self._orders.open_ring(self._layout, self._settings.slots)
            tensors = self._layout.take_apart(element)
            if self._settings.rebatched_size is None:
                self._store_whole(tensors, epoch)
            else:
                self._store_rows(tensors, epoch, self._settings.rebatched_size)

    def _store_whole(self, tensors: List[torch.Tensor], epoch: int) -> None:
        slot = self._orders.free.popleft()
        for target, tensor in zip(self._ring[slot], tensors):
            target.copy_(tensor)
        self._orders.send(Message.ELEMENT, epoch, slot, None)

    def _store_rows(self, tensors: List[torch.Tensor], epoch: int, size: int) -> None:
        """Appends rows to the current slot, and to further slots as needed."""
        total = tensors[0].shape[0]
        row = 0
        while row < total and self._take_slot(epoch) and self._slot is not None:
            count = min(size - self._filled, total - row)
            for target, tensor in zip(self._ring[self._slot], tensors):
                target.narrow(0, self._filled, count).copy_(tensor.narrow(0, row, count))
            row += count
            self._filled += count
            if self._filled == size:
                self._hand_over(epoch, None)

    def _take_slot(self, epoch: int) -> bool:
        """Blocks until there is a slot to fill. Returns False once a later epoch is requested."""
        while self._slot is None and not self._orders.free and self._orders.wanted <= epoch:
            self._orders.wait()
        if self._slot is None and self._orders.free:
            self._slot = self._orders.free.popleft()
        return self._orders.wanted <= epoch

    def _hand_over(self, epoch: int, rows: Optional[int]) -> None:
        self._orders.send(Message.ELEMENT, epoch, self._slot, rows)
        self._slot = None
        self._filled = 0

    def _end_epoch(self, epoch: int) -> None:
        if not self._ring:
            raise createPoptorchError("the dataset is empty, or has less than one combined batch with drop_last=True")
        if self._filled and not self._settings.drop_last:
            self._hand_over(epoch, self._filled)
        self._orders.send(Message.END, epoch)


def _iterate(elements: Any) -> Iterator[Any]:
    """Returns an iterator over an epoch."""
    indexed = not hasattr(elements, "__iter__") and hasattr(elements, "__len__")
    return _until_index_error(elements) if indexed else iter(elements)


def _until_index_error(elements: Any) -> Iterator[Any]:
    """Yields the elements of a dataset that can only be indexed, as Python's iteration does: to an IndexError.

    Raises:
        Error: for an element beyond the length. PopTorch would read on without end.
    """
    length = len(elements)
    for index, element in enumerate(iter(elements)):
        if index >= length:
            raise createPoptorchError(
                f"{type(elements).__name__} has an element {index}, although its length is {length}: PopTorch would "
                "read it without end. Raise IndexError there, or give the accessor a DataLoader"
            )
        yield element


def _end_with(connection: Connection) -> None:
    """Kills this process and its children if it does not end by itself soon after the accessor has hung up."""
    # Signals must interrupt the main thread, where PyTorch's SIGCHLD handler detects that a worker has died.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    hang_up = select.poll()
    hang_up.register(connection.fileno(), 0)
    hang_up.poll()
    time.sleep(_SECONDS_TO_END)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)


def _seed(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    try:
        import numpy
    except ImportError:  # optional for PyTorch
        return
    numpy.random.seed(seed % 2**32)


def _cause_of(error: BaseException) -> BaseException:
    """Returns `error`, or the reason why a worker has died if that has caused it, for example a broken connection.

    PyTorch's SIGCHLD handler raises it, which also interrupts the sleep.
    """
    try:
        time.sleep(_SECONDS_TO_DIE if isinstance(error, (ConnectionError, EOFError)) else 0.1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # so that nothing interrupts the report
    except RuntimeError as death:  # raised by PyTorch's handler of this signal
        return death
    return error


def _report(error: BaseException, connection: Connection) -> None:
    """Sends the accessor the reason for the end: one line for errors of this package, else with a traceback."""
    text = error.message if isinstance(error, Error) else _describe(error)
    try:
        connection.send((Message.FAILED, text))
    except OSError:
        traceback.print_exc()  # the accessor is gone


def _describe(error: BaseException) -> str:
    """Returns one line that summarises an exception, followed by its traceback."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()
    lines = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()
    # The exception of a worker contains the worker's traceback, whose last line is the original exception.
    summary = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
    return f"{summary}{_advice(trace)}\nTraceback in its process:\n{trace}"


def _advice(trace: str) -> str:
    """Returns advice if the workers have run out of shared memory, else an empty string."""
    if "shared memory" not in trace and "No space left on device" not in trace or not os.path.isdir("/dev/shm"):
        return ""
    total, _, free = shutil.disk_usage("/dev/shm")
    return (
        f"; the workers pass batches through /dev/shm, of which {free / 2**20:,.1f} of "
        f"{total / 2**20:,.1f} MiB are free: enlarge it (docker run --shm-size) or lower num_workers"
    )
