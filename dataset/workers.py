# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Worker processes of a loader: how many the memory allows, how they behave, and what it means when one fails."""
import re
import signal
from typing import Any, Iterator, List, Optional, Tuple

from dataset.memory import SHARED_MEMORY, free_shared_memory
from dataset.samples import DataError
from utils import EXIT_DATA, EXIT_RESOURCE, Refusal, logger

STALL_SECONDS = 60  # without any batch before workers count as hung,
STALL_SECONDS_PER_SAMPLE = 0.25  # and so much more for each sample of a batch
KILLED = re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: (.*?)\. ")
GONE = re.compile(r"DataLoader worker \(pid\(s\) ([\d, ]+)\) exited unexpectedly")
STALLED = "DataLoader timed out"


def affordable_workers(wanted: int, batch_bytes: int) -> Tuple[int, int]:
    """Workers, and batches that each prepares ahead, so that what they hold fits in memory.

    Batches wait in shared memory. Prefetching is given up first, then workers; with none, the main process does the
    work.

    Args:
        wanted: workers asked for.
        batch_bytes: size of one batch.
    """
    if wanted == 0:
        return 0, 0
    room = free_shared_memory()
    for prefetch in (2, 1):
        if wanted * prefetch * batch_bytes <= room:
            return wanted, prefetch
    workers = room // batch_bytes
    logger.warning("%d data workers instead of %d: a batch takes %.0f MB and %s has room for %.0f MB; enlarge it "
                   "(docker run --shm-size), or use DATA.INPUT_DTYPE uint8, DATA.LOADER rebatched, fewer --num-workers",
                   workers, wanted, batch_bytes / 1e6, SHARED_MEMORY, room / 1e6)
    return workers, 1


def stall_seconds(samples: int) -> float:
    """How long a loader waits for a batch of `samples` before its workers count as hung."""
    return STALL_SECONDS + STALL_SECONDS_PER_SAMPLE * samples


def begin_worker(_: int) -> None:
    """Lets a worker outlive the signals that ask the run to stop: the main process still needs its batches to save."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def batches(loader: Any) -> Iterator[Any]:
    """The batches of one epoch of a loader; the ways in which it can fail become one line each.

    Raises:
        Refusal: EXIT_DATA for bad data, EXIT_RESOURCE for workers that were killed or hang and for full memory.
    """
    try:
        yield from loader
    except DataError as error:
        raise Refusal(_original(error), EXIT_DATA) from error
    except (RuntimeError, OSError, AssertionError) as error:
        message = _explain(str(error), _workers_of(loader))
        if message is None:
            raise
        raise Refusal(message, EXIT_RESOURCE) from error


def _original(error: DataError) -> str:
    """The message as it was raised; one that crossed from a worker comes wrapped in the worker's traceback."""
    return str(error).strip().rsplit("DataError: ", 1)[-1]


def _workers_of(loader: Any) -> List[Any]:
    return list(getattr(getattr(loader, "_iterator", None), "_workers", []))


def _explain(text: str, workers: List[Any]) -> Optional[str]:
    """The failure behind a message of torch or PopTorch in one line, or None for one that is not the loader's."""
    killed, gone = KILLED.search(text), GONE.search(text)
    if "No space left on device" in text or (killed and "Bus error" in killed.group(2)):
        return (f"{SHARED_MEMORY} is full: batches of data workers pass through it; enlarge it (docker run "
                "--shm-size), or use fewer --num-workers")
    if killed:
        return (f"data worker {killed.group(1)} was killed by signal {killed.group(2)}: most likely memory ran out; "
                "use fewer --num-workers or smaller batches; the same command resumes")
    if gone:
        return f"data worker {gone.group(1)} ended unexpectedly: its own messages are above; the same command resumes"
    if STALLED in text:
        return f"{_end_hung(workers)} gave no batch in time: is the storage of the data hung? The same command resumes"
    if "data fetcher" in text or "failed to start" in text:  # PopTorch's asynchronous accessor
        return f"the asynchronous data loader's process failed ({' '.join(text.split())}): its own messages are above"
    return None


def _end_hung(workers: List[Any]) -> str:
    """Kills workers that would keep the interpreter from ending, and names them."""
    names = [f"{worker.pid} ({_state(worker.pid)})" for worker in workers if worker.is_alive()]
    for worker in workers:
        worker.kill()
    return f"data workers {', '.join(names)}" if names else "the data workers"


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            code = stream.read().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return "gone"
    return {"T": "stopped", "D": "waiting for storage", "R": "running", "S": "waiting"}.get(code, f"state {code}")
