# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Processes that are killed, stopped or asked to end: the same command again must end as if nothing had happened."""

import contextlib
import functools
import multiprocessing
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Set

from common import deadlines, system_processes
from common.errors import EXIT_BUSY, EXIT_PREEMPTED, EXIT_RESOURCE
from common.memory import SHARED_MEMORY
from tests.faults.runs import RUN_SECONDS, Hook, Place, Run, command_line, require, require_ends_as_unbroken, send
from tests.runs import ROOT
from tests.training.test_distributed import ENVIRONMENT, torchrun, workers_of
from training import checkpoint, evaluation

KEEP = "2"
RESTARTS = 3  # TRAIN.MAX_FRUITLESS_RESTARTS
ATTEMPTS = 5  # to hit a run that ended before its moment came
ALL_GONE = 20.0  # seconds after which no process of a run may be left whose launcher was killed
GROUP_TIMEOUT = "4"  # POPTORCH_HOST_TIMEOUT in seconds
AFTER_TIMEOUT = 15.0  # seconds in which a run must then have ended

# The steps of a save, and how many of each there are at least in 20 updates with a save each.
INSIDE_SAVES = {
    "common.seal:SealingStream.write": 200,
    "os:fsync": 40,
    "os:replace": 40,
    "os:link": 16,
    "pathlib:Path.unlink": 16,
    "training.checkpoint:_put_in_place": 16,
    "training.checkpoint:_sync_folder": 16,
    "training.output_folder:write_metrics": 3,
}
# The phases of a run by the function that begins each, and a call of it that every run makes.
PHASES = {
    "lock": Hook("training.output_folder:_make", 1, send),
    "look for a checkpoint": Hook("training.building:_furthest", 1, send),
    "list the data": Hook("training.building:build_dataset", 1, send),
    "build the model": Hook("training.building:build_pipeline", 1, send),
    "compile": Hook("training.building:compile_program", 1, send),
    "first step": Hook("training.loop:train_step", 1, send),
    "a step": Hook("training.loop:train_step", 4, send),
    "between two steps": Hook("training.progress:Progress.advance", 3, send),
    "save": Hook("training.loop:save", 2, send),
    "validate": Hook("training.validation:evaluate_images", 1, send),
    "end of an epoch": Hook("training.progress:Progress.end_epoch", 1, send),
    "end of the last epoch": Hook("training.progress:Progress.end_epoch", 4, send),
    "last save": Hook("training.saving:Saver.finish", 12, send),
    "end": Hook("training.status:Status.end", 1, send),
}
IN_THE_LEADER = ("lock", "look for a checkpoint", "last save", "end")  # others do not pass there


def kill(place: Place, chance: random.Random) -> None:
    """SIGKILL of the only process, at a seeded moment or inside a save: ends as the unbroken run."""
    _kill_and_resume(place, chance, processes=1)


def kill_rank(place: Place, chance: random.Random) -> None:
    """SIGKILL of one process of two, at a seeded moment or inside a save: ends as the unbroken run."""
    _kill_and_resume(place, chance, processes=2)


