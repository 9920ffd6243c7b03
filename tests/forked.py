# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Commands of this repository in processes forked from a server that has imported what they import.

Their own imports take a new interpreter five seconds of a core. A forked process has an id, a folder, an environment,
signal handlers, output and an exit code of its own as well; what it cannot show is how an interpreter starts.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import torch

from tests import BACKEND_VARIABLE

ROOT = Path(__file__).resolve().parent.parent


def preload() -> None:
    """Chooses what the server imports; without effect once it runs.

    With the SDK's PopTorch, its loaders fork from the same server: it defines torch.ops.poptorch, which poptorch_host
    would have defined already.
    """
    imports = ["pytest", "training.loop", "training.evaluation", "training.prediction", "dataset.prepare"]
    if os.environ.get(BACKEND_VARIABLE) != "sdk":
        imports.append("poptorch_host")
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__, *imports])


def start(target: Callable[..., None], *args: Any) -> Any:
    """Starts a process that calls `target`, a function of a module; returns it as multiprocessing has it."""
    preload()
    started = multiprocessing.get_context("forkserver").Process(target=target, args=args)
    started.start()
    return started


class Command:
    """A command that was started; its output goes to files, which are deleted with the object.

    Args:
        program: a script of this repository by its path there, or a module after "-m".
        argv: its arguments.
        cwd: the folder in which it runs.
        variables: of its environment, in addition to those of the tests.
    """

    def __init__(self, program: str, *argv: object, cwd: Path = ROOT, **variables: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name, name) for name in ("output", "errors")]
        for file in self._files:
            file.touch()
        arguments = [program, *map(str, argv)]
        self.process = start(_enter, arguments, cwd, variables, self._files)

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()

    @property
    def output(self) -> str:
        """What it has written on standard output so far."""
        return self._files[0].read_text()

    @property
    def errors(self) -> str:
        """What it has written on standard error so far."""
        return self._files[1].read_text()

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Waits until standard output has this text; raises AssertionError if the process ends before, or is late."""
        end = time.monotonic() + seconds
        while text not in self.output:
            assert self.process.is_alive() and time.monotonic() < end, f"no {text!r}:\n{self.output}{self.errors}"
            time.sleep(0.005)

    def send(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 240) -> int:
        """Its exit code, which is the negative number of a signal that ended it; AssertionError if it is late."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"it did not end in {seconds} s:\n{self.output}{self.errors}"
        return int(self.process.exitcode)


def _enter(argv: Sequence[str], cwd: Path, variables: Mapping[str, str], files: Sequence[Path]) -> None:
    """In the forked process: what the interpreter does for a command line."""
    os.environ.update(variables)
    os.chdir(cwd)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests were told to ignore it
    for stream, file in zip((sys.stdout, sys.stderr), files):
        os.dup2(os.open(str(file), os.O_WRONLY | os.O_APPEND), stream.fileno())
    sys.stdout.reconfigure(line_buffering=True)
    if argv[0] == "-m":
        sys.argv = list(argv[1:])
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(argv)
        runpy.run_path(str(ROOT / argv[0]), run_name="__main__")
