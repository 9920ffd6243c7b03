# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Makes small random data sets and models where a program of programs.yml looks for real ones.

    python tools/program_data.py mnist FOLDER [TRAIN TEST]             # the four files of MNIST
    python tools/program_data.py images FOLDER CLASSES COUNT [SIZE]    # FOLDER/class/image.JPEG
    python tools/program_data.py model FOLDER CLASS [KEY=VALUE ...]    # a model of transformers and a vocabulary
    python tools/program_data.py torchvision NAME FILE                 # random weights of a model of torchvision
    python tools/program_data.py text FILE LINES                       # random words
    python tools/program_data.py write FILE TEXT                       # the text, with \\n for new lines
    python tools/program_data.py library FILE                          # a shared library without symbols
    python tools/program_data.py copy SOURCE TARGET                    # a file or a folder

Paths are those of the program's folder.
"""

import json
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

WORDS = (
    "the a of in what is how many edinburgh scotland capital hill cat old litter camera coffee pot island sea".split()
)


def mnist(folder: str, train: str = "2000", test: str = "400") -> None:
    """The four files of the data set, with random pixels, where torchvision unpacks what it downloads."""
    rng = np.random.default_rng(0)
    target = Path(folder).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", int(train)), ("t10k", int(test))):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        header = struct.pack(">iiii", 2051, count, 28, 28)
        (target / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (target / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + labels.tobytes())


def images(folder: str, classes: str, count: str, size: str = "256") -> None:
    """A folder of random JPEG files for each class."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in range(int(classes)):
        target = Path(folder) / f"n{label:08d}"
        target.mkdir(parents=True, exist_ok=True)
        for index in range(int(count)):
            pixels = rng.integers(0, 256, (int(size), int(size), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(target / f"n{label:08d}_{index}.JPEG")


def model(folder: str, name: str, *settings: str) -> None:
    """A model of transformers with random weights, its configuration and a small vocabulary of BERT's kind."""
    import transformers

    values = {key: json.loads(value) for key, value in (setting.split("=", 1) for setting in settings)}
    made = getattr(transformers, name)
    made(made.config_class(**values)).save_pretrained(folder)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz0123456789.,?'"]
    vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    (Path(folder) / "vocab.txt").write_text("\n".join(vocabulary) + "\n")


def torchvision(name: str, file: str) -> None:
    """Random weights of a torchvision model in the file that its download would have."""
    import torch
    import torchvision.models

    Path(file).parent.mkdir(parents=True, exist_ok=True)
    torch.save(getattr(torchvision.models, name)().state_dict(), file)


def text(file: str, lines: str) -> None:
    """Lines of ten random words."""
    rng = random.Random(0)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text("".join(" ".join(rng.choices(WORDS, k=10)) + ".\n" for _ in range(int(lines))))


def write(file: str, content: str) -> None:
    """A file with this content, where a backslash and n stand for a new line."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(content.replace("\\n", "\n") + "\n")


def library(file: str) -> None:
    """A shared library without symbols, where a program loads one of device code that only the SDK can build."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-shared", "-x", "c", "/dev/null", "-o", file], check=True)


def copy(source: str, target: str) -> None:
    """A file or folder."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if Path(source).is_dir() else shutil.copy)(source, target)


MAKERS = {maker.__name__: maker for maker in (mnist, images, model, torchvision, text, write, library, copy)}

if __name__ == "__main__":
    MAKERS[sys.argv[1]](*sys.argv[2:])
