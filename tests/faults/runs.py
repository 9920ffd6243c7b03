# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Tiny runs of train_swin.py, of one process or several, that something happens to.

Each process is forked from a server that has imported the program, so that a run takes a second or two. Otherwise it is
what the command line starts: the same main, with its own arguments, environment, signals and exit code.
"""

import contextlib
import importlib
import itertools
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

import torch

import train_swin
from common.command_line import run_command
from tests import forked
from tests.runs import ROOT, SMALL, assert_same_run
from tests.training.test_distributed import free_port
from training import checkpoint

RUN_SECONDS = 120  # no run of these takes longer
SAVES_OFTEN = ["TRAIN.CHECKPOINT_STEPS", "1", "TRAIN.EMA_DECAY", "0.9"]  # all that a checkpoint can hold


class Lost(AssertionError):
    """The fault was not survived; the message says how."""


def require(holds: object, otherwise: str) -> None:
    """Raises Lost unless the condition holds."""
    if not holds:
        raise Lost(otherwise)


class Hook(NamedTuple):
    """What happens as one of the program's functions is called for the `call`-th time, just before it runs."""

    where: str  # "module:name" or "module:Class.name"
    call: int
    action: Callable[..., None]  # is given the function's arguments


def send(number: int, *_: Any) -> None:
    """An action: this process sends itself a signal."""
    os.kill(os.getpid(), number)


class Unbroken(NamedTuple):
    """A run that nothing happened to."""

    state: Dict[str, Any]
    seconds: float  # from its first checkpoint to its end


class Place(NamedTuple):
    """Where faults are injected."""

    folder: Path  # empty, for one injection
    data: Path  # a few digits
    unbroken: Callable[..., Unbroken]  # the run of so many processes, made once

    @property
    def output(self) -> Path:
        """The run's output folder."""
        return self.folder / "out"

    def status(self) -> Dict[str, Any]:
        """What status.json says."""
        return json.loads((self.output / "status.json").read_text())


def command_line(place: Place, replicas: int, *more: str) -> List[str]:
    """Arguments of a run that saves after every update; `more` options are names and values of the configuration."""
    paths = ["--data-path", str(place.data), "--output", str(place.output)]
    return [*SMALL, *SAVES_OFTEN, *more, *paths, "--replicas", str(replicas)]


class Run:
    """A run of one process or several, started when the object is made and ended with the context.

    Args:
        place: where.
        more: further names and values of the configuration.
        processes: of the run.
        replicas: over all of them; 0: one each.
        hooks: what happens in which process.
    """

    def __init__(
        self,
        place: Place,
        *more: str,
        processes: int = 1,
        replicas: int = 0,
        hooks: Optional[Mapping[int, Hook]] = None,
    ) -> None:
        group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        self.processes: List[Any] = []
        self._errors = [place.folder / f"errors.{rank}" for rank in range(processes)]
        for rank in range(processes):
            variables = {**group, "RANK": str(rank)} if processes > 1 else {}
            argv = command_line(place, replicas or processes, *more)
            arguments = (argv, variables, (hooks or {}).get(rank), self._errors[rank])
            self.processes.append(forked.start(_enter, *arguments))

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def send(self, number: int, rank: int = 0) -> None:
        """Sends a signal to a process, if it has not ended."""
        pid = self.processes[rank].pid
        if pid is not None and self.processes[rank].is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, seconds: float = RUN_SECONDS) -> List[int]:
        """The exit codes; raises Lost if a process does not end in time."""
        end = time.monotonic() + seconds
        for rank, process in enumerate(self.processes):
            process.join(max(end - time.monotonic(), 0))
            require(process.exitcode is not None, f"process {rank} did not end in {seconds:.0f} s")
        return [int(process.exitcode or 0) for process in self.processes]

    def wait_for(self, path: Path) -> None:
        """Waits until a file is there, or a process has ended."""
        end = time.monotonic() + RUN_SECONDS
        while not path.exists() and all(process.is_alive() for process in self.processes) and time.monotonic() < end:
            time.sleep(0.002)

    def errors(self, rank: int = 0) -> str:
        """What a process has written on standard error."""
        return self._errors[rank].read_text() if self._errors[rank].exists() else ""

    def last_line(self, rank: int = 0) -> str:
        """Its last line, which says how the process ended."""
        return (self.errors(rank).splitlines() or [""])[-1]


def _enter(argv: Sequence[str], variables: Mapping[str, str], hook: Optional[Hook], errors: Path) -> None:
    """In the forked process: the command line, with nothing on the terminal."""
    os.environ.update(variables)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), sys.stderr.fileno())
    if hook is not None:
        install(hook)
    sys.argv = ["train_swin.py", *argv]
    try:
        sys.exit(run_command(train_swin.main))
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
        errors.with_name(errors.name.replace("errors", "peak")).write_text(str(peak))


def install(hook: Hook) -> None:
    """Makes the hook's action happen at its call."""
    module, _, name = hook.where.partition(":")
    *path, name = name.split(".")
    owner = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), itertools.count(1)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == hook.call:
            hook.action(*args)
        return original(*args, **kwargs)

    setattr(owner, name, hooked)


def require_ends_as_unbroken(place: Place, processes: int = 1) -> None:
    """Runs the command to its end: its last checkpoint must be that of the unbroken run, bit for bit."""
    with Run(place, processes=processes) as again:
        codes = again.wait()
        require(not any(codes), f"the same command ended with {codes}: {again.last_line()}")
    require(place.status()["state"] == "done", "status.json does not say done")
    try:
        assert_same_run(checkpoint.load(place.output / checkpoint.LAST), place.unbroken(processes).state)
    except AssertionError as error:
        raise Lost(f"it did not end as the unbroken run: {str(error)[:200]}") from error
