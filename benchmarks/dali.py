# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""NVIDIA DALI's CPU pipeline of the Swin recipe, for comparisons, where it is installed (nvidia-dali-cuda120).

Its training has DALI's own RandAugment in place of timm's, and neither random erasing nor mixup.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Callable, Iterator

from config import get_config

SIZE, RESIZED = 224, 256


def is_installed() -> bool:
    """Whether DALI can be imported."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def dali(folder: Path, batch: int, batches: int, threads: int, training: bool) -> Callable[[], Iterator[Any]]:
    """Starts an epoch of `batches` batches of normalised float32 (N, 3, 224, 224) and labels."""
    pipelines, fn, types = (importlib.import_module(f"nvidia.dali{name}") for name in ("", ".fn", ".types"))
    augmenting = importlib.import_module("nvidia.dali.auto_aug.rand_augment")
    data = get_config("SWIN_TINY").DATA
    mean, std = ([255 * value for value in values] for values in (data.MEAN, data.STD))

    def pipeline() -> Any:
        files, labels = fn.readers.file(file_root=str(folder), random_shuffle=training, name="files")
        if training:
            images = fn.decoders.image_random_crop(files, random_aspect_ratio=[3 / 4, 4 / 3], random_area=[0.08, 1.0])
            images = fn.resize(images, size=[SIZE, SIZE], interp_type=types.INTERP_CUBIC)
            images = fn.flip(images, horizontal=fn.random.coin_flip())
            images = augmenting.rand_augment(images, n=2, m=9, shape=[SIZE, SIZE], fill_value=128)
        else:
            images = fn.resize(fn.decoders.image(files), resize_shorter=RESIZED, interp_type=types.INTERP_CUBIC)
        return fn.crop_mirror_normalize(images, crop=[SIZE, SIZE], mean=mean, std=std, output_layout="CHW"), labels

    # Batches are not made ahead: that would go on in the turns of the others, and count as their time.
    made = pipelines.pipeline_def(pipeline, enable_conditionals=True)(
        batch_size=batch,
        num_threads=max(threads, 1),
        device_id=None,
        prefetch_queue_depth=1,
        exec_async=False,
        exec_pipelined=False,
    )
    made.build()
    return lambda: (made.run() for _ in range(batches))
