# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Worker processes of a loader: their number, which is limited by memory, their signals, and their failures."""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import re
import resource
import signal
import threading
import time
from multiprocessing.process import BaseProcess
from typing import Any, Callable, Iterator, List, Optional, Tuple

from torch.utils.data import Sampler

import accelerator
from common import deadlines, system_processes
from common.errors import EXIT_DATA, EXIT_RESOURCE, Refusal
from common.logs import logger
from common.memory import SHARED_MEMORY, free_shared_memory
from common.signals import STOP_SIGNALS
from dataset.failure_note import FailureNote
from dataset.samples import DataError

BAD_DATA = re.compile(r"DataError: (?!Caught )(.*)")  # repeated in the traceback of a worker
SHORTAGE = re.compile(r"ShortageError: (?!Caught )(.*)")
KILLED = re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: (.*?)\. ")
GONE = re.compile(r"DataLoader worker \(pid\(s\) ([\d, ]+)\) exited unexpectedly")
STALLED = "DataLoader timed out"
OWN_DESCRIPTORS, WORKER_DESCRIPTORS = 32, 10  # open at once: without workers, and for each one in both loaders
WAITS_FOR_SIGNALS = hasattr(signal, "sigwaitinfo")  # not on macOS


def affordable_workers(configured: int, batch_bytes: int) -> Tuple[int, int]:
    """The number of workers and of batches prefetched by each, limited by memory and by the files that may be open.

    Prefetched batches and the one in use are in shared memory. Prefetching is reduced first, then workers; without
    workers, the main process loads the data.

    Args:
        configured: configured number of workers.
        batch_bytes: size of one batch.
    """
    configured = min(configured, _connectable_workers(configured))
    if configured == 0:
        return 0, 0
    room = free_shared_memory()
    for prefetch in (2, 1):
        if (configured * prefetch + 1) * batch_bytes <= room:
            return configured, prefetch
    workers = max(room // batch_bytes - 1, 0)
    logger.warning(
        "%d data workers instead of %d: a batch takes %.0f MB and %s has %.0f MB free; enlarge it "
        "(docker run --shm-size), or use DATA.INPUT_DTYPE uint8, DATA.LOADER rebatched, fewer --num-workers",
        workers,
        configured,
        batch_bytes / 1e6,
        SHARED_MEMORY,
        room / 1e6,
    )
    return workers, 1


def _connectable_workers(configured: int) -> int:
    """The number of workers that the limit of open files leaves; without a descriptor, they end in tracebacks."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    workers = max((limit - OWN_DESCRIPTORS) // WORKER_DESCRIPTORS, 0)
    if limit == resource.RLIM_INFINITY or workers >= configured:
        return configured
    logger.warning(
        "%d data workers instead of %d: each takes %d open files of at most %d: raise the limit (ulimit -n)",
        workers,
        configured,
        WORKER_DESCRIPTORS,
        limit,
    )
    return workers


def stall_seconds(samples: int) -> float:
    """Timeout in seconds for a batch of `samples`, after which workers count as hung."""
    return deadlines.BATCH + deadlines.BATCH_SAMPLE * samples


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Blocks the signals that stop a run in this thread, and so in processes that are started inside the context.

    `begin_worker` alone would be too late: by then, a worker that was not forked has further threads, any of which
    SIGTERM would end it in.
    """
    multiprocessing.resource_tracker.ensure_running()  # before, since starting it unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS if WAITS_FOR_SIGNALS else ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(_: int) -> None:
    """Makes a worker ignore the signals that stop a run, since its parent finishes the step before it saves.

    Terminals and job schedulers send them to every process of a job. Only the parent may end a worker with SIGTERM, and
    a worker ends with its parent. The parent is the process that started the worker; with a fork server, the system's
    parent is the server.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise AssertionError("begin_worker is for processes started by multiprocessing")
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if WAITS_FOR_SIGNALS:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_asked_by, args=(parent.pid,), daemon=True).start()
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_when_asked_by(parent: Optional[int]) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(0)


class ReaderSampler(Sampler[Any]):
    """A sampler that calls `begin_worker` in PopTorch's process that reads ahead.

    Iterating the sampler is the first code of ours to run in this process.
    """

    def __init__(self, sampler: Any) -> None:
        self._sampler, self._process = sampler, os.getpid()

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        if self._process != os.getpid():
            self._process = os.getpid()
            begin_worker(0)
        return iter(self._sampler)


@contextlib.contextmanager
def clear_failures(helpers: Callable[[], List[BaseProcess]], note: Optional[FailureNote] = None) -> Iterator[None]:
    """Turns failures of a loader inside the context into one-line errors.

    Args:
        helpers: returns the loader's processes, which are ended after a failure.
        note: the data set's note of why it failed.

    Raises:
        Refusal: EXIT_DATA for bad data; EXIT_RESOURCE for processes killed or hanging, and exhausted memory.
    """
    try:
        try:
            yield
        except (ConnectionError, EOFError):
            _await_death(helpers())  # unless PyTorch's handler of SIGCHLD raises it out of this
            _check_alive(helpers())
            raise
    except (DataError, RuntimeError, OSError, EOFError, AssertionError, accelerator.poptorch().Error) as error:
        failed = helpers()
        _check_alive(failed)  # the loader reports that a worker is gone, but not the signal that killed it
        states = _states(failed)
        _end(failed)
        reason = note.read() if note is not None else ""
        refusal = _explain(f"{type(error).__name__}: {error}\n{reason}".strip(), states)
        if refusal is None:
            raise
        raise refusal from error


def batches(loader: Any) -> Iterator[Any]:
    """The batches of one epoch of a loader from build_ipu; raises `Refusal` as `clear_failures` does.

    The death of a worker while a batch is in use is reported when the next one is requested.
    """
    watch = _Watch(loader)
    view = getattr(loader, "dataset", None)
    with watch, clear_failures(lambda: helpers_of(loader), getattr(view, "failure", None)):
        try:
            _check_alive(helpers_of(loader))
            with signals_held():
                iterator = iter(loader)
            for batch in iterator:
                watch.rest()
                with deaths_unannounced():
                    yield batch
                _check_alive(helpers_of(loader))
                watch.begin()
        except (RuntimeError, OSError, EOFError, AssertionError) as error:
            if watch.overdue:
                _end(helpers_of(loader))
                raise _stalled(watch.overdue) from error
            raise


def helpers_of(loader: Any) -> List[BaseProcess]:
    """The processes of a loader: its workers, or the process that reads ahead and its workers."""
    workers = getattr(getattr(loader, "_iterator", None), "_workers", [])
    return list(workers) or list(getattr(loader, "readers", []))


class _Watch(threading.Thread):
    """Ends the processes of a loader, one by one, if a batch is overdue, which makes the loader raise an error.

    The loader's own timeout does not cover the transfer of a finished batch from its worker, or the process that reads
    ahead.
    """

    def __init__(self, loader: Any):
        super().__init__(name="loader watch", daemon=True)
        self.overdue = ""  # the processes that were ended
        self._loader = loader
        self._since: Optional[float] = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> "_Watch":
        if getattr(self._loader, "num_workers", 0) or helpers_of(self._loader):
            self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()

    def begin(self) -> None:
        """Call before waiting for a batch."""
        self._since = time.monotonic()

    def rest(self) -> None:
        """Call after waiting for a batch."""
        self._since = None

    def run(self) -> None:
        """Checks once a second."""
        limit = stall_seconds(self._loader.combinedBatchSize) + deadlines.HAND_OVER
        while not self._over.wait(1.0):
            since = self._since
            if since is None or time.monotonic() - since < limit:
                continue
            self.overdue = _states(helpers_of(self._loader))
            for process in helpers_of(self._loader):
                process.kill()
                if self._over.wait(1.0):
                    return


def _end(processes: List[BaseProcess]) -> None:
    """Kills processes, so none can keep the interpreter from exiting."""
    with deaths_unannounced():
        for process in processes:
            process.kill()
            process.join()


@contextlib.contextmanager
def deaths_unannounced() -> Iterator[None]:
    """Inside the context, PyTorch's SIGCHLD handler does not raise an error when a worker dies."""
    handler = signal.getsignal(signal.SIGCHLD)  # None: not set from Python, so not PyTorch's
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _explain(text: str, states: str) -> Optional[Refusal]:
    """A one-line error for the message of a loader's failure, or None for other messages."""
    bad, short = BAD_DATA.findall(text), SHORTAGE.findall(text)
    killed, gone = KILLED.search(text), GONE.search(text)
    if bad:
        return Refusal(bad[-1], EXIT_DATA)
    if short:
        return Refusal(short[-1], EXIT_RESOURCE)
    if "No space left on device" in text:
        return _full()
    if STALLED in text:
        return _stalled(states)
    if killed:
        return _killed(killed.group(1), killed.group(2))
    if gone:
        return Refusal(
            f"data worker {gone.group(1)} exited unexpectedly: see its messages above; run the same command to resume",
            EXIT_RESOURCE,
        )
    if "data fetcher" in text or "failed to start" in text:  # PopTorch's asynchronous accessor
        return Refusal(f"the process that reads data ahead failed: {' '.join(text.split())[:500]}", EXIT_RESOURCE)
    return None


def _await_death(processes: List[BaseProcess]) -> None:
    """Waits until one of the processes has ended, for at most deadlines.WORKER_DEATH."""
    dying = multiprocessing.connection.wait([process.sentinel for process in processes], deadlines.WORKER_DEATH)
    for process in processes:
        if process.sentinel in dying:
            process.join(deadlines.WORKER_DEATH)  # its connections close shortly before its exit code is known


def _check_alive(processes: List[BaseProcess]) -> None:
    """Raises `Refusal` and ends the other processes if a signal has ended one of them."""
    for process in processes:
        code = process.exitcode
        if code is not None and code < 0:
            killed = _killed(process.pid, signal.Signals(-code).name)
            _end(processes)
            raise killed


def _full() -> Refusal:
    return Refusal(
        f"{SHARED_MEMORY} is full, which data workers use for batches: enlarge it (docker run "
        "--shm-size), or use fewer --num-workers",
        EXIT_RESOURCE,
    )


def _killed(pid: Any, name: str) -> Refusal:
    if name in ("SIGBUS", "Bus error"):  # on writing to a page of shared memory when it is full
        return _full()
    return Refusal(
        f"data worker {pid} was killed by signal {name}: most likely memory ran out; use fewer "
        "--num-workers or smaller batches, and run the same command to resume",
        EXIT_RESOURCE,
    )


def _stalled(states: str) -> Refusal:
    return Refusal(
        f"data workers {states} returned no batch in time: check the storage of the data, and run the same command "
        "to resume",
        EXIT_RESOURCE,
    )


def _states(processes: List[BaseProcess]) -> str:
    return ", ".join(f"{process.pid} ({_state(process.pid)})" for process in processes)


def _state(pid: Optional[int]) -> str:
    code = system_processes.state(pid or 0)
    names = {"": "gone", "T": "stopped", "D": "waiting for storage", "R": "running", "S": "waiting"}
    return names.get(code, f"state {code}")
