# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Starts, communicates with, and ends the process of an asynchronous accessor."""

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

from .._logging import logger
from ..enums import SharingStrategy
from ..errors import Error, createPoptorchError
from . import fetcher, ring
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
    "a new process imports the main program again, so code that creates data loaders must be under "
    '`if __name__ == "__main__":`'
)


class WorkerFailed(Exception):
    """Raised if the process has ended by itself, with the reason."""


class FetcherProcess:
    """A process that reads a dataset into a ring of shared buffers. Ends with this object or this process.

    Args:
        dataset: the dataset.
        strategy: how to pass it to the process.
        settings: how to read it.

    Attributes:
        layout: the layout of elements.
        ring: the tensors of every slot.

    Raises:
        Error: if the process cannot be started, or fails to read the first element.
    """

    def __init__(self, dataset: Any, strategy: SharingStrategy, settings: Settings) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        try:
            self._process = _start(dataset, strategy, settings, self._connection, theirs)
        finally:
            theirs.close()
        logger.debug("AsynchronousDataAccessor worker process: %d", self._process.pid)
        # Runs before multiprocessing waits for processes at exit, in children of multiprocessing too.
        self.stop = util.Finalize(self, _stop, (self._process, self._connection), exitpriority=100)
        try:
            self.layout, self.ring = self._open_ring(settings.slots)
        except WorkerFailed as error:
            self.stop()
            raise createPoptorchError(f"{_FAILED_TO_START}{error}") from None

    def receive(self) -> Tuple[Any, ...]:
        """Blocks until a message arrives, and returns it.

        Raises:
            WorkerFailed: if the process has ended instead.
        """
        ready = multiprocessing.connection.wait([self._connection, self._process.sentinel])
        try:
            message = self._connection.recv() if self._connection in ready else (Message.FAILED, None)
        except (EOFError, OSError, pickle.UnpicklingError):  # the last if it was killed while sending
            message = (Message.FAILED, None)
        if message[0] == Message.FAILED:
            raise WorkerFailed(message[1] or self._describe_end())
        return message

    def send(self, *message: Any) -> None:
        """Sends a message, which is lost if the process has ended; `receive` then raises."""
        try:
            self._connection.send(message)
        except OSError:
            pass  # its last messages can still be received

    def _open_ring(self, slots: int) -> Tuple[ElementLayout, List[ring.Slot]]:
        _, layout = self.receive()
        try:
            descriptor = ring.allocate(layout.specs, slots)
        except Error as error:
            raise WorkerFailed(error.message) from error
        try:
            send_handle(self._connection, descriptor, self._process.pid)
            return layout, ring.map_slots(descriptor, layout.specs, slots)
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
            return f"it ended with exit code {code}; see its standard error output ({_GUARD})"
        likely = ", likely because memory ran out" if -code == signal.SIGKILL else ""
        return f"it was killed by signal {-code} ({_signal_name(-code)}){likely}"


def _start(dataset: Any, strategy: SharingStrategy, settings: Settings, ours: Any, theirs: Any) -> Any:
    parcel = Parcel(dataset, strategy)
    inherited = [ours] if strategy == SharingStrategy.Fork else []
    try:
        return _start_with(_START_METHODS[strategy], (parcel, settings, theirs, inherited))
    except ChildProcessError:  # this process was forked from one with a fork server, which serves only that one
        return _start_with("spawn", (parcel, settings, theirs, inherited))
    except _NOT_PICKLABLE as error:  # the same type as in PopTorch, with advice
        raise type(error)(
            f"{_FAILED_TO_START}the dataset, or the options of its DataLoader, cannot be pickled ({error}): define "
            "classes and functions at the top level of a module, use AutoStage rather than explicit stages, or use "
            "SharingStrategy.Fork"
        ) from error
    except (EOFError, ConnectionError) as error:
        raise createPoptorchError(
            f"{_FAILED_TO_START}the fork server has ended; see its standard error output ({_GUARD})"
        ) from error


def _start_with(method: str, arguments: Tuple[Any, ...]) -> Any:
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver" and _preload() == ["__main__"]:  # the default: do not override the program's choice
        context.set_forkserver_preload(["__main__", "torch", fetcher.__name__])
    # Not a daemon, since daemons cannot have workers.
    process = context.Process(target=fetcher.run, args=arguments, name="poptorch_host accessor", daemon=False)
    process.start()
    return process


def _preload() -> Optional[List[str]]:
    """Returns the modules that the fork server imports for all its processes."""
    return getattr(multiprocessing.forkserver._forkserver, "_preload_modules", None)


def _stop(process: Any, connection: Any) -> None:
    # Closing alone does not end the connection if forked processes have a copy of it.
    with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as shared:
        try:
            shared.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has closed the connection itself
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
