# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""status.json of a training run: its state, exit code, and the number of restarts without progress.

torchrun turns every exit code into 1; this file has the original. Its state is "running" from the start: if its process
no longer exists, the run was killed.
"""

import contextlib
import datetime
import hashlib
import json
import os
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
from common.signals import StopRequest
from training import checkpoint
from training.progress import Progress
from utils import reason

NAME = "status.json"
MAX_BYTES = 64 << 10
WARN_FROM = 2  # starts without progress
NO_FAILURES = (EXIT_OK, EXIT_USAGE, EXIT_CHECKPOINT, EXIT_BUSY, EXIT_PREEMPTED, EXIT_INTERRUPTED)  # of training


class Status:
    """The status of a run, written by its leader if there is an output folder.

    Attributes:
        progress: of the run.
        cause: why a run finished before its last epoch; '' if it did not.
    """

    def __init__(self, folder: Optional[Path], config: CfgNode) -> None:
        self._folder = folder
        self._before = _read(folder / NAME) if folder else {}
        self.progress = Progress(update=self._before.get("last_update", 0))
        self.cause = ""
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
        """Writes the status before training; a finished run keeps its status until it trains again."""
        if self._before.get("state") != "done":
            self.write()

    def begin(self, progress: Progress) -> None:
        """Records that training starts at `progress`.

        Raises:
            Refusal: after TRAIN.MAX_FRUITLESS_RESTARTS starts without a newer checkpoint.
        """
        self.progress = progress
        self._begun = True
        again = all(self._before.get(key) == value for key, value in self._place().items())
        failed = self._before.get("state") != "done" and self._before.get("exit_code") not in NO_FAILURES
        self._fields.update(self._place(), fruitless=self._before.get("fruitless", 0) + 1 if again and failed else 0)
        times = self._fields["fruitless"]
        if times >= WARN_FROM:
            self._warn_or_give_up(times)
        self.write()

    def _place(self) -> Dict[str, Any]:
        return {"began_at": self.progress.update, "configuration": self._fields["configuration"]}

    def _warn_or_give_up(self, times: int) -> None:
        cause = self._before.get("failure") or self._before.get("cause") or "it was killed"
        said = (
            f"started {times} times from update {self.progress.update} without reaching the next checkpoint "
            f"(last: {cause}): if the cause is unknown, check memory (fewer --num-workers, lower --batch-size) and "
            "the disk, and save more often (TRAIN.CHECKPOINT_STEPS)"
        )
        if 0 < self._limit <= times:
            self._fields["failure"] = cause
            raise Refusal(f"{said}; TRAIN.MAX_FRUITLESS_RESTARTS {self._limit} is reached, 0: no limit", EXIT_RESOURCE)
        logger.warning("%s", said)

    def write(self) -> None:
        """Writes the current status; a write error is logged and does not stop the run."""
        if self._folder is None:
            return
        last = self._folder / checkpoint.LAST
        where = {"last_update": self.progress.update, "checkpoint": str(last) if last.exists() else None}
        note(self._folder / NAME, json.dumps({**self._fields, **where}, indent=2) + "\n")

    def end(self, code: int, cause: str) -> None:
        """Records how the run ended; a run with nothing left to do keeps the existing file."""
        if code == EXIT_OK and not self._begun and self._before.get("state") == "done":
            return
        self._fields.update(state="done" if code == EXIT_OK else "stopped", exit_code=code, cause=cause or self.cause)
        self.write()


@contextlib.contextmanager
def recorded(folder: Optional[Path], config: CfgNode, launch: Launch, stop: StopRequest) -> Iterator[Status]:
    """Keeps the status of a run inside the context, and records how it ended.

    Stop signals are ignored from then on, so that they cannot change the recorded result. Blocking them in this thread
    is not enough: the system would deliver them to another one.
    """
    status = Status(folder if launch.is_leader else None, config)
    code, cause = EXIT_OK, ""
    try:
        status.open()
        yield status
        stop.close()
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
        stop.close()
        status.end(code, cause)


def note(path: Path, text: str) -> None:
    """Replaces a file with notes on the run; a write error is logged and does not stop the run."""
    try:
        write_atomically(path, text)
    except OSError as error:
        logger.warning("%s cannot be written: %s", path, reason(error))


def _read(path: Path) -> Dict[str, Any]:
    """The status written by an earlier run; empty if there is none or it is invalid."""
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
        logger.warning("%s is not read: it is not a status file", path)
        return {}
    return {name: value for name, value in fields.items() if value is not None}
