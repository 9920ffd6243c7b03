# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The accessor's side of its process: starting it, hearing from it, noticing its end, and ending it."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import pickle
import signal
import socket
from multiprocessing import util
from multiprocessing.reduction import send_handle
from typing import Any, List, Optional, Tuple

from ..enums import SharingStrategy
from ..errors import Error, createPoptorchError
from . import fetcher as _fetcher
from . import ring as _ring
from .element import ElementLayout
from .fetcher import Message, Settings
from .parcel import Parcel

_SECONDS_TO_STOP = 10
_START_METHODS = {
    SharingStrategy.SharedMemory: "spawn",
    SharingStrategy.FileSystem: "spawn",
    SharingStrategy.Fork: "fork",
    SharingStrategy.ForkServer: "forkserver",
}
_FAILED_TO_START = "AsynchronousDataAccessor worker thread failed to start: "
_NOT_PICKLABLE = (pickle.PicklingError, AttributeError, TypeError, NotImplementedError)
_GUARD = (
    "a new process imports the main program again, so what makes data loaders must stand under "
    '`if __name__ == "__main__":`'
)


class WorkerFailed(Exception):
    """The process has ended by itself; the text says why."""


class FetcherProcess:
    """A process that reads `dataset` into a ring of shared buffers. It ends with this object, or this program.

    Args:
        dataset: what to iterate over.
        strategy: how it reaches the process.
        settings: how it is read.

    Attributes:
        layout: how elements are made up.
        ring: the tensors of every slot.

    Raises:
        Error: when the process cannot be started, or does not get to the first element.
    """

    def __init__(self, dataset: Any, strategy: SharingStrategy, settings: Settings) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        try:
            self._process = _start(dataset, strategy, settings, self._connection, theirs)
        finally:
            theirs.close()
        # Runs before multiprocessing waits for processes at exit, in children of multiprocessing too.
        self.stop = util.Finalize(self, _stop, (self._process, self._connection), exitpriority=100)
        try:
            self.layout, self.ring = self._open_ring(settings.slots)
        except WorkerFailed as error:
            self.stop()
            raise createPoptorchError(f"{_FAILED_TO_START}{error}") from None

    def receive(self) -> Tuple[Any, ...]:
        """Sleeps until a message comes, and returns it.

        Raises:
            WorkerFailed: when the process has ended instead.
        """
        ready = multiprocessing.connection.wait([self._connection, self._process.sentinel])
        try:
            message = self._connection.recv() if self._connection in ready else (Message.FAILED, None)
        except (EOFError, OSError, pickle.UnpicklingError):  # the last: it was killed while it sent
            message = (Message.FAILED, None)
        if message[0] == Message.FAILED:
            raise WorkerFailed(message[1] or self._describe_end())
        return message

    def send(self, *message: Any) -> None:
        """Sends a message, or loses it when the process has ended: `receive` tells."""
        try:
            self._connection.send(message)
        except OSError:
            pass  # what it said last can still be received

    def _open_ring(self, slots: int) -> Tuple[ElementLayout, List[_ring.Slot]]:
        _, layout = self.receive()
        try:
            descriptor = _ring.allocate(layout.specs, slots)
        except Error as error:
            raise WorkerFailed(error.message) from error
        try:
            send_handle(self._connection, descriptor, self._process.pid)
            return layout, _ring.map_slots(descriptor, layout.specs, slots)
        except ConnectionError:
            raise WorkerFailed(self._describe_end()) from None
        finally:
            os.close(descriptor)

    def _describe_end(self) -> str:
        self._process.join(_SECONDS_TO_STOP)
        code = self._process.exitcode
        if code is None:
            return "it closed its connection"
        if code >= 0:
            return f"it ended with exit code {code}; the standard error output may tell why ({_GUARD})"
        likely = ", likely because memory ran out" if -code == signal.SIGKILL else ""
        return f"it was killed by signal {-code} ({_signal_name(-code)}){likely}"


def _start(dataset: Any, strategy: SharingStrategy, settings: Settings, ours: Any, theirs: Any) -> Any:
    parcel = Parcel(dataset, strategy)
    inherited = [ours] if strategy == SharingStrategy.Fork else []
    try:
        return _start_with(_START_METHODS[strategy], (parcel, settings, theirs, inherited))
    except ChildProcessError:  # this process was forked off one that has a fork server, which serves only that one
        return _start_with("spawn", (parcel, settings, theirs, inherited))
    except _NOT_PICKLABLE as error:  # of the kind that PopTorch lets through, with advice
        raise type(error)(
            f"{_FAILED_TO_START}the data set, or the options of its DataLoader, cannot be pickled ({error}): define "
            "classes and functions at the top of a module, use AutoStage rather than listed stages, or "
            "SharingStrategy.Fork"
        ) from error
    except (EOFError, ConnectionError) as error:
        raise createPoptorchError(
            f"{_FAILED_TO_START}the fork server has ended; its standard error output may tell why ({_GUARD})"
        ) from error


def _start_with(method: str, arguments: Tuple[Any, ...]) -> Any:
    context = multiprocessing.get_context(method)
    if method == "forkserver" and _preload() == ["__main__"]:  # a program's own choice stands
        context.set_forkserver_preload(["__main__", "torch", _fetcher.__name__])
    # Not a daemon: those may have no workers of their own.
    process = context.Process(target=_fetcher.run, args=arguments, name="poptorch_host accessor", daemon=False)
    process.start()
    return process


def _preload() -> Optional[List[str]]:
    """The modules that the fork server imports once, so that its processes need not."""
    return getattr(multiprocessing.forkserver._forkserver, "_preload_modules", None)


def _stop(process: Any, connection: Any) -> None:
    # Closing is not enough to hang up: processes forked off this one have the connection, too.
    with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as shared:
        try:
            shared.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has hung up itself
    process.join(_SECONDS_TO_STOP)
    if process.exitcode is None:
        process.kill()
        process.join()
    connection.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return "unnamed"
