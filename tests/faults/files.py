# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Files that are damaged, hostile or no files at all: refused in a line, and what was good is still used."""

import os
import random
import resource
import signal
import socket
import time
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple, TypeVar, cast

from common.archive import DamagedFile, read_archive
from common.errors import Refusal
from config import get_config
from tests.common.test_archive import BOMBS, with_pickle
from tests.faults.runs import Place, Run, require
from tests.peak_memory import REFUSAL_SECONDS, REFUSAL_SPARE, peak_of
from tests.training.test_checkpoint import state
from training import checkpoint

Value = TypeVar("Value")
ENDED = (0, 2, 3, 4, 6, 7)  # exit codes of runs that meet something else than their files


def require_refused(call: Callable[[], object], size: int = 0) -> None:
    """The call must end with a line for the user instead of a value, a traceback or a hang, within the limits."""
    try:
        value = require_within_limits(call, size)
    except (Refusal, DamagedFile) as error:
        require("\n" not in str(error), f"it takes more than a line: {error}")
        return
    require(False, f"it was taken: {str(value)[:100]}")


def require_within_limits(call: Callable[[], Value], size: int = 0) -> Value:
    """What the call returns or raises; it must not take longer, or more memory, than a file of `size` bytes may."""

    def outcome() -> Tuple[Optional[Value], Optional[Exception]]:
        try:
            return call(), None
        except (Refusal, DamagedFile) as error:
            return None, error

    begin = time.process_time()
    peak, (value, error) = peak_of(outcome)
    seconds, most = time.process_time() - begin, 2 * size + REFUSAL_SPARE
    require(seconds < REFUSAL_SECONDS, f"it took {seconds:.1f} s, more than {REFUSAL_SECONDS}")
    require(peak < most, f"it took {peak >> 20} MiB, more than {most >> 20}")
    if error is not None:
        raise error
    return cast(Value, value)


def require_previous(folder: Path) -> None:
    """The checkpoint of update 1 must be found."""
    found = checkpoint.find(folder)
    require(found is not None and found[1]["progress"]["update"] == 1, "the checkpoint before is not found")


def flip(place: Place, chance: random.Random) -> None:
    """One bit of a checkpoint, anywhere in the file: refused."""
    checkpoint.save(place.folder, state(1), is_best=False)
    path = place.folder / "last.pth"
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    require_refused(lambda: checkpoint.load(path))


def truncate(place: Place, chance: random.Random) -> None:
    """A checkpoint cut at any byte, or zeros from there on as after a loss of power: the one before is used."""
    for update in (1, 2):
        checkpoint.save(place.folder, state(update), is_best=False)
    path = place.folder / "last.pth"
    size = path.stat().st_size
    os.truncate(path, chance.randrange(size))
    if chance.random() < 0.5:
        os.truncate(path, size)
    require_previous(place.folder)


def bomb(place: Place, chance: random.Random) -> None:
    """A file whose pickle claims more than it holds, nests without end or calls something: refused."""
    pickled, members, _ = BOMBS[chance.choice([name for name in BOMBS if BOMBS[name][2]])]
    path = with_pickle(place.folder / "bomb.pth", pickled, **members)
    require_refused(lambda: read_archive(path), path.stat().st_size)


def full_disk(place: Place, chance: random.Random) -> None:
    """A limit on the size of files that a save runs into: told, and what was there before still is."""
    checkpoint.save(place.folder, state(1), is_best=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (chance.randrange(1, 5000), limits[1]))
    try:
        require_refused(lambda: checkpoint.save(place.folder, state(2), is_best=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    require_previous(place.folder)


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


def yaml_bomb(place: Place, chance: random.Random) -> None:
    """A configuration file that is none: refused."""
    (place.folder / "a.yaml").write_text("SEED: 1\n")
    (place.folder / "bomb.yaml").write_text(chance.choice(YAML_BOMBS))
    require_refused(lambda: get_config(str(place.folder / "bomb.yaml")), (place.folder / "bomb.yaml").stat().st_size)


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the names of sockets are short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


# What can be in the place of a file.
OTHER_KINDS: Dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": lambda path: (path / "in it").mkdir(parents=True),
    "device without an end": lambda path: path.symlink_to("/dev/zero"),
    "device that is full": lambda path: path.symlink_to("/dev/full"),
    "link to nothing": lambda path: path.symlink_to(path.parent / "nowhere" / "at all"),
    "socket": _bind,
}
# Files that a run opens, by their names in its output folder or beside it.
OPENED = (
    *("last.pth", "previous.pth", "best.pth", "update-00000003.pth", "log.txt", "metrics.csv", "status.json"),
    *("config.yaml", ".lock", ".last.pth.tmp", ".best.pth.tmp", ".update-00000002.pth.tmp"),
)


def no_file(place: Place, chance: random.Random) -> None:
    """A pipe, folder, device, socket or dangling link where a run opens a file: it ends, with a line at most."""
    turn, number = divmod(int(place.folder.name), len(OPENED))
    name, kind = OPENED[number], sorted(OTHER_KINDS)[(number + turn) % len(OTHER_KINDS)]
    place.output.mkdir()
    OTHER_KINDS[kind](place.output / name)
    with Run(place, "TRAIN.KEEP", "2", "TRAIN.TRAINING_STEPS", "4") as run:
        codes = run.wait()
        errors = run.errors()
    require(codes[0] in ENDED, f"{kind} as {name}: exit code {codes[0]}, {run.last_line()}")
    require("Traceback" not in errors, f"{kind} as {name}: a traceback")
    require(codes[0] == 0 or len(errors.splitlines()) == 1, f"{kind} as {name}: it says {errors}")


def endless(place: Place, chance: random.Random) -> None:
    """A checkpoint's name that leads to a pipe nobody writes to, or a device without an end: refused."""
    os.mkfifo(place.folder / "pipe")
    name = chance.choice([place.folder / "pipe", Path("/dev/zero")])
    require_refused(lambda: checkpoint.load(name))
