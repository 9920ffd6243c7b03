# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Predicts the most probable classes of single images."""

import glob
import os
import sys
from pathlib import Path
from typing import Any, Counter, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, cast

import numpy as np
import torch
from timm.data import ImageNetInfo
from yacs.config import CfgNode

from common.errors import EXIT_DATA, Refusal
from common.launch import Launch
from common.progress_bar import progress_bar
from dataset.build_ipu import build_images, build_loader, ending
from dataset.decode import shown
from dataset.listing import image_files, note_left_out
from dataset.shards import is_sharded
from dataset.workers import batches
from planning.geometry import configured_classes
from training import processes
from training.evaluation import build_validator
from training.overlays import Overlays
from training.tables import numbered

STANDARD_INPUT = "-"


class Prediction(NamedTuple):
    """The top classes of an image, most probable first, and its `features` (num_features,) float32 if requested."""

    path: str
    classes: Sequence[Tuple[int, float]]  # labels and probabilities
    features: Optional[np.ndarray]


def find_images(names: Sequence[str]) -> List[str]:
    """The files that `names` stand for: files, folders (their images at any depth, sorted) and patterns (sorted).

    A pattern has *, ? or [...], and ** for folders at any depth. '-' stands for the paths on standard input, one per
    line; those are only checked when they are read.

    Raises:
        Refusal: for a missing file or folder, a folder without images or with shards, and a pattern without matches.
    """
    files: List[str] = []
    for name in names:
        if name == STANDARD_INPUT:
            files += _listed()
        elif os.path.exists(name):
            files += _images_at(name)
        elif glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            found = [file for match in matches for file in _images_at(match, may_lack=True)]
            if not found:
                raise Refusal(f"{shown(name)} matches no images", EXIT_DATA)
            files += found
        else:
            raise Refusal(f"{shown(name)} is not a file or folder", EXIT_DATA)
    return files


def _images_at(name: str, may_lack: bool = False) -> List[str]:
    """The file itself, or the images in a folder."""
    if not os.path.isdir(name):
        return [name]
    if is_sharded(Path(name)):
        raise Refusal(f"{shown(name)} holds shards: validate.py --predictions FILE predicts the images of a data set")
    left_out: Counter[str] = Counter()
    found = sorted(os.path.join(name, file) for file in image_files(Path(name), left_out=left_out))
    note_left_out(Path(name), left_out)
    if not found and not may_lack:
        raise Refusal(f"{shown(name)} has no images", EXIT_DATA)
    return found


def _listed() -> List[str]:
    """The paths on standard input, one per line."""
    lines = [os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer]
    files = [file for line in lines if line for file in _images_at(line, may_lack=True)]
    if not files:
        raise Refusal("standard input lists no images: it needs one path per line", EXIT_DATA)
    return files


def class_count(config: CfgNode, names: Sequence[str]) -> int:
    """The number of classes of the weights, whose class names are `names`, if known."""
    return config.MODEL.NUM_CLASSES or len(names) or configured_classes(config)


def predict(
    config: CfgNode,
    path: Path,
    state: Optional[Dict[str, Any]],
    files: Sequence[str],
    top: int,
    launch: Launch,
    features: bool = False,
    overlays: Optional[Overlays] = None,
) -> Iterator[List[Prediction]]:
    """Yields the predictions batch by batch, in the order of `files`; every process gets those of all processes.

    Files that cannot be read as images are logged and skipped.

    Args:
        path: file of the weights.
        state: its contents from `checkpoint.load_own`; None for foreign weights.
        files: image files, the same in all processes.
        top: number of classes per image.
        features: whether to return features.
        overlays: where to draw an overlay of each image.

    Raises:
        Refusal: for weights of another architecture.
    """
    classes = class_count(config, state["classes"] if state else [])
    validator = build_validator(config, path, state, classes, launch, inspected=features or overlays is not None)
    loader = build_loader(config, validator.options, build_images(config, files), training=False)
    with ending(loader), progress_bar("prediction", len(files), " images") as bar:
        for images, numbers in batches(loader):
            outputs = validator(images)
            logits, pooled, maps = outputs if isinstance(outputs, (tuple, list)) else (outputs, None, None)
            if overlays is not None:
                overlays.draw(images, maps, numbers, files)
            best = logits.float().softmax(1).topk(min(top, classes))
            gathered = processes.gather(_rows(best, pooled if features else None, numbers), launch)
            rows = sorted((row for part in gathered for row in part), key=lambda row: row[0])
            yield [Prediction(files[number], likeliest, vector) for number, likeliest, vector in rows]
            bar.update(min(len(numbers) * launch.processes, len(files) - bar.n))


def _rows(best: Any, pooled: Optional[torch.Tensor], numbers: torch.Tensor) -> List[Tuple[int, Any, Any]]:
    """Index, (label, probability) pairs and features of each image of a batch, without padding and unreadable ones."""
    vectors = [None] * len(numbers) if pooled is None else pooled.float().numpy().copy()
    return [
        (number, list(zip(labels, probabilities)), vector)
        for number, labels, probabilities, vector in zip(
            numbers.tolist(), best.indices.tolist(), best.values.tolist(), vectors
        )
        if number >= 0
    ]


def synsets() -> Dict[str, str]:
    """The classes of ImageNet-1k in label order, with their descriptions."""
    return cast(Dict[str, str], ImageNetInfo("imagenet-1k").label_descriptions(as_dict=True))


def name_classes(names: Sequence[str], classes: int) -> List[str]:
    """The names of all classes; weights with 1,000 unnamed classes get the names of ImageNet-1k."""
    known = synsets()
    return list(known) if not names and classes == len(known) else numbered(names, classes)


def describe(names: Sequence[str], classes: int) -> List[str]:
    """Readable class names: ImageNet-1k synsets with their descriptions, and numbers for unnamed classes."""
    words = synsets()
    return [f"{name} ({words[name]})" if name in words else name for name in name_classes(names, classes)]
