# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Pictures, films and sound."""

import csv
import hashlib
import json
import pickle
import struct
import wave
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .files import placed


def mnist(folder: str, train: str = "2000", test: str = "400") -> None:
    """Writes the four files of MNIST with random pixels, in the folder where torchvision unpacks its download."""
    rng = np.random.default_rng(0)
    target = Path(folder).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", int(train)), ("t10k", int(test))):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        header = struct.pack(">iiii", 2051, count, 28, 28)
        (target / f"{split}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (target / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + labels.tobytes())


def cifar10(folder: str, train: str, test: str) -> None:
    """Writes CIFAR-10 in the form that torchvision unpacks, and sums.json with the MD5 sum of each file.

    torchvision compares the files with the sums of the real data set; program_site has it use sums.json.
    """
    rng = np.random.default_rng(0)
    sizes = {f"data_batch_{index}": int(train) // 5 for index in range(1, 6)}
    contents = {"batches.meta": {"label_names": [f"class {label}" for label in range(10)]}}
    for name, count in {**sizes, "test_batch": int(test)}.items():
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        contents[name] = {"data": pixels, "labels": rng.integers(0, 10, count).tolist()}
    sums = {}
    for name, content in contents.items():
        packed = pickle.dumps(content, protocol=2)
        placed(f"{folder}/cifar-10-batches-py/{name}").write_bytes(packed)
        sums[name] = hashlib.md5(packed).hexdigest()
    Path(f"{folder}/cifar-10-batches-py/sums.json").write_text(json.dumps(sums))


def images(folder: str, classes: str, count: str, size: str = "256") -> None:
    """Writes a folder of random JPEG files per class."""
    rng = np.random.default_rng(0)
    for label in range(int(classes)):
        for index in range(int(count)):
            picture(rng, int(size), f"{folder}/n{label:08d}/n{label:08d}_{index}.JPEG")


def coco(folder: str, split: str, count: str, size: str) -> None:
    """Writes pictures with two boxes each: FOLDER/SPLIT.txt names them; a label has a class and a box in fractions."""
    rng = np.random.default_rng(0)
    files = [f"{folder}/images/{split}/{index + 1:012d}.jpg" for index in range(int(count))]
    placed(f"{folder}/{split}.txt").write_text("\n".join(files) + "\n")
    for file in files:
        picture(rng, int(size), file)
        boxes = [f"{rng.integers(80)} {x:.3f} {y:.3f} 0.3 0.3" for x, y in rng.uniform(0.2, 0.8, (2, 2))]
        placed(file.replace("/images/", "/labels/").replace(".jpg", ".txt")).write_text("\n".join(boxes) + "\n")


def xrays(folder: str, count: str, size: str) -> None:
    """Writes pictures, and the table of findings of the chest X-ray data set of the NIH."""
    rng = np.random.default_rng(0)
    findings = ["Effusion", "Mass"]  # of two in equal parts, a random split of 20 has both
    with placed(f"{folder}/Data_Entry_2017_v2020.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Image Index", "Finding Labels"])
        for index in range(int(count)):
            picture(rng, int(size), f"{folder}/images/{index:08d}_000.png")
            table.writerow([f"{index:08d}_000.png", findings[index % len(findings)]])


def picture(rng: np.random.Generator, size: int, file: str) -> None:
    from PIL import Image

    Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(placed(file))


def video(film: str, sound: str, frames: str) -> None:
    """Writes random frames of 64 x 64 pixels at 25 frames a second, and two channels of sound at 48 kHz."""
    import cv2

    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(placed(film)), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 64))
    for frame in rng.integers(0, 256, (int(frames), 64, 64, 3), dtype=np.uint8):
        writer.write(frame)
    writer.release()
    with placed(sound).open("wb") as file:
        write_sound(file, rng.integers(-(2**15), 2**15, (int(frames) * 1920, 2), dtype=np.int16), 48000)


def write_sound(file: BinaryIO, samples: np.ndarray, rate: int) -> None:
    """Writes samples of 16 bits, shape (time, channels), as WAV."""
    with wave.open(file, "wb") as sound:
        sound.setnchannels(samples.shape[1])
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(samples.tobytes())