def _kill_and_resume(place: Place, chance: random.Random, processes: int) -> None:
    rank = chance.randrange(processes)
    for _ in range(ATTEMPTS):
        where = chance.choice(sorted(INSIDE_SAVES)) if rank == 0 and chance.random() < 0.5 else None
        hooks = {}
        if where:
            calls = max(INSIDE_SAVES[where] // processes, 1)
            hooks[rank] = Hook(where, chance.randint(1, calls), functools.partial(send, signal.SIGKILL))
        with Run(place, "TRAIN.KEEP", KEEP, processes=processes, hooks=hooks) as run:
            if not where:
                run.wait_for(place.output / checkpoint.LAST)
                time.sleep(chance.random() * place.unbroken(processes).seconds)
                run.send(signal.SIGKILL, rank)
            codes = run.wait()
        if codes[rank] == -signal.SIGKILL:
            break
        require(not any(codes), f"nothing was killed, and it ended with {codes}: {run.last_line()}")
        place = place._replace(folder=place.folder / "again")
        place.folder.mkdir()
    others = {code for other, code in enumerate(codes) if other != rank}
    require(codes[rank] == -signal.SIGKILL, f"no run of {ATTEMPTS} was hit")
    require(others <= {EXIT_RESOURCE, 0}, f"the other process ended with {others}")
    if (place.output / "status.json").exists():  # or the kill came before it was written
        told = place.status()
        right = ("running", "stopped") if rank else ("running",)
        require(told["state"] in (*right, "done"), f"status.json says {told['state']}")
        if told["state"] == "done":
            require(told["exit_code"] == 0, "status.json says done with another exit code than 0")
    for name in checkpoint.kept(place.output):
        checkpoint.load(place.output / name)
    require(len(checkpoint.kept(place.output)) <= int(KEEP) + 1, "checkpoints beyond TRAIN.KEEP are left")
    require_ends_as_unbroken(place, processes)


def kill_launcher(place: Place, chance: random.Random) -> None:
    """SIGKILL of torchrun, at a seeded moment: its processes end, and the same command ends as the unbroken run."""
    for _ in range(ATTEMPTS):
        launcher = _launched(place)
        time.sleep(chance.random() * place.unbroken(2).seconds / 2)
        ranks = workers_of(launcher.pid)
        launcher.kill()
        launcher.wait()
        if len(ranks) == 2:
            break
        place = place._replace(folder=place.folder / "again")
        place.folder.mkdir()
    require(len(ranks) == 2, f"no run of {ATTEMPTS} was hit")
    end = time.monotonic() + ALL_GONE
    while _alive(ranks) and time.monotonic() < end:
        time.sleep(0.05)
    left = _alive(ranks)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    require(not left, f"{len(left)} processes went on without their launcher")
    require_ends_as_unbroken(place, 2)


def _alive(ranks: Dict[int, int]) -> List[int]:
    return [pid for pid in ranks.values() if system_processes.state(pid) not in ("", "Z", "X")]


def stop_signal(place: Place, chance: random.Random) -> None:
    """SIGTERM, SIGUSR1 or SIGINT in each phase in turn, to one process: exit 75, told, and goes on."""
    _signal_and_resume(place, chance, processes=1)


def signal_rank(place: Place, chance: random.Random) -> None:
    """SIGTERM, SIGUSR1 or SIGINT in each phase in turn, to one process of two: both stop, told, and go on."""
    _signal_and_resume(place, chance, processes=2)


def _signal_and_resume(place: Place, chance: random.Random, processes: int) -> None:
    number = int(place.folder.name)  # of the injection: each phase has its turn
    phase = sorted(PHASES)[number % len(PHASES)]
    rank = 0 if phase in IN_THE_LEADER else chance.randrange(processes)
    which = chance.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
    hook = PHASES[phase]._replace(action=functools.partial(send, which))
    with Run(place, processes=processes, hooks={rank: hook}) as run:
        codes = run.wait()
    what = f"{which.name} to {rank} at {phase}"
    require(set(codes) in ({0}, {EXIT_PREEMPTED}), f"{what}: exit codes {codes}, {run.last_line()}")
    if (place.output / "status.json").exists():
        told = place.status()
        require(told["exit_code"] == codes[0], f"{what}: status.json says {told['exit_code']}, not {codes[0]}")
        require(told["state"] == ("stopped" if codes[0] else "done"), f"{what}: status.json says {told['state']}")
    require_ends_as_unbroken(place, processes)


def signal_validation(place: Place, chance: random.Random) -> None:
    """A signal to one process of two, as the other validates for longer than it is waited for: both stop, and go on."""
    rank = chance.randrange(2)
    start = "training.validation:evaluate_images"
    stop = functools.partial(send, chance.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]))
    hooks = {rank: Hook(start, 1, stop), 1 - rank: Hook(start, 1, _validate_slowly)}
    with Run(place, "TEST.BATCH_SIZE", "1", processes=2, hooks=hooks) as run:
        codes = run.wait()
    require(set(codes) == {EXIT_PREEMPTED}, f"exit codes {codes}: {run.last_line(1 - rank)}")
    require(place.status()["exit_code"] == EXIT_PREEMPTED, f"status.json says {place.status()['exit_code']}")
    require_ends_as_unbroken(place, 2)


def _validate_slowly(*_: object) -> None:
    original = evaluation.batches

    def slow(loader: Any) -> Iterator[Any]:
        for batch in original(loader):
            time.sleep(deadlines.LAST_WORD / 4)
            yield batch

    evaluation.batches = slow


def crash_loop(place: Place, chance: random.Random) -> None:
    """The same step fails after every restart: told from the second time on, given up, and goes on once mended."""
    first = chance.choice([1, chance.randint(2, 16)])
    number = chance.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
    starts, step, log = 0, 0, place.output / "log.txt"
    while True:
        hook = Hook("training.loop:train_step", 1 if starts else first, functools.partial(send, number))
        with Run(place, "TRAIN.MAX_FRUITLESS_RESTARTS", str(RESTARTS), hooks={0: hook}) as run:
            codes = run.wait()
        starts += 1
        if starts == 1:  # the last save may not have been done
            found = checkpoint.find(place.output)
            step = found[1]["progress"]["update"] if found else 0
        fruitless = starts - 1 - (step > 0)  # those before that began at the step
        if fruitless == RESTARTS:
            break
        require(codes == [-number], f"start {starts} ended with {codes}: {run.last_line()}")
        told = f"started {fruitless} times from update {step} without" in log.read_text()
        require(told == (fruitless > 1), f"start {starts}: told of {fruitless} before: {told}")
    require(codes == [EXIT_RESOURCE], f"it was not given up: {codes}, {run.last_line()}")
    require("MAX_FRUITLESS_RESTARTS 3 is reached" in run.last_line(), f"it says {run.last_line()}")
    require("MAX_FRUITLESS_RESTARTS 3 is reached" in place.status()["cause"], "status.json does not tell the cause")
    require_ends_as_unbroken(place)


