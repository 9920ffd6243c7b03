# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Prediction of the most probable classes of single images."""

import os
from pathlib import Path
from typing import Any, Counter, Dict, Iterator, List, Optional, Sequence, Tuple, cast

from timm.data import ImageNetInfo
from yacs.config import CfgNode

from common.errors import EXIT_DATA, Refusal
from common.launch import Launch
from dataset.build_ipu import build_images, build_loader
from dataset.decode import shown
from dataset.image_folder import image_files, note_left_out
from dataset.samples import UNREADABLE
from dataset.workers import batches
from planning.geometry import configured_classes
from training.evaluation import build_validator

Prediction = List[Tuple[str, float]]  # class names and probabilities, the most probable first


def find_images(names: Sequence[str]) -> List[str]:
    """The files in `names`, and the images in its folders at any depth, sorted.

    Raises:
        Refusal: for a missing file or folder, and a folder without images.
    """
    files: List[str] = []
    for name in names:
        if Path(name).is_dir():
            left_out: Counter[str] = Counter()
            found = sorted(os.path.join(name, file) for file in image_files(Path(name), left_out=left_out))
            note_left_out(Path(name), left_out)
            if not found:
                raise Refusal(f"{shown(name)} has no images", EXIT_DATA)
            files += found
        elif Path(name).exists():
            files.append(name)
        else:
            raise Refusal(f"{shown(name)} is not a file or folder", EXIT_DATA)
    return files


def predict(
    config: CfgNode, path: Path, state: Optional[Dict[str, Any]], files: Sequence[str], top: int, launch: Launch
) -> Iterator[Tuple[str, Prediction]]:
    """Each of this process's files with its `top` likeliest classes, as soon as its batch is computed.

    Files that cannot be read as images are logged and left out.

    Args:
        path: where the weights are.
        state: what `checkpoint.load_own` read there; None for foreign weights.

    Raises:
        Refusal: for weights of another architecture; at the end, where files were left out.
    """
    names = state["classes"] if state else []
    classes = config.MODEL.NUM_CLASSES or len(names) or configured_classes(config)
    names = describe(names, classes)
    validator = build_validator(config, path, state, classes, launch)
    loader = build_loader(config, validator.options, build_images(config, files), training=False)
    bad = 0
    for images, numbers in batches(loader):
        bad += int((numbers == UNREADABLE).sum())
        best = validator(images).float().softmax(1).topk(min(top, classes))
        for number, probabilities, labels in zip(numbers.tolist(), *(part.tolist() for part in best)):
            if number >= 0:  # not padding
                yield files[number], [(names[label], share) for label, share in zip(labels, probabilities)]
    if bad:
        raise Refusal(f"{bad} of {len(files)} files cannot be read as images; they are listed above", EXIT_DATA)


def describe(names: Sequence[str], classes: int) -> List[str]:
    """Readable class names: ImageNet-1k synsets with their descriptions, and numbers for classes without a name."""
    words = cast(Dict[str, str], ImageNetInfo("imagenet-1k").label_descriptions(as_dict=True))
    if not names and classes == len(words):
        names = list(words)
    known = [f"{name} ({words[name]})" if name in words else name for name in names]
    return known + [str(label) for label in range(len(known), classes)]
