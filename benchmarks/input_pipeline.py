# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Images a second of our input pipeline beside torchvision's ImageFolder with timm's transforms and mixup.

    python -m benchmarks.input_pipeline [--images 256] [--rounds 7] [--workers 2]

All read the same JPEG files, which the benchmark makes (500x400 pixels with the statistics of photographs), by the same
recipe: the Swin training augmentation at 224 pixels with mixup, and the evaluation transform. Ours also reads them from
shards, without and, where jpegtran is installed, with restart markers. NVIDIA DALI takes part where it is installed,
and with workers timm's create_loader with its prefetcher. They take turns, so that whatever else the machine does hits
all.
A ratio is the peer's time over ours in one round, above 1 ours is faster; printed are the median and the range of all
rounds, for CPU time in one process and for wall time with workers, and the wall time from nothing to the first batch.
"""

import argparse
import io
import itertools
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import numpy as np
import torch
from PIL import Image
from timm.data import FastCollateMixup, Mixup, create_loader, create_transform
from torchvision.datasets import ImageFolder

import accelerator
from benchmarks.dali import dali, is_installed
from config import get_config
from dataset import native
from dataset.build_ipu import build_dataset, build_loader
from dataset.decode import fast_jpeg
from dataset.prepare import Packing, prepare
from dataset.restart_markers import TOOL
from dataset.transforms import allow_zero_bits

WIDTH, HEIGHT, CLASSES = 500, 400, 4
BATCH, MICRO_BATCH = 32, 4  # the peer mixes a batch at a time, we a micro-batch at a time
RECIPE = dict(
    color_jitter=0.4,
    auto_augment="rand-m9-mstd0.5-inc1",
    re_prob=0.25,
    re_mode="pixel",
    re_count=1,
    interpolation="bicubic",
)
DETAIL = {4: 60, 8: 40, 16: 30, 32: 25, 64: 18, 128: 12, 256: 8}  # amplitude by frequency: about 1/f, as in photographs


def photograph(seed: int) -> Image.Image:
    """A picture of noise with amplitudes that fall with frequency."""
    generator = np.random.RandomState(seed)
    pixels = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
    for cells, amplitude in DETAIL.items():
        for channel in range(3):
            coarse = Image.fromarray(generator.randn(cells, cells).astype(np.float32))
            pixels[..., channel] += amplitude * np.asarray(coarse.resize((WIDTH, HEIGHT), Image.BICUBIC))
    pixels += 5 * generator.randn(HEIGHT, WIDTH, 1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_photographs(root: Path, count: int) -> float:
    """Writes `count` JPEGs in ImageNet layout; returns their mean size in bytes."""
    sizes = []
    for number in range(count):
        buffer = io.BytesIO()
        photograph(number).save(buffer, "JPEG", quality=90)
        for split in ("train", "validation"):
            folder = root / split / f"class{number % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.jpg").write_bytes(buffer.getvalue())
        sizes.append(len(buffer.getvalue()))
    return statistics.mean(sizes)


def training_transform() -> Any:
    """timm's transform for the Swin recipe."""
    transform = create_transform(224, is_training=True, **RECIPE)
    allow_zero_bits(transform)  # or it would crash with Pillow 13
    return transform


def peer(root: Path, workers: int) -> Callable[[], Iterator[Any]]:
    """torchvision's data set, timm's transforms, torch's loader, timm's mixup."""
    images = ImageFolder(str(root / "train"), training_transform())
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    mixup = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=CLASSES)
    return lambda: (mixup(images, labels) for images, labels in loader)


def prefetching_peer(root: Path, workers: int) -> Callable[[], Iterator[Any]]:
    """timm's loader with its prefetcher, which mixes, normalises and erases in the main process."""
    images = ImageFolder(str(root / "train"))
    mixing = FastCollateMixup(0.8, 1.0, label_smoothing=0.1, num_classes=CLASSES)
    loader = create_loader(
        images,
        (3, 224, 224),
        BATCH,
        is_training=True,
        num_workers=workers,
        collate_fn=mixing,
        device=torch.device("cpu"),
        pin_memory=False,
        **RECIPE,
    )
    allow_zero_bits(images.transform)
    return loader.__iter__


def evaluating_peer(root: Path, workers: int) -> Callable[[], Iterator[Any]]:
    """torchvision's data set, timm's evaluation transform, torch's loader."""
    transform = create_transform(224, is_training=False, interpolation="bicubic", crop_pct=224 / 256)
    images = ImageFolder(str(root / "validation"), transform)
    return torch.utils.data.DataLoader(images, BATCH, num_workers=workers, persistent_workers=workers > 0).__iter__


