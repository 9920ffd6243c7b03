# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Memory during epochs over a data set in shards: it must not grow.

    python -m benchmarks.shards_epoch [--images 100000] [--workers 2] [--epochs 1] [--folder DIR]

It makes a folder data set of small pictures in DIR, packs it with dataset.prepare, and reads epochs with the Swin
training augmentation at 32 pixels. Printed is the memory of this process and its workers (proportional set size, so
that shared pages count once) after each tenth of an epoch, and its growth from the second tenth, when everything has
been used once, to the last.
"""

import argparse
import io
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image

import accelerator
from config import get_config
from dataset.build_ipu import build_dataset, build_loader
from dataset.prepare import prepare
from dataset.workers import batches

CLASSES = 100
PICTURES = 64  # different ones
BATCH = 50
TENTHS = 10


def make_folders(root: Path, images: int) -> None:
    """JPEGs of 40x40 pixels in ImageNet layout."""
    pictures = []
    for seed in range(PICTURES):
        buffer = io.BytesIO()
        coarse = np.random.RandomState(seed).randint(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 40)).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    for split, count in (("train", images), ("validation", CLASSES)):
        for label in range(CLASSES):
            folder = root / split / f"class{label:03d}"
            folder.mkdir(parents=True)
            for number in range(label, count, CLASSES):
                (folder / f"{number:07d}.jpg").write_bytes(pictures[number % PICTURES])


def memory() -> Tuple[float, float]:
    """Megabytes of this process, and of its workers together."""
    workers = [process.pid for process in multiprocessing.active_children()]
    return _shared_once([os.getpid()]), _shared_once(workers)


def _shared_once(pids: Sequence[Optional[int]]) -> float:
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in pids]
    return sum(int(line.split()[1]) / 1024 for lines in rollups for line in lines if line.startswith("Pss:"))


def read_epochs(root: Path, arguments: argparse.Namespace) -> List[float]:
    """The memory after each tenth of each epoch, printed as it is measured."""
    keys = {
        "DATA.DATA_PATH": str(root),
        "DATA.IMG_SIZE": 32,
        "DATA.NUM_WORKERS": arguments.workers,
        "DATA.LOADER": "sync",
        "DATA.BATCH_SIZE": BATCH,
        "MODEL.SWIN.PATCH_SIZE": 2,
        "MODEL.SWIN.WINDOW_SIZE": 4,
        "MODEL.SWIN.DEPTHS": [2, 2],
        "MODEL.SWIN.NUM_HEADS": [3, 6],
        "TRAIN.ACCUMULATION_STEPS": 1,
        "IPU.LAYERS_PER_IPU": [4],
        "IPU.REPLICAS": 1,
    }
    config = get_config(overrides=list(keys.items()))
    loader = build_loader(config, accelerator.poptorch().Options(), build_dataset(config, True), True)
    found, steps = [], len(loader)
    for epoch in range(arguments.epochs):
        start = time.perf_counter()
        for step, (images, _) in enumerate(batches(loader), start=1):
            if step * TENTHS // steps != (step - 1) * TENTHS // steps:
                here, workers = memory()
                found.append(here + workers)
                print(
                    f"epoch {epoch + 1}, {step * len(images):8d} images: {here:.1f} MB, workers {workers:.1f} MB, "
                    f"{step * len(images) / (time.perf_counter() - start):.0f} images/s"
                )
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the data sets are made (default: temporary)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    accelerator.select("cpu")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = Path(folder)
        make_folders(root / "folders", arguments.images)
        start = time.perf_counter()
        prepare("shards", root / "shards", root / "folders")
        print(f"packed {arguments.images} images in {time.perf_counter() - start:.1f} s")
        found = read_epochs(root / "shards", arguments)
    print(f"growth from the second tenth to the last: {found[-1] - found[1]:+.1f} MB of {found[1]:.1f} MB")


if __name__ == "__main__":
    main()
