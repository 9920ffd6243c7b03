# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Faults, each a function that injects one and says whether the run, or the file's reader, survived it."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple

from common.archive import DamagedFile, read_archive
from common.errors import EXIT_PREEMPTED, Refusal
from config import get_config
from tests.common.test_archive import BOMBS, with_pickle
from tests.runs import SMALL, assert_same_run
from tests.training.test_checkpoint import state
from training import checkpoint

ROOT = Path(__file__).resolve().parents[2]
SAVES_OFTEN = ["TRAIN.CHECKPOINT_STEPS", "1"]
RUN_SECONDS = 120  # no run of these takes longer


class Place(NamedTuple):
    """Where faults are injected."""

    folder: Path  # empty, for one fault
    data: Path  # the digits, as swin_test prepares them
    reference: Callable[[], Dict[str, object]]  # the last checkpoint of a run that nothing happened to


def command(place: Place) -> List[str]:
    """The command line of a tiny run that saves after every update."""
    data = ["--data-path", str(place.data), "--output", str(place.folder / "out")]
    return [sys.executable, str(ROOT / "train_swin.py"), *SMALL, *SAVES_OFTEN, *data]


def start(place: Place) -> "subprocess.Popen[bytes]":
    """The run, started; what it prints is dropped."""
    return subprocess.Popen(command(place), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)


def wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    """Waits until a file is there or the process has ended."""
    end = time.monotonic() + RUN_SECONDS
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)


def ends_as_unbroken(place: Place) -> bool:
    """Runs the command to its end; whether its last checkpoint is that of the unbroken run, bit for bit."""
    if start(place).wait(RUN_SECONDS) != 0:
        return False
    with contextlib.suppress(AssertionError):
        assert_same_run(checkpoint.load(place.folder / "out" / "last.pth"), place.reference())
        return True
    return False


def kill(place: Place, chance: random.Random) -> bool:
    """SIGKILL at a seeded moment after the first checkpoint, half of them while a save is being written."""
    process, inside = start(place), chance.random() < 0.5
    output = place.folder / "out"
    wait_for(output / "last.pth", process)
    time.sleep(chance.random() * 0.5)
    if inside:
        end = time.monotonic() + 5
        while not (output / ".last.pth.tmp").exists() and process.poll() is None and time.monotonic() < end:
            pass
    process.kill()
    process.wait()
    told = json.loads((output / "status.json").read_text())["state"]
    return told in ("running", "done") and checkpoint.find(output) is not None and ends_as_unbroken(place)


def stop_signal(place: Place, chance: random.Random) -> bool:
    """SIGTERM, SIGUSR1 or SIGINT at a seeded moment of training: exit 75 with what is in status.json, or done."""
    process = start(place)
    output = place.folder / "out"
    wait_for(output / "last.pth", process)
    time.sleep(chance.random() * 0.5)
    process.send_signal(chance.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]))
    code = process.wait(RUN_SECONDS)
    status = json.loads((output / "status.json").read_text())
    sound = code in (0, EXIT_PREEMPTED) and status["exit_code"] == code
    return sound and ends_as_unbroken(place)


def flip(place: Place, chance: random.Random) -> bool:
    """One bit of a checkpoint, anywhere in the file: it is refused."""
    checkpoint.save(place.folder, state(1), is_best=False)
    path = place.folder / "last.pth"
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return refused(lambda: checkpoint.load(path))


def truncate(place: Place, chance: random.Random) -> bool:
    """A checkpoint cut at any byte: the previous one is used."""
    for update in (1, 2):
        checkpoint.save(place.folder, state(update), is_best=False)
    path = place.folder / "last.pth"
    os.truncate(path, chance.randrange(path.stat().st_size))
    found = checkpoint.find(place.folder)
    return found is not None and found[1]["progress"]["update"] == 1


