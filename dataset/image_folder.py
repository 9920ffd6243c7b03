# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Data sets in ImageNet layout: ROOT/train/CLASS/... and ROOT/validation/CLASS/... (or ROOT/val)."""

import os
from pathlib import Path
from typing import Iterable, Iterator, List, Optional, Sequence

import numpy as np

from common.errors import EXIT_DATA, Refusal
from dataset.decode import EXTENSIONS, read_file, shown

TRAINING_NAMES = ("train",)
VALIDATION_NAMES = ("validation", "val")


class PathTable:
    """An immutable list of paths in two arrays.

    A list of a million strings would be copied page by page into every worker process as reference counts are touched.
    """

    def __init__(self, paths: Iterable[str]):
        encoded = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([len(path) for path in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())


class ImageFolder:
    """The image files of one split.

    Attributes:
        classes: sorted names of the class folders; a label is an index into it.
        labels: int64 array, one label a file.

    Args:
        folder: holds one folder a class, with images at any depth. Hidden files and folders do not count.

    Raises:
        Refusal: when the folder is missing, has no classes, or a class has no images.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.classes = class_names(folder)
        counts, paths = [], []
        for name in self.classes:
            found = sorted(image_files(folder, name))
            counts.append(len(found))
            paths += found
        empty = [name for name, count in zip(self.classes, counts) if count == 0]
        if empty:
            raise Refusal(f"{shown(folder)}: no images ({', '.join(EXTENSIONS)}) in {_some(empty)}", EXIT_DATA)
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        self._paths = PathTable(paths)

    def __len__(self) -> int:
        return len(self.labels)

    def relative(self, index: int) -> str:
        """The path of a file, seen from `folder`."""
        return self._paths[index]

    def name(self, index: int) -> str:
        """The path of a file."""
        return os.path.join(str(self.folder), self._paths[index])

    def read(self, index: int) -> bytes:
        """The bytes of a file; raises decode.BadImage."""
        return read_file(self.name(index))


def open_split(root: Path, training: bool) -> ImageFolder:
    """The training or the validation split below `root`, whose classes must be those of the other split if that exists.

    Raises:
        Refusal: naming the path, when anything about the layout is wrong.
    """
    names, others = (TRAINING_NAMES, VALIDATION_NAMES) if training else (VALIDATION_NAMES, TRAINING_NAMES)
    folder = _first_existing(root, names)
    if folder is None:
        raise Refusal(
            f"{shown(root)} has no folder {' or '.join(names)}: ImageNet layout is train/CLASS/*.JPEG and "
            "validation/CLASS/*.JPEG",
            EXIT_DATA,
        )
    other = _first_existing(root, others)
    if other is not None:
        check_same_classes(folder, other)
    return ImageFolder(folder)


def check_same_classes(first: Path, second: Path) -> None:
    """Refuses two splits whose class folders differ, since labels would not mean the same."""
    ours, theirs = class_names(first), class_names(second)
    for here, there, missing in ((first, second, set(ours) - set(theirs)), (second, first, set(theirs) - set(ours))):
        if missing:
            raise Refusal(
                f"{shown(there)} lacks {len(missing)} of the classes of {shown(here)}: {_some(sorted(missing))}",
                EXIT_DATA,
            )


def class_names(folder: Path) -> List[str]:
    """Sorted names of the class folders in `folder`.

    Raises:
        Refusal: when it cannot be listed or there are none.
    """
    try:
        with os.scandir(str(folder)) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise Refusal(f"{shown(folder)} cannot be listed: {error.strerror}", EXIT_DATA) from error
    if not names:
        raise Refusal(
            f"{shown(folder)} has no class folders: put the images of each class into a folder of its own", EXIT_DATA
        )
    return names


def check_root(root: str) -> Path:
    """The data path, when it is an existing folder.

    Raises:
        Refusal: naming it, when it is not.
    """
    if not root:
        raise Refusal("no data path: pass --data-path DIR (or --synthetic for generated images)")
    path = Path(root)
    if not path.is_dir():
        raise Refusal(f"data path {shown(path)} is not a folder", EXIT_DATA)
    return path


def _first_existing(root: Path, names: Sequence[str]) -> Optional[Path]:
    return next((root / name for name in names if (root / name).is_dir()), None)


def image_files(folder: Path, name: str = "") -> Iterator[str]:
    """Paths, relative to `folder`, of the image files of class `name`, or of all in it; hidden ones do not count."""
    prefix = os.path.join(str(folder), "")
    for place, folders, files in os.walk(prefix + name, onerror=_refuse_unlistable):
        folders[:] = [entry for entry in folders if not entry.startswith(".")]
        for file in files:
            if not file.startswith(".") and file.lower().endswith(EXTENSIONS):
                yield os.path.join(place, file)[len(prefix) :]


def _refuse_unlistable(error: OSError) -> None:
    raise Refusal(f"{shown(error.filename)} cannot be listed: {error.strerror}", EXIT_DATA) from error


def _some(names: Sequence[str], limit: int = 5) -> str:
    text = ", ".join(shown(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"
