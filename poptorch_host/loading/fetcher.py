# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What runs inside the process of an asynchronous accessor: it reads a data set into the slots of a ring.

The two processes talk over one socket and sleep while they wait. Messages are tuples that begin with a Message:
to the accessor READY with the layout, which it answers with the descriptor of the ring, ELEMENT with epoch, slot and
rows, END with the epoch, FAILED with a text; from it WANT with an epoch and FREE with a slot. All is over when the
accessor hangs up, by itself or because its program has ended.
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
from . import ring as _ring
from .element import ElementLayout
from .parcel import Parcel

# Sent to whole process groups, by terminals and job schedulers. What they mean is for the parent to decide.
_GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SECONDS_TO_END = 5  # that a sample may take which nobody wants any more
_SECONDS_TO_DIE = 5  # for a worker whose connections are closed already


class Message(enum.IntEnum):
    """First member of every message."""

    READY = 0
    ELEMENT = 1
    END = 2
    FAILED = 3
    WANT = 4
    FREE = 5


class Settings(NamedTuple):
    """How a data set is read.

    Attributes:
        slots: buffers in the ring.
        load_indefinitely: go on with the next epoch before it is asked for.
        early_preload: go on after the first element before any epoch is asked for.
        rebatched_size: rows gathered into one element; None to hand over elements as they come.
        drop_last: leave out the rows at the end of an epoch that fill no element.
        seed: of the process's random number generators.
        start_method: how the process starts those of its own, by default.
    """

    slots: int
    load_indefinitely: bool
    early_preload: bool
    rebatched_size: Optional[int]
    drop_last: bool
    seed: int
    start_method: Optional[str]


def run(parcel: Parcel, settings: Settings, connection: Connection, inherited: Sequence[Connection]) -> None:
    """Reads the data set for the accessor at the other end of `connection`, until that hangs up.

    Args:
        inherited: connections of the parent that a fork has copied.
    """
    for signal_number in _GROUP_SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)
    for copy in inherited:
        copy.close()
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    # A process that was spawned or served would do the same to its loader's workers, which are then not its children.
    multiprocessing.set_start_method(settings.start_method, force=True)
    torch.set_num_threads(1)  # as in PyTorch's own workers: the cores are for the model
    _seed(settings.seed)
    try:
        _Fetcher(parcel.open(), settings, _Orders(connection, settings.early_preload)).run()
    except _HungUp:
        pass
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # whatever the data set raises is the parent's to know
        _report(_cause_of(error), connection)


class _HungUp(Exception):
    """The accessor wants no more."""


class _Orders:
    """What the accessor has asked for so far.

    Attributes:
        wanted: the newest epoch that was asked for, from 0; -1 before the first.
        free: slots that may be written to.
    """

    def __init__(self, connection: Connection, early_preload: bool) -> None:
        self._connection = connection
        self.wanted = 0 if early_preload else -1
        self.free: Deque[int] = collections.deque()

    def read(self) -> None:
        """Takes in all messages that have come."""
        while self._connection.poll():
            self.wait()

    def wait(self) -> None:
        """Sleeps until a message comes, and takes it in."""
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
            self._connection.send_bytes(pickle.dumps(message))  # tensors by value: send() would share their memory
        except OSError as error:
            raise _HungUp from error

    def open_ring(self, layout: ElementLayout, slots: int) -> List[_ring.Slot]:
        """Gets the ring for elements of this layout from the accessor."""
        self.send(Message.READY, layout)
        try:
            descriptor = recv_handle(self._connection)
        except (EOFError, OSError) as error:
            raise _HungUp from error
        try:
            ring = _ring.map_slots(descriptor, layout.specs, slots)
        finally:
            os.close(descriptor)
        self.free.extend(range(slots))
        return ring