def orphans(place: Place, chance: random.Random) -> None:
    """SIGKILL of a process with data workers, at a seeded moment: no worker and no shared memory is left."""
    before = _shared_memory()
    with Run(place, "DATA.NUM_WORKERS", "2") as run:
        run.wait_for(place.output / checkpoint.LAST)
        time.sleep(chance.random() * place.unbroken().seconds)
        left = _children(run.processes[0].pid)
        run.send(signal.SIGKILL)
        run.wait()
    end = time.monotonic() + ALL_GONE
    while _alive(left) and time.monotonic() < end:
        time.sleep(0.05)
    require(not _alive(left), f"{len(_alive(left))} processes went on")
    more = _shared_memory() - before
    require(not more, f"{SHARED_MEMORY} keeps {sorted(more)[:3]}")
    require_ends_as_unbroken(place)


def _shared_memory() -> Set[str]:
    """What is in shared memory but semaphores, which Python removes when the server of these runs ends."""
    return {name for name in os.listdir(SHARED_MEMORY) if not name.startswith("sem.mp-")}


def _children(parent: int) -> Dict[int, int]:
    """The children of a process, by their ids."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    return {int(pid): int(pid) for pid in (children.read_text() if children.exists() else "").split()}


def race(place: Place, chance: random.Random) -> None:
    """Two runs with one output folder, started together: one trains, the other exits with 7 and changes nothing."""
    same = place._replace(folder=place.folder / "other")
    for folder in (place.output, same.folder):
        folder.mkdir()
    same.output.symlink_to(place.output)
    with Run(place) as one:
        time.sleep(chance.random() * 0.2)
        with Run(same) as other:
            codes = sorted([*one.wait(), *other.wait()])
    require(codes == [0, EXIT_BUSY], f"exit codes {codes}: {one.last_line()} {other.last_line()}")
    require_ends_as_unbroken(place)


def kill_worker(place: Place, chance: random.Random) -> None:
    """SIGKILL of a data worker while a checkpoint is written: told as that, the checkpoint is whole, goes on."""
    during = chance.choice(["training.checkpoint:_write", "training.checkpoint:_put_in_place", "training.loop:save"])
    hook = Hook(during, chance.randint(2, 8), _kill_a_worker)
    with Run(place, "DATA.NUM_WORKERS", "2", hooks={0: hook}) as run:
        codes = run.wait()
    require(codes == [EXIT_RESOURCE], f"exit codes {codes}: {run.last_line()}")
    require("data worker" in run.last_line() and "SIGKILL" in run.last_line(), f"it says {run.last_line()}")
    require("data worker" in place.status()["cause"], f"status.json says {place.status()['cause']}")
    saved = checkpoint.load(place.output / checkpoint.LAST)["progress"]["update"]
    require(saved == place.status()["last_update"], "the state at its end was not saved")
    require_ends_as_unbroken(place)


def _kill_a_worker(*_: object) -> None:
    multiprocessing.active_children()[0].kill()


def stop_rank(place: Place, chance: random.Random) -> None:
    """SIGSTOP of one process of two under torchrun: all end soon after the deadline, and it goes on."""
    rank = chance.randrange(2)
    launcher = _launched(place, POPTORCH_HOST_TIMEOUT=GROUP_TIMEOUT)
    ranks = workers_of(launcher.pid)
    os.kill(ranks[rank], signal.SIGSTOP)
    begin = time.monotonic()
    try:
        launcher.wait(RUN_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        launcher.kill()
        launcher.wait()
        for pid in _alive(ranks):
            os.kill(pid, signal.SIGKILL)
    took = time.monotonic() - begin
    print(f"stop-rank: process {rank} was stopped; the run ended after {took:.1f} s")
    require(took < float(GROUP_TIMEOUT) + AFTER_TIMEOUT, f"the run took {took:.0f} s to end")
    require_ends_as_unbroken(place, 2)


def restart(place: Place, chance: random.Random) -> None:
    """SIGKILL of one process of two under torchrun --max-restarts: it goes on by itself, and ends as unbroken."""
    rank = chance.randrange(2)
    launcher = _launched(place, PET_MAX_RESTARTS="2")  # as --max-restarts
    time.sleep(chance.random() * place.unbroken(2).seconds / 2)
    ranks = workers_of(launcher.pid)
    with contextlib.suppress(ProcessLookupError, KeyError):  # it has ended
        os.kill(ranks[rank], signal.SIGKILL)
    try:
        code: Optional[int] = launcher.wait(RUN_SECONDS)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        ranks = workers_of(launcher.pid)
        launcher.kill()
        launcher.wait()
        for pid in _alive(ranks):
            os.kill(pid, signal.SIGKILL)
    require(code == 0, f"torchrun ended with {code}, {place.status()}")
    require(place.status()["state"] == "done", f"status.json says {place.status()}")
    require_ends_as_unbroken(place, 2)


def _launched(place: Place, **variables: str) -> "subprocess.Popen[bytes]":
    """A run of two processes under torchrun that has saved a checkpoint."""
    launcher = subprocess.Popen(
        torchrun(ROOT / "train_swin.py", *command_line(place, 2)),
        cwd=ROOT,
        env=dict(ENVIRONMENT, **variables),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (place.output / checkpoint.LAST).exists() and launcher.poll() is None:
        time.sleep(0.002)
    return launcher
