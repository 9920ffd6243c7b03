# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Data sets of the Hugging Face hub, which `datasets` reads from a folder of their name before it downloads."""

import io

import numpy as np

from .files import WORDS, placed
from .pictures import write_sound


def dataset(folder: str, count: str, *fields: str) -> None:
    """Writes the splits train, validation and test of a data set, as Parquet files with the types of the columns.

    Fields: NAME=words (three words), NAME=label (one of three classes) and NAME=sound (a second of noise at 16 kHz).
    """
    from datasets import Audio, ClassLabel, Dataset, Features, Value

    rng = np.random.default_rng(0)
    kinds = {
        "words": (Value("string"), lambda: " ".join(rng.choice(WORDS, 3))),
        "label": (ClassLabel(num_classes=3), lambda: int(rng.integers(3))),
        "sound": (Audio(16000), lambda: {"path": None, "bytes": noise(rng, 16000)}),
    }
    named = [field.split("=") for field in fields]
    types = Features({name: kinds[kind][0] for name, kind in named})
    for split in ("train", "validation", "test"):
        columns = {name: [kinds[kind][1]() for _ in range(int(count))] for name, kind in named}
        Dataset.from_dict(columns, types).to_parquet(placed(f"{folder}/{split}.parquet"))


def noise(rng: np.random.Generator, rate: int) -> bytes:
    """Returns a WAV file of one second, one channel."""
    file = io.BytesIO()
    write_sound(file, rng.integers(-(2**15), 2**15, (rate, 1), dtype=np.int16), rate)
    return file.getvalue()
