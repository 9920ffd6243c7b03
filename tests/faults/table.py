# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The faults by name, and what injects one so many times."""

import contextlib
import random
import resource
import sys
import time
from pathlib import Path
from typing import Callable, Dict, NamedTuple

from tests.faults import conditions, files, kept_files, kills, zips
from tests.faults.runs import Lost, Place, Run, Unbroken, require
from training import checkpoint


class Fault(NamedTuple):
    """A fault: `inject` raises Lost where it is not survived."""

    inject: Callable[[Place, random.Random], None]
    runs: int  # of a full run of the command
    whole_runs: bool = False  # it trains, which takes seconds

    @property
    def description(self) -> str:
        """What it is, in a line."""
        return (self.inject.__doc__ or "").split("\n")[0]


FAULTS: Dict[str, Fault] = {
    "kill": Fault(kills.kill, 60, whole_runs=True),
    "kill-rank": Fault(kills.kill_rank, 30, whole_runs=True),
    "kill-launcher": Fault(kills.kill_launcher, 10, whole_runs=True),
    "restart": Fault(kills.restart, 3, whole_runs=True),
    "signal": Fault(kills.stop_signal, len(kills.PHASES), whole_runs=True),
    "signal-rank": Fault(kills.signal_rank, len(kills.PHASES), whole_runs=True),
    "signal-validation": Fault(kills.signal_validation, 5, whole_runs=True),
    "crash-loop": Fault(kills.crash_loop, 5, whole_runs=True),
    "out-of-memory": Fault(conditions.out_of_memory, 10, whole_runs=True),
    "orphans": Fault(kills.orphans, 5, whole_runs=True),
    "race": Fault(kills.race, 20, whole_runs=True),
    "kill-worker": Fault(kills.kill_worker, 10, whole_runs=True),
    "stop-rank": Fault(kills.stop_rank, 3, whole_runs=True),
    "processes": Fault(conditions.other_processes, 6, whole_runs=True),
    "clock": Fault(conditions.clock, 5, whole_runs=True),
    "read-error": Fault(conditions.read_error, 8, whole_runs=True),
    "inf-pixel": Fault(conditions.inf_pixel, 5, whole_runs=True),
    "nan-gradient": Fault(conditions.nan_gradient, 5, whole_runs=True),
    "divergence": Fault(conditions.divergence, 5, whole_runs=True),
    "long": Fault(conditions.long_run, 1, whole_runs=True),
    "no-file": Fault(files.no_file, len(files.OPENED) * len(files.OTHER_KINDS), whole_runs=True),
    "flip": Fault(files.flip, 200),
    "truncate": Fault(files.truncate, 100),
    "bomb": Fault(files.bomb, 50),
    "endless": Fault(files.endless, 10),
    "full-disk": Fault(files.full_disk, 20),
    "yaml": Fault(files.yaml_bomb, 40),
    "shards": Fault(kept_files.shards, 60),
    "data-list": Fault(kept_files.data_list, 40),
    "weights": Fault(kept_files.weights, 80),
    "foreign": Fault(kept_files.foreign, len(kept_files.HOSTILE)),
    "average": Fault(kept_files.average, 20),
    "zip": Fault(zips.bad_zip, len(zips.CASES) + len(zips.PATHS)),
}


class Result(NamedTuple):
    """What came of the injections of one fault."""

    runs: int
    survived: int
    worst_seconds: float
    peak_megabytes: float  # of this process, and of the runs that ended by themselves


def inject(fault: Fault, runs: int, seed: int, folder: Path, data: Path) -> Result:
    """Injects a fault so many times, or until Ctrl-C, at moments and places that the seed decides."""
    known: Dict[int, Unbroken] = {}

    def unbroken(processes: int = 1) -> Unbroken:
        if processes not in known:
            known[processes] = _unbroken(Place(folder / f"unbroken-{processes}", data, unbroken), processes)
        return known[processes]

    done = survived = 0
    worst = 0.0
    with contextlib.suppress(KeyboardInterrupt):
        for number in range(runs):
            place = Place(folder / str(number), data, unbroken)
            place.folder.mkdir(parents=True)
            begin = time.monotonic()
            try:
                fault.inject(place, random.Random(seed * 1_000_003 + number))
                survived += 1
            except Lost as error:
                print(f"injection {number} with seed {seed}: {error}", file=sys.stderr, flush=True)
            worst = max(worst, time.monotonic() - begin)
            done += 1
    peaks = [int(path.read_text()) for path in folder.glob("**/peak.*")]
    return Result(done, survived, worst, max([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, *peaks]) / 1024)


def _unbroken(place: Place, processes: int) -> Unbroken:
    place.folder.mkdir(parents=True)
    with Run(place, processes=processes) as run:
        run.wait_for(place.output / checkpoint.LAST)
        begin = time.monotonic()
        codes = run.wait()
    require(not any(codes), f"the run that nothing is injected into ended with {codes}: {run.last_line()}")
    return Unbroken(checkpoint.load(place.output / checkpoint.LAST), time.monotonic() - begin)