class _Fetcher:
    """Reads one epoch after the other, as far as slots and orders allow."""

    def __init__(self, elements: Any, settings: Settings, orders: _Orders) -> None:
        self._elements = elements
        self._settings = settings
        self._orders = orders
        self._ring: List[_ring.Slot] = []
        self._slot: Optional[int] = None  # being filled
        self._filled = 0  # its rows
        self._runs_ahead = settings.load_indefinitely

    def run(self) -> None:
        """Never returns: it ends by an exception, in the end that the accessor has hung up."""
        epoch = 0
        while True:
            read = self._read_epoch(epoch)
            # An epoch without elements takes no slot: running ahead would never be stopped by a full ring.
            self._runs_ahead = self._settings.load_indefinitely and read > 0
            epoch += 1

    def _read_epoch(self, epoch: int) -> int:
        """Reads an epoch to its end, or until a later one is wanted. Returns how many elements it read."""
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
        """Sleeps until there is room and permission for another element; False once a later epoch is wanted."""
        if not self._ring:  # the first element tells how large the ring must be
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
        """Appends rows to the slot that is being filled, and to as many more as they need."""
        total = tensors[0].shape[0]
        row = 0
        while row < total and self._take_slot(epoch):
            count = min(size - self._filled, total - row)
            for target, tensor in zip(self._ring[self._slot], tensors):
                target.narrow(0, self._filled, count).copy_(tensor.narrow(0, row, count))
            row += count
            self._filled += count
            if self._filled == size:
                self._hand_over(epoch, None)

    def _take_slot(self, epoch: int) -> bool:
        """Sleeps until there is a slot to fill; False once a later epoch is wanted."""
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
            raise createPoptorchError("the data set is empty, or has less than one combined batch and drop_last")
        if self._filled and not self._settings.drop_last:
            self._hand_over(epoch, self._filled)
        self._orders.send(Message.END, epoch)


def _iterate(elements: Any) -> Iterator[Any]:
    """An epoch of `elements`; data sets that can only be indexed are read from 0 to their length."""
    if hasattr(elements, "__iter__") or not hasattr(elements, "__len__"):
        return iter(elements)
    return (elements[index] for index in range(len(elements)))


def _end_with(connection: Connection) -> None:
    """Ends this process and those it started, unless it ends by itself soon after the accessor has hung up."""
    # Signals are for the main thread: PyTorch notices by one that a worker has died, if it interrupts the right thread.
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
    except ImportError:  # PyTorch works without it
        return
    numpy.random.seed(seed % 2**32)


def _cause_of(error: BaseException) -> BaseException:
    """`error`, or how a worker of the loader has died, which may show first as a broken connection to it.

    PyTorch's handler of SIGCHLD raises that, and cuts the sleep short.
    """
    try:
        time.sleep(_SECONDS_TO_DIE if isinstance(error, (ConnectionError, EOFError)) else 0.1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # from here on nothing disturbs the report
    except RuntimeError as death:  # of PyTorch's handler of this signal
        return death
    return error


def _report(error: BaseException, connection: Connection) -> None:
    """Tells the accessor why there will be no more elements: what is ours in a line, all else with its traceback."""
    text = error.message if isinstance(error, Error) else _describe(error)
    try:
        connection.send((Message.FAILED, text))
    except OSError:
        traceback.print_exc()  # there is nobody else to tell


def _describe(error: BaseException) -> str:
    """A line that sums up an exception, and its traceback."""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__)).rstrip()
    lines = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()
    # An exception of a loader's worker holds the worker's traceback, whose last line is the exception itself.
    summary = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
    return f"{summary}{_advice(trace)}\nThis is what happened in its process:\n{trace}"


def _advice(trace: str) -> str:
    """What to do when the loader's workers have run out of shared memory."""
    if "shared memory" not in trace and "No space left on device" not in trace or not os.path.isdir("/dev/shm"):
        return ""
    total, _, free = shutil.disk_usage("/dev/shm")
    return (
        f"; the loader's workers hand over batches through /dev/shm, of which {free / 2**20:,.1f} of "
        f"{total / 2**20:,.1f} MiB are free: enlarge it (docker run --shm-size), or lower num_workers"
    )
