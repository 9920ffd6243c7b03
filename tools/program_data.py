# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Makes small random data sets and models in the places where the programs of programs.yml expect real ones.

    python tools/program_data.py mnist FOLDER [TRAIN TEST]             # the four files of MNIST
    python tools/program_data.py images FOLDER CLASSES COUNT [SIZE]    # FOLDER/class/image.JPEG
    python tools/program_data.py model FOLDER CLASS [KEY=VALUE ...]    # transformers model and vocabulary
    python tools/program_data.py torchvision NAME FILE                 # random weights of a torchvision model
    python tools/program_data.py text FILE LINES                       # random words
    python tools/program_data.py write FILE TEXT                       # the text, with \\n for line breaks
    python tools/program_data.py library FILE                          # a shared library without symbols
    python tools/program_data.py copy SOURCE TARGET                    # a file or a folder

Paths are relative to the folder of the program.
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
    """Writes the four files of MNIST with random pixels, in the folder where torchvision unpacks its download."""
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
    """Writes a folder of random JPEG files per class."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in range(int(classes)):
        target = Path(folder) / f"n{label:08d}"
        target.mkdir(parents=True, exist_ok=True)
        for index in range(int(count)):
            pixels = rng.integers(0, 256, (int(size), int(size), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(target / f"n{label:08d}_{index}.JPEG")


def model(folder: str, name: str, *settings: str) -> None:
    """Saves a transformers model with random weights, its configuration and a small WordPiece vocabulary."""
    import transformers

    values = {key: json.loads(value) for key, value in (setting.split("=", 1) for setting in settings)}
    made = getattr(transformers, name)
    made(made.config_class(**values)).save_pretrained(folder)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"abcdefghijklmnopqrstuvwxyz0123456789.,?'"]
    vocabulary += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    (Path(folder) / "vocab.txt").write_text("\n".join(vocabulary) + "\n")


def torchvision(name: str, file: str) -> None:
    """Saves random weights of a torchvision model under the file name of its download."""
    import torch
    import torchvision.models

    Path(file).parent.mkdir(parents=True, exist_ok=True)
    torch.save(getattr(torchvision.models, name)().state_dict(), file)


def text(file: str, lines: str) -> None:
    """Writes lines of ten random words."""
    rng = random.Random(0)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text("".join(" ".join(rng.choices(WORDS, k=10)) + ".\n" for _ in range(int(lines))))


def write(file: str, content: str) -> None:
    """Writes the content to a file; a backslash followed by n becomes a line break."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(content.replace("\\n", "\n") + "\n")


def library(file: str) -> None:
    """Builds an empty shared library in place of one with device code, which only the SDK can build."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-shared", "-x", "c", "/dev/null", "-o", file], check=True)


def copy(source: str, target: str) -> None:
    """Copies a file or folder."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if Path(source).is_dir() else shutil.copy)(source, target)


MAKERS = {maker.__name__: maker for maker in (mnist, images, model, torchvision, text, write, library, copy)}

if __name__ == "__main__":
    MAKERS[sys.argv[1]](*sys.argv[2:])
