# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What else goes wrong around a run: processes that come and go, clocks, storage, numbers that are not finite, time."""

import contextlib
import functools
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import torch

from common.archive import first_non_finite
from common.errors import EXIT_NONFINITE, EXIT_RESOURCE
from tests.faults.runs import RUN_SECONDS, Hook, Place, Run, command_line, require, require_ends_as_unbroken, send
from tests.runs import ROOT
from tests.training.test_distributed import ENVIRONMENT
from training import checkpoint

PLAIN = ("MODEL.DROP_RATE", "0.0", "MODEL.DROP_PATH_RATE", "0.0")  # masks are each process's own
CLOSE = 1e-4  # of weights that one process sums up in another order than two
LONG_EPOCHS, LONG_SECONDS = 1000, 840.0
LONG_IMAGES = 4  # of each of two classes: an epoch has one update
WARM, LATE = (200, 300), (900, 1000)  # epochs that are compared
MEASURED = ("descriptors", "threads", "memory")
PIECES = (1 << 20, 1 << 16, 1 << 14)  # bytes
USED_UP: List[bytearray] = []  # memory that a run has to do without
GROWTH = 1.05  # of memory between them


class Missing(Exception):
    """The machine lacks a program that the injection needs."""


def _need(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Missing(f"{name} is not installed")
    return path


def other_processes(place: Place, chance: random.Random) -> None:
    """A run that goes on with another number of processes: no sample is lost or repeated, weights agree to 1e-4."""
    order = chance.choice([(1, 2), (2, 1)])
    stopping = Hook("training.loop:train_step", chance.randint(2, 6), functools.partial(send, signal.SIGTERM))
    states = []
    for folder, counts in (("unbroken", order[:1]), ("changed", order)):
        here = place._replace(folder=place.folder / folder)
        here.folder.mkdir()
        for index, processes in enumerate(counts):
            hooks = {0: stopping} if index + 1 < len(counts) else {}
            with Run(here, *PLAIN, processes=processes, replicas=2, hooks=hooks) as run:
                codes = run.wait()
            require(set(codes) == {75 if hooks else 0}, f"{processes} processes ended with {codes}: {run.last_line()}")
        states.append(checkpoint.load(here.output / checkpoint.LAST))
    left, right = states
    require(left["progress"]["update"] == right["progress"]["update"], "it has another number of updates")
    for name, weight in left["model"].items():
        far = (weight - right["model"][name]).abs().max().item()
        require(far <= CLOSE * max(1.0, weight.abs().max().item()), f"{name} differs by {far:.2g} after {order}")


def clock(place: Place, chance: random.Random) -> None:
    """A clock that is set back by days, in a run and before it goes on: ends as the unbroken run."""
    rate = place.folder / "clock"
    rate.write_text("+0\n")
    faked = dict(
        ENVIRONMENT, FAKETIME_TIMESTAMP_FILE=str(rate), FAKETIME_CACHE_DURATION="1", FAKETIME_DONT_FAKE_MONOTONIC="1"
    )
    library = next(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        raise Missing("libfaketime is not installed")
    faked.update(LD_PRELOAD=str(library), PYTHONFAULTHANDLER="1")
    for stopped in (True, False):
        command = [sys.executable, str(ROOT / "train_swin.py"), *command_line(place, 1)]
        with open(place.folder / "output", "wb") as stream:
            process = subprocess.Popen(command, cwd=ROOT, env=faked, stdout=stream, stderr=stream)
        while stopped and not (place.output / checkpoint.LAST).exists() and process.poll() is None:
            time.sleep(0.002)
        rate.write_text(f"-{chance.randint(1, 400) * (1 if stopped else 2)}d\n")
        if stopped:
            time.sleep(chance.random() * place.unbroken().seconds)
            process.kill()
        try:
            code = process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # for a traceback, see PYTHONFAULTHANDLER
            code = process.wait()
        require(stopped or code == 0, f"it ended with {code}: {(place.folder / 'output').read_text()[-1500:]}")
    require_ends_as_unbroken(place)


def read_error(place: Place, chance: random.Random) -> None:
    """EIO as a checkpoint or an image is read, once or always: read again, or told and the one before is used."""
    strace = _need("strace")
    steps = Hook("training.loop:train_step", chance.randint(6, 15), functools.partial(send, signal.SIGKILL))
    with Run(place, hooks={0: steps}) as run:
        run.wait()
    always = chance.random() < 0.5
    image = chance.random() < 0.5
    images = sorted((place.data / "train").rglob("*.png"))
    path = chance.choice(images) if image else place.output / checkpoint.LAST
    injection = f"inject=read:error=EIO:when=1{'+' if always else ''}"
    command = [strace, "-f", "-qq", "-o", os.devnull, "-P", str(path), "-e", "trace=read", "-e", injection]
    command += [sys.executable, str(ROOT / "train_swin.py"), *command_line(place, 1)]
    ended = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)
    require(ended.returncode == 0, f"{path.name}: exit code {ended.returncode}, {ended.stderr[-300:]}")
    if not always:
        require_ends_as_unbroken(place)
    else:
        require(path.name in ended.stdout, f"{path.name} is not named as what cannot be read")


def out_of_memory(place: Place, chance: random.Random) -> None:
    """No memory or descriptors are left, from a step or save on: told, or killed as by the system, and it goes on."""
    where, calls = chance.choice([("training.loop:train_step", 18), ("training.checkpoint:_write", 18)])
    end = chance.choice([_no_more_memory, _no_more_descriptors, _kill_the_largest])
    workers = chance.choice(["0", "2"])
    with Run(place, "DATA.NUM_WORKERS", workers, hooks={0: Hook(where, chance.randint(2, calls), end)}) as run:
        codes = run.wait()
    what = f"{end.__name__} at {where}, {workers} workers: exit codes {codes}, {run.last_line()}"
    if end is _kill_the_largest:
        worker = codes == [EXIT_RESOURCE] and "killed by signal SIGKILL: most likely memory ran out" in run.last_line()
        require(worker or codes == [-signal.SIGKILL], what)
    else:
        said = ("memory", "Too many open files", *(["no batch in time"] if workers != "0" else []))
        told = any(words in run.last_line() for words in said)
        require(codes == [EXIT_RESOURCE] and told, what)
        require("Traceback" not in run.errors(), f"{what}: a traceback")
        require(place.status()["exit_code"] == EXIT_RESOURCE, f"{what}: status.json says {place.status()}")
    require_ends_as_unbroken(place)


def _no_more_memory(*_: Any) -> None:
    """This process gets no new memory from the system any more, and what it had free is used up to small pieces."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), resource.RLIM_INFINITY))
    for size in PIECES:
        with contextlib.suppress(MemoryError):
            while True:
                USED_UP.append(bytearray(size))


def _no_more_descriptors(*_: Any) -> None:
    """This process gets no new descriptors any more."""
    most = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with contextlib.suppress(OSError):
        while True:
            os.dup(0)


def _kill_the_largest(*_: Any) -> None:
    """As the system does without memory: the process of this run that has the most is killed."""
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    os.kill(max(processes, key=lambda pid: _used(pid).get("memory", 0)), signal.SIGKILL)


def _pixel(run: Any, progress: Any, images: torch.Tensor, *_: Any) -> None:
    images[0, 0, 0, 0] = math.inf


def inf_pixel(place: Place, chance: random.Random) -> None:
    """A pixel that is infinite: exit 5 with its cause, the checkpoints stay finite, and it goes on as unbroken."""
    _spoil(place, Hook("training.loop:train_step", chance.randint(2, 18), _pixel), "a pixel is not finite")


def _gradient(self: Any, slots: Any, gradients: List[torch.Tensor], scale: Any) -> None:
    gradients[0].fill_(math.nan)


def nan_gradient(place: Place, chance: random.Random) -> None:
    """NaN in gradients only: exit 5, the checkpoints stay finite, and it goes on as unbroken."""
    call = chance.randint(2, 18)
    _spoil(
        place, Hook("poptorch_host.updating.update:WeightUpdate._factor", call, _gradient), "gradients are not finite"
    )


def _flipped_bit(self: Any, slots: Any, gradients: List[torch.Tensor], scale: Any) -> None:
    values = gradients[0].view(-1)
    values.view(torch.int32)[values.abs().argmax()] ^= 1 << 26  # of the exponent: other by a factor of 256


def divergence(place: Place, chance: random.Random) -> None:
    """A bit of a gradient flips in one process of two: told at the next save, which is left out; it goes on."""
    call = chance.randint(2, place.unbroken(2).state["progress"]["update"])
    hook = Hook("poptorch_host.updating.update:WeightUpdate._factor", call, _flipped_bit)
    with Run(place, processes=2, hooks={chance.randint(0, 1): hook}) as run:
        codes = run.wait()
    lines = [run.last_line(rank) for rank in range(2)]
    told = all(f"process 1 has other weights than process 0 at update {call}" in line for line in lines)
    require(codes == [EXIT_RESOURCE] * 2 and told, f"exit codes {codes}: {lines}")
    state = checkpoint.load(place.output / checkpoint.LAST)
    require(state["progress"]["update"] == call - 1, f"the checkpoint is of update {state['progress']['update']}")
    require_ends_as_unbroken(place, processes=2)


def _spoil(place: Place, hook: Hook, said: str) -> None:
    with Run(place, hooks={0: hook}) as run:
        codes = run.wait()
    require(codes == [EXIT_NONFINITE], f"exit codes {codes}: {run.last_line()}")
    require(said in run.last_line(), f"it says {run.last_line()}")
    state = checkpoint.load(place.output / checkpoint.LAST)
    require(
        first_non_finite({name: state[name] for name in ("model", "optimizer")}) is None, "the checkpoint is not finite"
    )
    require(state["progress"]["update"] == hook.call - 1, f"it is of update {state['progress']['update']}")
    require_ends_as_unbroken(place)


def long_run(place: Place, chance: random.Random) -> None:
    """1,000 epochs with a checkpoint each: descriptors, threads and memory stay as they were after the first 200."""
    few = place.folder / "few"
    for split, label in ((split, label) for split in ("train", "validation") for label in "01"):
        (few / split / label).mkdir(parents=True)
        images = sorted((place.data / split / label).iterdir())[:LONG_IMAGES]
        for number, image in enumerate(images):
            shutil.copy(image, few / split / label / f"{number}.png")
    here = place._replace(data=few)
    options = (
        "DATA.BATCH_SIZE",
        str(2 * LONG_IMAGES),
        "TEST.INTERVAL",
        "10",
        "TRAIN.KEEP",
        "3",
        "TRAIN.EMA_DECAY",
        "0.9",
    )
    seen: List[Dict[str, int]] = []
    with Run(here, *options, "--epochs", str(LONG_EPOCHS)) as run:
        pid = run.processes[0].pid
        run.wait_for(place.output / checkpoint.LAST)
        begin = time.monotonic()
        while run.processes[0].is_alive() and time.monotonic() < begin + LONG_SECONDS:
            time.sleep(0.5)
            seen.append({"epoch": place.status()["last_update"], **_used(pid)})
        codes = run.wait()
    require(not any(codes), f"it ended with {codes}: {run.last_line()}")
    warm, late = (
        {name: max(look[name] for look in seen if name in look and first <= look["epoch"] < last) for name in MEASURED}
        for first, last in (WARM, LATE)
    )
    took = time.monotonic() - begin
    print(f"long: {took:.0f} s; at most in epochs {WARM[0]} to {WARM[1]} {warm}, {LATE[0]} to {LATE[1]} {late}")
    for name in ("descriptors", "threads"):
        require(late[name] <= warm[name], f"{name}: {warm[name]} became {late[name]}")
    require(late["memory"] <= GROWTH * warm["memory"], f"memory: {warm['memory']} KiB became {late['memory']}")


def _used(pid: Any) -> Dict[str, int]:
    """Open descriptors, threads and resident memory (KiB) of a process; empty if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        numbers = {key: int(value) for key, value in re.findall(r"(VmRSS|Threads):\s+(\d+)", status)}
        count = len(os.listdir(f"/proc/{pid}/fd"))
        return {"descriptors": count, "threads": numbers["Threads"], "memory": numbers["VmRSS"]}
    except (OSError, KeyError):
        return {}
