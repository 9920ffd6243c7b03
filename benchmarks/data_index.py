# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""How soon a large folder data set gives its first batch, and what its list takes in workers, beside torchvision's.

    python -m benchmarks.data_index [--images 1281167] [--classes 1000] [--rounds 3] [--workers 8] [--folder DIR]

It makes a data set of that size in DIR, best on a file system in memory: all files are links to a few copies of one
picture. In each round every way to read it takes its turn in a process of its own: torchvision's ImageFolder with
timm's transforms and torch's loader; ours `cold`, which reads every name; ours `warm`, which finds the list that an
earlier start has kept. `list` is the time until the data set is there, `first` the time from the same moment to the
first batch of a loader with workers. Memory is measured once for each, when workers have looked up every file: the
proportional set size (shared pages count once) and the pages that are each worker's own, of all workers together, with
Python and PyTorch. A ratio is the peer's figure over ours in one round, above 1 ours is better; printed are the median
and the range.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.datasets import ImageFolder

import accelerator
from config import get_config
from dataset.build_ipu import build_dataset, build_loader
from dataset.image_folder import open_split
from dataset.transforms import allow_zero_bits

BATCH = 64
LINKS = 50_000  # to one file: file systems limit them
LOOKUPS = 4096  # files that a worker looks up at a time
SETTLING = 3  # seconds before a data set that was just made is old enough to be kept
MEMORY = {"Pss:": "shared once", "Private_Dirty:": "workers' own"}


def make_data_set(root: Path, images: int, classes: int) -> None:
    """Links to copies of one picture, in ImageNet layout, with names as long as those of ImageNet."""
    buffer = io.BytesIO()
    pixels = np.random.RandomState(0).randint(0, 256, (47, 63, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((500, 375)).save(buffer, "JPEG")
    made = 0
    for split, count in (("train", images), ("validation", classes)):
        for label in range(classes):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(label, count, classes):
                copy = root / f"picture{made // LINKS}.jpg"
                if made % LINKS == 0:
                    copy.write_bytes(buffer.getvalue())
                os.link(copy, f"{folder}/n{label:08d}_{number}.JPEG")
                made += 1


class Lookups(torch.utils.data.Dataset):
    """Looks names and labels up, and decodes nothing."""

    def __init__(self, look_up: Callable[[int], Any], count: int):
        self._look_up = look_up
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return self._look_up(index)[1]


def measure_peer(arguments: argparse.Namespace) -> Dict[str, float]:
    """Seconds of torchvision's ImageFolder, or the memory of its list."""
    transform = create_transform(224, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25)
    allow_zero_bits(transform)
    start = time.perf_counter()
    images = ImageFolder(str(arguments.folder / "train"), transform)
    listed = time.perf_counter() - start
    if arguments.memory:
        return memory_of_workers(Lookups(images.samples.__getitem__, len(images)), arguments.workers)
    loader = torch.utils.data.DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=arguments.workers)
    next(iter(loader))
    return {"list": listed, "first": time.perf_counter() - start}


def measure_ours(arguments: argparse.Namespace) -> Dict[str, float]:
    """Seconds of our data set and loader, with the cache of lists `arguments.cache`, or the memory of its list."""
    if arguments.memory:
        folder = open_split(arguments.folder, True, cache=Path(arguments.cache) if arguments.cache else None)
        look_up = Lookups(lambda index: (folder.name(index), int(folder.labels[index])), len(folder))
        return memory_of_workers(look_up, arguments.workers)
    keys = {
        "DATA.DATA_PATH": str(arguments.folder),
        "DATA.INDEX_CACHE": arguments.cache,
        "DATA.NUM_WORKERS": arguments.workers,
        "DATA.LOADER": "sync",
        "TRAIN.ACCUMULATION_STEPS": BATCH // 4,
        "IPU.REPLICAS": 1,
    }
    config = get_config("SWIN_TINY", overrides=list(keys.items()))
    options = accelerator.poptorch().Options()
    options.Training.gradientAccumulation(config.TRAIN.ACCUMULATION_STEPS)
    start = time.perf_counter()
    dataset = build_dataset(config, training=True)
    listed = time.perf_counter() - start
    next(iter(build_loader(config, options, dataset, training=True)))
    return {"list": listed, "first": time.perf_counter() - start}


def memory_of_workers(dataset: Lookups, workers: int) -> Dict[str, float]:
    """Megabytes of workers that together have looked up every file."""
    loader = torch.utils.data.DataLoader(
        dataset, LOOKUPS, num_workers=workers, persistent_workers=True, multiprocessing_context="fork"
    )
    for _ in loader:
        pass
    found = dict.fromkeys(MEMORY.values(), 0.0)
    for worker in loader._iterator._workers:
        for line in Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines():
            name, *value = line.split()
            if name in MEMORY:
                found[MEMORY[name]] += int(value[0]) / 1024
    return found


def in_own_process(kind: str, arguments: argparse.Namespace, cache: str, *more: str) -> Dict[str, float]:
    """The figures that a process of its own measures."""
    command = [sys.executable, "-m", "benchmarks.data_index", "--measure", kind, "--cache", cache]
    command += ["--folder", str(arguments.folder), "--workers", str(arguments.workers), *more]
    # A worker that still makes its next batch when the process ends may complain; the figures are the last line.
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def report(title: str, figures: Dict[str, List[Dict[str, float]]], unit: str) -> None:
    """Prints each figure of each way, with its ratio to the first."""
    print(title)
    peer, *_ = figures
    for figure in figures[peer][0]:
        for name, rounds in figures.items():
            ratios = [theirs[figure] / ours[figure] for theirs, ours in zip(figures[peer], rounds)]
            line = f"  {figure:13s} {name:24s} {statistics.median(row[figure] for row in rounds):9.3f} {unit}"
            if name != peer:
                line += f", ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
            print(line)


def compare(arguments: argparse.Namespace) -> None:
    """Measures and prints all ways."""
    cache = str(arguments.folder / "cache")
    ways = {"torchvision, timm": ("peer", ""), "ours, cold": ("ours", ""), "ours, warm": ("ours", cache)}
    in_own_process("ours", arguments, cache)  # keeps the list
    figures: Dict[str, List[Dict[str, float]]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, (kind, place) in ways.items():
            figures[name].append(in_own_process(kind, arguments, place))
    print(
        f"{arguments.images} files in {arguments.classes} folders, {arguments.workers} workers, {os.cpu_count()} cores"
    )
    report("start", figures, "s")
    memory = {name: [in_own_process(kind, arguments, place, "--memory")] for name, (kind, place) in ways.items()}
    report(f"memory of {arguments.workers} workers that looked every file up", memory, "MB")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the data set is made (default: temporary)")
    parser.add_argument("--measure", choices=("peer", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure:
        accelerator.select("cpu")
        measure = {"peer": measure_peer, "ours": measure_ours}[arguments.measure]
        print(json.dumps(measure(arguments)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        arguments.folder = Path(folder)
        make_data_set(arguments.folder, arguments.images, arguments.classes)
        time.sleep(SETTLING)
        compare(arguments)


if __name__ == "__main__":
    main()