def bomb(place: Place, chance: random.Random) -> bool:
    """A file whose pickle claims more than it holds, nests without end or calls something: it is refused."""
    pickled, members, said = BOMBS[chance.choice([name for name in BOMBS if BOMBS[name][2]])]
    path = with_pickle(place.folder / "bomb.pth", pickled, **members)
    return refused(lambda: read_archive(path))


def endless(place: Place, chance: random.Random) -> bool:
    """A checkpoint's name that leads to a pipe nobody writes to, or a device without an end: it is refused."""
    os.mkfifo(place.folder / "pipe")
    name = chance.choice([place.folder / "pipe", Path("/dev/zero")])
    return refused(lambda: checkpoint.load(name))


def full_disk(place: Place, chance: random.Random) -> bool:
    """A limit on the size of files that a save runs into: what was there before is still there."""
    checkpoint.save(place.folder, state(1), is_best=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (chance.randrange(1, 5000), limits[1]))
    try:
        told = refused(lambda: checkpoint.save(place.folder, state(2), is_best=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    found = checkpoint.find(place.folder)
    return told and found is not None and found[1]["progress"]["update"] == 1


YAML_BOMBS = [
    "BASE: 5",
    "SEED: 2020-99-99",
    "SEED: !!int abc",
    "SEED: " + "9" * 6000,
    "\n".join(f"K{number}: 1" for number in range(30000)),
    "SEED: !!python/object/apply:os.system [exit]",
    "A: &a [1]\nB: [*a, *a]",
    "[" * 20000,
    "? [1]\n: 2",
    "BASE: [" + ", ".join(["a.yaml"] * 100) + "]",
]


def yaml_bomb(place: Place, chance: random.Random) -> bool:
    """A configuration file that is none: one line says so."""
    (place.folder / "a.yaml").write_text("SEED: 1\n")
    (place.folder / "bomb.yaml").write_text(chance.choice(YAML_BOMBS))
    return refused(lambda: get_config(str(place.folder / "bomb.yaml")))


def refused(call: Callable[[], object]) -> bool:
    """Whether a call ends with a line for the user instead of a value, a traceback or a hang."""
    try:
        call()
    except (Refusal, DamagedFile) as error:
        return "\n" not in str(error)
    return False


class Fault(NamedTuple):
    """A fault: how often a full run of the command injects it."""

    inject: Callable[[Place, random.Random], bool]
    runs: int
    whole_runs: bool = False  # it trains, which takes seconds

    @property
    def description(self) -> str:
        """What it is, in a line."""
        return (self.inject.__doc__ or "").split(":")[0]


FAULTS: Dict[str, Fault] = {
    "kill": Fault(kill, 100, whole_runs=True),
    "signal": Fault(stop_signal, 30, whole_runs=True),
    "flip": Fault(flip, 200),
    "truncate": Fault(truncate, 100),
    "bomb": Fault(bomb, 50),
    "endless": Fault(endless, 10),
    "full-disk": Fault(full_disk, 20),
    "yaml": Fault(yaml_bomb, 40),
}


class Result(NamedTuple):
    """What came of the injections of one fault."""

    runs: int
    survived: int
    worst_seconds: float
    peak_megabytes: float  # of this process and those it waited for


def inject(fault: Fault, runs: int, seed: int, folder: Path, data: Path) -> Result:
    """Injects a fault so many times, at moments and places that the seed decides."""
    known: List[Dict[str, object]] = []

    def unbroken() -> Dict[str, object]:
        if not known:
            place = Place(folder / "unbroken", data, unbroken)
            if start(place).wait(RUN_SECONDS) != 0:
                raise RuntimeError("the run that nothing is injected into does not end")
            known.append(checkpoint.load(place.folder / "out" / "last.pth"))
        return known[0]

    survived, worst = 0, 0.0
    for number in range(runs):
        place = Place(folder / str(number), data, unbroken)
        place.folder.mkdir(parents=True)
        begin = time.monotonic()
        survived += fault.inject(place, random.Random(seed * 1_000_003 + number))
        worst = max(worst, time.monotonic() - begin)
    used = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Result(runs, survived, worst, used / 1024)