def ours(root: Path, workers: int, dtype: str, training: bool = True) -> Callable[[], Iterator[Any]]:
    """Our loader in synchronous mode."""
    config = get_config(
        "SWIN_TINY",
        overrides=[
            ("DATA.DATA_PATH", str(root)),
            ("DATA.NUM_WORKERS", workers),
            ("DATA.BATCH_SIZE", MICRO_BATCH if training else BATCH),
            ("DATA.INPUT_DTYPE", dtype),
        ],
    )
    options = accelerator.poptorch().Options()
    if training:
        options.Training.gradientAccumulation(BATCH // MICRO_BATCH)
    return build_loader(config, options, build_dataset(config, training), training).__iter__


def first_batch(root: Path, rounds: int) -> None:
    """Prints the time from nothing but the files to the first training batch, without workers."""
    makers = {"torchvision + timm": lambda: peer(root, 0), "ours, float": lambda: ours(root, 0, "float")}

    def once(make: Callable[[], Callable[[], Iterator[Any]]]) -> Callable[[], Iterator[Any]]:
        return lambda: itertools.islice(make()(), 1)

    seconds = take_turns({name: once(make) for name, make in makers.items()}, rounds, time.perf_counter)
    report("wall time from nothing to the first batch, no workers", seconds, BATCH)


def take_turns(
    pipelines: Dict[str, Callable[[], Iterator[Any]]], rounds: int, clock: Callable[[], float]
) -> Dict[str, List[float]]:
    """Seconds of an epoch of each pipeline in each round; a first round that starts workers is not counted."""
    seconds: Dict[str, List[float]] = {name: [] for name in pipelines}
    for number in range(rounds + 1):
        for name, start_epoch in pipelines.items():
            start = clock()
            for _ in start_epoch():
                pass
            if number:
                seconds[name].append(clock() - start)
    return seconds


def report(title: str, seconds: Dict[str, List[float]], images: int) -> None:
    """Prints milliseconds an image and the ratios to the peer."""
    print(title)
    reference, *others = seconds
    print(f"  {reference:28s} {1000 * statistics.median(seconds[reference]) / images:6.2f} ms an image")
    for name in others:
        ratios = [peers / own for peers, own in zip(seconds[reference], seconds[name])]
        print(
            f"  {name:28s} {1000 * statistics.median(seconds[name]) / images:6.2f} ms an image, ratio "
            f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
        )


def prepared(root: Path) -> Dict[str, Path]:
    """The data sets that ours reads by what they are called in the table: the folder, and shards made of it."""
    places = {"": root, ", shards": root / "shards"}
    prepare("shards", places[", shards"], root)
    if shutil.which(TOOL):
        places[", shards with markers"] = root / "markers"
        prepare("shards", root / "markers", root, packing=Packing(restart_markers=True))
    return places


def compare(
    title: str, places: Dict[str, Path], workers: int, arguments: argparse.Namespace, clock: Callable[[], float]
) -> None:
    """Measures and prints all pipelines."""
    root, images = places[""], arguments.images // BATCH * BATCH
    kinds = {"float": "float", "bytes": "uint8"}
    for training, peers in ((True, peer), (False, evaluating_peer)):
        pipelines = {"torchvision + timm": peers(root, workers)}
        for place, path in places.items():
            for kind, dtype in kinds.items():
                pipelines[f"ours, {kind}{place}"] = ours(path, workers, dtype, training)
        if training and workers:
            pipelines["timm, prefetcher"] = prefetching_peer(root, workers)
        if is_installed():
            split = root / ("train" if training else "validation")
            pipelines["DALI, float"] = dali(split, BATCH, images // BATCH, workers, training)
        seconds = take_turns(pipelines, arguments.rounds, clock)
        report(f"{'training' if training else 'evaluation'}, {title}", seconds, images)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2, help="for the second measurement; 0 leaves it out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    accelerator.select("cpu")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size = write_photographs(root, arguments.images)
        print(
            f"{arguments.images} JPEGs of {WIDTH}x{HEIGHT} pixels, {size / 1024:.0f} KiB on average; "
            f"torch {torch.__version__}, decoded and augmented by "
            + ("C code of dataset/" if native.library() else f"{'simplejpeg' if fast_jpeg() else 'Pillow'} and Pillow")
        )
        places = prepared(root)
        compare("CPU time, one process", places, 0, arguments, time.process_time)
        if arguments.workers:
            compare(f"wall time, {arguments.workers} workers", places, arguments.workers, arguments, time.perf_counter)
        first_batch(root, arguments.rounds)


if __name__ == "__main__":
    main()
