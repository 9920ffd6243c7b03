# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Small image data sets for the tests of the input pipeline."""

import io
from pathlib import Path
from typing import Dict, Tuple

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from config import get_config


def photo(seed: int, size: Tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture (width, height) of smooth random colours, which JPEG keeps nearly as they are."""
    coarse = np.random.RandomState(seed).randint(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.BILINEAR)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The picture as a file of the given kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_folders(root: Path, images: Dict[str, Dict[str, int]], size: Tuple[int, int] = (40, 30)) -> Path:
    """Writes JPEG folders: images[split][class] is how many. Every file has pixels of its own."""
    seed = 0
    for split, classes in images.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number:03d}.jpg").write_bytes(encoded(photo(seed, size)))
                seed += 1
    return root


def small_config(root: Path, **overrides: object) -> CfgNode:
    """Swin-T's augmentation on 32-pixel images, micro-batch 2; keys are given as DATA__BATCH_SIZE=4."""
    values = {
        "DATA.DATA_PATH": str(root),
        "DATA.IMG_SIZE": 32,
        "MODEL.SWIN.PATCH_SIZE": 2,
        "MODEL.SWIN.WINDOW_SIZE": 4,
        "MODEL.SWIN.DEPTHS": [2, 2],
        "MODEL.SWIN.NUM_HEADS": [3, 6],
        "IPU.LAYERS_PER_IPU": [4],
        "DATA.BATCH_SIZE": 2,
        "DATA.NUM_WORKERS": 0,
        "IPU.REPLICAS": 1,
        "TRAIN.ACCUMULATION_STEPS": 1,
    }
    values.update({key.replace("__", "."): value for key, value in overrides.items()})
    return get_config(overrides=list(values.items()))


def write_uneven(root: Path) -> Path:
    """36 small pictures of three classes to train on, and 13 to validate on: a number that nothing divides."""
    return write_folders(root, {"train": {"a": 12, "b": 12, "c": 12}, "validation": {"a": 5, "b": 4, "c": 4}}, (20, 20))
