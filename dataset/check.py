# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Checks a data set before training: python -m dataset.check DIR.

DIR has a layout that training reads (folders, shards, zip archives with --zip, ImageNet-22k), or one folder per class.
Every file is read and decoded on all cores, exactly as in training. The exit code is 0 if there is at most a note, 8 if
training would run, but some files need attention, and 3 if training would refuse the data set.
"""

import argparse
import collections
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Counter, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from common.command_line import CommandLine, run_command
from common.cores import usable_cores
from common.errors import EXIT_DATA, EXIT_FINDINGS, EXIT_RESOURCE, Refusal
from common.logs import console_log
from common.progress_bar import progress_bar
from common.results import check_free, standard_output, write_table
from dataset.decode import most_bad, shown
from dataset.findings import (
    TRUNCATED,
    UNREADABLE,
    Facts,
    Finding,
    Kind,
    Severity,
    image_hashes,
    inspect,
    note_duplicates,
    note_near_duplicates,
)
from dataset.image_folder import check_root
from dataset.inventory import Inventory, Place, take_inventory

SHOWN = 5  # files shown of each kind, and classes
HEADER = "path split class bytes format width height mode sha256 severity findings training".split()
CHUNK = 16  # files passed to a process at once

_task: Optional[Tuple[Inventory, bool]] = None


class Checked(NamedTuple):
    """The files of a data set, the facts about each, and the reasons why training would refuse the data set."""

    places: List[Place]
    facts: List[Facts]
    refusals: List[str]


def check(root: Path, processes: int, near_duplicates: bool, zipped: bool = False) -> Checked:
    """Reads all files of the data set at `root`.

    Args:
        processes: number of processes that read in parallel.
        near_duplicates: whether to compare perceptual hashes.
        zipped: whether to read archives, as training does with --zip.

    Raises:
        Refusal: if the data set has no classes or cannot be listed, or if a process is killed.
    """
    inventory = take_inventory(root, zipped)
    positions, places, facts = inventory.positions(), inventory.places(), []
    try:
        with ProcessPoolExecutor(processes, initializer=_begin, initargs=(inventory, near_duplicates)) as pool:
            with progress_bar("checking", len(positions), " files") as bar:
                for fact in pool.map(_inspect, positions, chunksize=CHUNK):
                    facts.append(fact)
                    bar.update()
    except BrokenProcessPool as error:
        raise Refusal(
            "a process reading images was killed: is memory full? try --num-workers 1", EXIT_RESOURCE
        ) from error
    note_duplicates(places, facts)
    if near_duplicates:
        note_near_duplicates(places, facts)
    return Checked(places, facts, [*inventory.refusals, *_bad_refusals(inventory.splits, places, facts)])


def _begin(inventory: Inventory, near_duplicates: bool) -> None:
    """Called in each process of the pool: keeps the arguments of `_inspect` too large to send with each file."""
    global _task
    _task = inventory, near_duplicates


def _inspect(position: Tuple[str, int]) -> Facts:
    assert _task is not None
    inventory, near_duplicates = _task
    split, index = position
    files = inventory.splits[split]
    return inspect(files.places[index], lambda: files.read(index), near_duplicates)


def _bad_refusals(splits: Iterable[str], places: Sequence[Place], facts: Sequence[Facts]) -> Iterator[str]:
    """Refusals of splits with more damaged images than training skips."""
    for split in splits:
        kinds = [
            {finding.kind for finding in fact.findings}
            for place, fact in zip(places, facts)
            if place.split == split and place.label is not None
        ]
        bad = sum(bool(found & {UNREADABLE, TRUNCATED}) for found in kinds)
        images = bad + sum(fact.is_readable for place, fact in zip(places, facts) if place.split == split)
        if bad > most_bad(images):
            yield f"{split or 'folder'}: {bad} bad images of {images}: more than {most_bad(images)} are not skipped"


def summarise(checked: Checked) -> Iterator[str]:
    """The lines of the summary."""
    by_split: Dict[str, List[int]] = {}
    for index, place in enumerate(checked.places):
        by_split.setdefault(place.split, []).append(index)
    for split, members in by_split.items():
        yield from _summarise_split(checked, split, members)
    found: Dict[Kind, List[str]] = {}
    for place, fact in zip(checked.places, checked.facts):
        for finding in fact.findings:
            found.setdefault(finding.kind, []).append(_said(place, finding))
    for kind, files in sorted(found.items(), key=lambda item: (-item[0].severity, item[0].name)):
        more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
        yield f"{kind.severity.name} {kind.name}: {len(files)}; {kind.effect}: {', '.join(files[:SHOWN])}{more}"
    for refusal in checked.refusals:
        yield f"ERROR {refusal}"


def _said(place: Place, finding: Finding) -> str:
    return shown(place.path) + (f" ({shown(finding.detail)})" if finding.detail else "")


def _summarise_split(checked: Checked, split: str, members: Sequence[int]) -> Iterator[str]:
    images = [checked.facts[index] for index in members if checked.facts[index].is_readable]
    labels = Counter(
        str(checked.places[index].label) for index in members if checked.facts[index].is_readable
    ).most_common()
    yield f"{split or 'folder'}: {len(images)} images of {len(labels)} classes"
    if not images:
        return
    largest, smallest = labels[:SHOWN], labels[: -SHOWN - 1 : -1]
    yield f"  largest classes: {_counts(largest)}; smallest: {_counts(smallest)}"
    sides = {side: [getattr(fact, side) for fact in images] for side in ("width", "height")}
    spans = [
        f"{side} {min(found)} to {max(found)}, median {statistics.median(found):g}" for side, found in sides.items()
    ]
    yield f"  pixels: {'; '.join(spans)}; {sum(fact.size for fact in images) / 1e6:.1f} MB"
    modes = collections.Counter(f"{fact.format} {fact.mode}" for fact in images).most_common()
    converted = "; training converts them to RGB" if any(fact.mode != "RGB" for fact in images) else ""
    yield f"  formats and colour modes: {_counts(modes)}{converted}"


def _counts(counted: Sequence[Any]) -> str:
    return ", ".join(f"{shown(name)} {count}" for name, count in counted)


def _rows(root: Path, checked: Checked) -> Iterator[List[Any]]:
    for place, fact in zip(checked.places, checked.facts):
        worst = max((finding.kind.severity for finding in fact.findings), default=None)
        texts = [f"{finding.kind.name} {finding.detail}".strip() for finding in fact.findings]
        effects = [finding.kind.effect for finding in fact.findings] or ["read"]
        pixels = (fact.width or "", fact.height or "")
        yield [
            *(os.path.relpath(place.path, str(root)), place.split, place.label, fact.size, fact.format, *pixels),
            *(fact.mode, fact.digest, "" if worst is None else worst.name, "; ".join(texts), "; ".join(effects)),
        ]


def parse(argv: Optional[List[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = CommandLine(
        prog="python -m dataset.check",
        allow_abbrev=False,
        description="Reads every file of a data set as training does, and reports what training would do with it.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a data set, or a folder with one folder per class")
    parser.add_argument("--zip", action="store_true", help="read train.zip and validation.zip instead of folders")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="write a new CSV file with one row per file")
    parser.add_argument(
        "--near-duplicates",
        action="store_true",
        help="also find images that look the same, by perceptual hashes (pip install imagehash)",
    )
    parser.add_argument(
        "--num-workers", type=int, metavar="N", help="processes that read images (default: one per usable core)"
    )
    args = parser.parse(argv)
    if args.num_workers is not None and args.num_workers < 1:
        raise Refusal(f"--num-workers {args.num_workers}: must be at least 1")
    if args.output is not None:
        check_free(args.output)
    return args


def main(argv: Optional[List[str]] = None) -> None:
    """Runs the command line `argv`; None: that of the process.

    Raises:
        Refusal: EXIT_FINDINGS and EXIT_DATA as described above, and if something cannot be checked or written.
    """
    args = parse(argv)
    if args.near_duplicates:
        image_hashes()
    root = check_root(str(args.folder))
    with console_log(is_leader=True):
        checked = check(root, args.num_workers or usable_cores(), args.near_duplicates, args.zip)
        with standard_output():
            for line in summarise(checked):
                print(line)
        if args.output is not None:
            write_table(args.output, HEADER, _rows(root, checked))
    if checked.refusals:
        raise Refusal(f"training refuses {shown(root)}: {checked.refusals[0]}", EXIT_DATA)
    warnings = sum(
        any(finding.kind.severity == Severity.WARNING for finding in fact.findings) for fact in checked.facts
    )
    if warnings:
        raise Refusal(f"{warnings} files of {shown(root)} need attention; training would run with them", EXIT_FINDINGS)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
