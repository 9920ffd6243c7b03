# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""status.json of a training run: what it is doing, how it ended, and how often it began again in vain.

torchrun flattens every exit code to 1; this file keeps the real one. It says "running" from the first moment, so that a
run that was killed is told from one that ended: the process it names is gone.
"""

import contextlib
import datetime
import hashlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

from yacs.config import CfgNode

from common.errors import (
    EXIT_BUSY,
    EXIT_CHECKPOINT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PREEMPTED,
    EXIT_RESOURCE,
    EXIT_USAGE,
    Refusal,
)
from common.files import read_regular, write_atomically
from common.launch import Launch
from common.logs import logger
from common.signals import STOP_SIGNALS, StopRequest
from training import checkpoint
from training.progress import Progress
from utils import reason

NAME = "status.json"
MAX_BYTES = 64 << 10
TOLD_FROM = 2  # vain starts
NO_FAILURES = (EXIT_OK, EXIT_USAGE, EXIT_CHECKPOINT, EXIT_BUSY, EXIT_PREEMPTED, EXIT_INTERRUPTED)  # of training


class Status:
    """The status of one run, written by its leader; without a folder nothing is.

    Attributes:
        progress: where the run stands.
    """

    def __init__(self, folder: Optional[Path], config: CfgNode) -> None:
        self._folder = folder
        self._before = _read(folder / NAME) if folder else {}
        self.progress = Progress(update=self._before.get("last_update", 0))
        self._limit = config.TRAIN.MAX_FRUITLESS_RESTARTS
        self._begun = False
        self._fields: Dict[str, Any] = {
            "state": "running",
            "exit_code": None,
            "cause": "",
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "start": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "configuration": hashlib.sha256(config.dump().encode()).hexdigest()[:16],
            "began_at": self._before.get("began_at"),
            "fruitless": self._before.get("fruitless", 0),
        }

    def open(self) -> None:
        """The run looks for where to go on; one that was done stays so until it is known that there is more to do."""
        if self._before.get("state") != "done":
            self.write()

    def begin(self, progress: Progress) -> None:
        """Training begins from where `progress` stands.

        Raises:
            Refusal: after TRAIN.MAX_FRUITLESS_RESTARTS starts that all ended without a checkpoint beyond this one.
        """
        self.progress = progress
        self._begun = True
        again = all(self._before.get(key) == value for key, value in self._place().items())
        failed = self._before.get("state") != "done" and self._before.get("exit_code") not in NO_FAILURES
        self._fields.update(self._place(), fruitless=self._before.get("fruitless", 0) + 1 if again and failed else 0)
        times = self._fields["fruitless"]
        if times >= TOLD_FROM:
            self._tell(times)
        self.write()

    def _place(self) -> Dict[str, Any]:
        return {"began_at": self.progress.update, "configuration": self._fields["configuration"]}

    def _tell(self, times: int) -> None:
        cause = self._before.get("failure") or self._before.get("cause") or "it was killed"
        said = (
            f"started {times} times from update {self.progress.update} without getting to the next checkpoint "
            f"(last: {cause}): where the cause is not known, look at memory (fewer --num-workers, lower --batch-size), "
            "at the disk, and save more often (TRAIN.CHECKPOINT_STEPS)"
        )
        if 0 < self._limit <= times:
            self._fields["failure"] = cause
            raise Refusal(f"{said}; TRAIN.MAX_FRUITLESS_RESTARTS {self._limit} is reached, 0 goes on", EXIT_RESOURCE)
        logger.warning("%s", said)

    def write(self) -> None:
        """Writes what is known now; where the disk refuses, the run goes on without it."""
        if self._folder is None:
            return
        last = self._folder / checkpoint.LAST
        where = {"last_update": self.progress.update, "checkpoint": str(last) if last.exists() else None}
        note(self._folder / NAME, json.dumps({**self._fields, **where}, indent=2) + "\n")

    def end(self, code: int, cause: str) -> None:
        """The run ended; one that had nothing to do leaves the file of the run that did it."""
        if code == EXIT_OK and not self._begun and self._before.get("state") == "done":
            return
        self._fields.update(state="done" if code == EXIT_OK else "stopped", exit_code=code, cause=cause)
        self.write()


@contextlib.contextmanager
def recorded(folder: Optional[Path], config: CfgNode, launch: Launch, stop: StopRequest) -> Iterator[Status]:
    """While this context is open, the run's status is kept; every end that the program itself sees is written down.

    Nothing that comes after that can change how the run ended: signals that ask to stop are ignored from then on.
    """
    status = Status(folder if launch.is_leader else None, config)
    code, cause = EXIT_OK, ""
    try:
        status.open()
        yield status
    except Refusal as refusal:
        code, cause = refusal.code, str(refusal)
        raise
    except KeyboardInterrupt:
        code, cause = EXIT_INTERRUPTED, "interrupted"
        raise
    except BaseException as error:
        code, cause = 1, f"{type(error).__name__}: {error}"
        raise
    finally:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            status.end(code, cause)
            stop.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def note(path: Path, text: str) -> None:
    """Replaces a file that tells of the run; where the disk refuses, the run goes on without it."""
    try:
        write_atomically(path, text)
    except OSError as error:
        logger.warning("%s cannot be written: %s", path, reason(error))


def _read(path: Path) -> Dict[str, Any]:
    """What an earlier run left; nothing where there is none, or something else."""
    try:
        fields = json.loads(read_regular(path, MAX_BYTES).decode())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s is not read: %s", path, reason(error))
        return {}
    numbers = ("began_at", "fruitless", "last_update", "exit_code")
    sound = isinstance(fields, dict) and all(isinstance(fields.get(name), (int, type(None))) for name in numbers)
    if not sound:
        logger.warning("%s is not read: it is no status", path)
        return {}
    return {name: value for name, value in fields.items() if value is not None}
