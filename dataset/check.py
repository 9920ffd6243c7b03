# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Checks a data set before it is trained on: python -m dataset.check DIR.

DIR is in ImageNet layout, or a folder with one folder a class. Every file is read and decoded on all cores, exactly as
training does. The exit code is 0 if there is at most something to note, 8 if training goes on with something that
deserves a look, and 3 if training would refuse the data set.
"""

import argparse
import collections
import functools
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Counter, Dict, Iterator, List, NamedTuple, Optional, Sequence

from common.command_line import CommandLine, run_command
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
    Place,
    Severity,
    image_hashes,
    inspect,
    note_duplicates,
    note_near_duplicates,
)
from dataset.image_folder import TRAINING_NAMES, VALIDATION_NAMES, ImageFolder, check_root, open_split

SHOWN = 5  # files of each kind, and classes
HEADER = "path split class bytes format width height mode sha256 severity findings training".split()
CHUNK = 16  # files that a process takes at once


class Checked(NamedTuple):
    """The files of a data set, what is known of each, and why training would refuse the whole."""

    places: List[Place]
    facts: List[Facts]
    refusals: List[str]


def check(root: Path, processes: int, near_duplicates: bool) -> Checked:
    """Reads all files of the data set at `root`.

    Args:
        processes: how many read in parallel.
        near_duplicates: whether to compare perceptual hashes.

    Raises:
        Refusal: if the folder has no classes or cannot be listed, or if a process is killed.
    """
    splits = find_splits(root)
    places = [place for split, folder in splits.items() for place in _files(split, folder)]
    read = functools.partial(inspect, perceptual=near_duplicates)
    facts: List[Facts] = []
    try:
        with ProcessPoolExecutor(processes) as pool, progress_bar("checking", len(places), " files") as bar:
            for fact in pool.map(read, places, chunksize=CHUNK):
                facts.append(fact)
                bar.update()
    except BrokenProcessPool as error:
        raise Refusal(
            "a process that reads images was killed: is memory full? try --num-workers 1", EXIT_RESOURCE
        ) from error
    note_duplicates(places, facts)
    if near_duplicates:
        note_near_duplicates(places, facts)
    return Checked(places, facts, [*_layout_refusals(root, splits), *_bad_refusals(splits, places, facts)])


def find_splits(root: Path) -> Dict[str, Path]:
    """The folders of the splits by name; a folder of classes without splits is its own split, with an empty name."""
    names = (*TRAINING_NAMES, *VALIDATION_NAMES)
    found = {name: root / name for name in names if (root / name).is_dir()}
    return found or {"": root}


def _files(split: str, folder: Path) -> Iterator[Place]:
    """All files of a split but hidden ones, sorted; links to folders are followed, each folder is read once."""
    seen = set()
    for here, folders, files in os.walk(str(folder), onerror=_refuse_unlistable, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            folders[:] = []
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        parts = Path(here).relative_to(folder).parts
        for name in sorted(name for name in files if not name.startswith(".")):
            yield Place(os.path.join(here, name), split, parts[0] if parts else None)


def _refuse_unlistable(error: OSError) -> None:
    raise Refusal(f"{shown(error.filename)} cannot be listed: {error.strerror}", EXIT_DATA) from error


def _layout_refusals(root: Path, splits: Dict[str, Path]) -> List[str]:
    """What training says of folders and classes, once."""
    refusals = []
    for split, folder in splits.items():
        try:
            ImageFolder(folder) if split == "" else open_split(root, split in TRAINING_NAMES)
        except Refusal as refusal:
            refusals.append(str(refusal))
    return sorted(set(refusals), key=refusals.index)


def _bad_refusals(splits: Dict[str, Path], places: Sequence[Place], facts: Sequence[Facts]) -> Iterator[str]:
    """For each split that has more damaged images than training skips."""
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
        description="Reads every file of a data set as training does, and tells what training would do with it.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="in ImageNet layout, or with one folder a class")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="write a row a file to a new file")
    parser.add_argument(
        "--near-duplicates",
        action="store_true",
        help="also find images that look the same, by perceptual hashes (pip install imagehash)",
    )
    parser.add_argument(
        "--num-workers", type=int, metavar="N", help="processes that read images; default: one for each core"
    )
    args = parser.parse(argv)
    if args.num_workers is not None and args.num_workers < 1:
        raise Refusal(f"--num-workers {args.num_workers}: must be at least 1")
    if args.output is not None:
        check_free(args.output)
    return args


def main(argv: Optional[List[str]] = None) -> None:
    """Command line; `argv` None: that of the process.

    Raises:
        Refusal: EXIT_FINDINGS and EXIT_DATA as of the module, and for what cannot be checked or written.
    """
    args = parse(argv)
    if args.near_duplicates:
        image_hashes()
    root = check_root(str(args.folder))
    with console_log(is_leader=True):
        checked = check(root, args.num_workers or multiprocessing.cpu_count(), args.near_duplicates)
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
        raise Refusal(
            f"{warnings} files of {shown(root)} deserve a look; training would go on with them", EXIT_FINDINGS
        )


if __name__ == "__main__":
    raise SystemExit(run_command(main))
