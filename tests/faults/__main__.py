# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Injects faults and prints a line for each: fault, runs, survived, worst seconds, memory peak.

python -m tests.faults [NAME ...] [--runs N] [--seed N]
"""

import argparse
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import List, Optional, Sequence

import dataset.prepare
from common.logs import logger
from tests.faults.conditions import Missing
from tests.faults.table import FAULTS, inject


def parse(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"faults to inject: {', '.join(FAULTS)} (all)")
    parser.add_argument("--runs", type=int, help="how often to inject each (its own number)")
    parser.add_argument("--seed", type=int, default=0, help="decides moments and places")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in FAULTS]
    if unknown:
        parser.error(f"{unknown[0]} is no fault: {', '.join(FAULTS)}")
    return args


def write_few_digits(everything: Path, few: Path) -> None:
    """160 scans to train on and 40 to validate on, so that a run takes seconds."""
    dataset.prepare.main(["digits", "--out", str(everything)])
    for split, kept in (("train", 16), ("validation", 4)):
        for folder in sorted((everything / split).iterdir()):
            (few / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:kept]:
                shutil.copy(image, few / split / folder.name)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Returns 1 when a fault was not survived each time."""
    args = parse(argv)
    logger.setLevel(logging.ERROR)
    lost: List[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        if any(FAULTS[name].whole_runs for name in args.names or FAULTS):
            write_few_digits(Path(temporary) / "all", data)
        print(f"{'fault':<17} {'runs':>5} {'survived':>8} {'worst s':>8} {'peak MB':>8}")
        for name in args.names or FAULTS:
            try:
                result = inject(FAULTS[name], args.runs or FAULTS[name].runs, args.seed, Path(temporary) / name, data)
            except Missing as error:
                print(f"{name:<17} skipped: {error}", flush=True)
                continue
            print(
                f"{name:<17} {result.runs:>5} {result.survived:>8} {result.worst_seconds:>8.1f} "
                f"{result.peak_megabytes:>8.0f}  {FAULTS[name].description}",
                flush=True,
            )
            lost += [name] * (result.survived < result.runs)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
