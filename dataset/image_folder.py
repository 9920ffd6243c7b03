# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Data sets in ImageNet layout: ROOT/train/CLASS/... and ROOT/validation/CLASS/... (or ROOT/val)."""

import os
from pathlib import Path
from typing import Counter, Iterable, Iterator, List, Optional, Sequence

import numpy as np

from common.errors import EXIT_DATA, Refusal
from common.logs import logger
from common.progress_bar import tracked
from dataset.decode import EXTENSIONS, read_file, shown

TRAINING_NAMES = ("train",)
VALIDATION_NAMES = ("validation", "val")
SHOWN_ENDINGS = 6


class PathTable:
    """An immutable list of paths in two arrays.

    Worker processes would copy a list of a million strings page by page, since reading it changes reference counts.
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
        folder: holds one folder a class, with images at any depth. Hidden ones are ignored.
        classes: names of the classes; None: the folder's.
        allow_empty: whether classes may lack images, or their folder.

    Raises:
        Refusal: if the folder is missing, has no classes, or a class has no images.
    """

    def __init__(self, folder: Path, classes: Optional[List[str]] = None, allow_empty: bool = False):
        self.folder = folder
        own = class_names(folder)
        self.classes = own if classes is None else classes
        counts, paths = [], []
        left_out: Counter[str] = Counter()
        for name in tracked(self.classes, f"indexing {shown(folder)}", " classes"):
            found = sorted(image_files(folder, name, left_out)) if name in own else []
            counts.append(len(found))
            paths += found
        note_left_out(folder, left_out)
        empty = [name for name, count in zip(self.classes, counts) if count == 0]
        if empty and (not allow_empty or not paths):
            raise Refusal(
                f"{shown(folder)}: no images ({', '.join(EXTENSIONS)}) in {_some(empty)}; DATA.ALLOW_EMPTY_CLASSES "
                "accepts that",
                EXIT_DATA,
            )
        if empty:
            logger.warning("%s: no images in %s", shown(folder), _some(empty))
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        self._paths = PathTable(paths)

    def __len__(self) -> int:
        return len(self.labels)

    def relative(self, index: int) -> str:
        """The path of a file relative to `folder`."""
        return self._paths[index]

    def name(self, index: int) -> str:
        """The path of a file."""
        return os.path.join(str(self.folder), self._paths[index])

    def read(self, index: int) -> bytes:
        """The bytes of a file; raises decode.BadImage."""
        return read_file(self.name(index))


def open_split(root: Path, training: bool, allow_empty: bool = False) -> ImageFolder:
    """The training or validation split below `root`; its classes must equal those of the other split if there is one.

    Args:
        allow_empty: whether classes may be empty, or missing in validation.

    Raises:
        Refusal: naming the path, if the layout is wrong.
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
    if other is None:
        return ImageFolder(folder, allow_empty=allow_empty)
    trained, validated = (folder, other) if training else (other, folder)
    check_same_classes(trained, validated, allow_empty)
    return ImageFolder(folder, class_names(trained), allow_empty)


def check_same_classes(trained: Path, validated: Path, allow_empty: bool) -> None:
    """Raises `Refusal` if the class folders of two splits differ: labels would mean different classes.

    With `allow_empty`, validation may lack classes: the labels are those of training.
    """
    ours, theirs = set(class_names(trained)), set(class_names(validated))
    for here, there, missing in ((trained, validated, ours - theirs), (validated, trained, theirs - ours)):
        if missing and not (allow_empty and there == validated):
            remedy = "; DATA.ALLOW_EMPTY_CLASSES accepts that" if there == validated else ""
            lacking = f"{shown(there)} lacks {len(missing)} of the classes of {shown(here)}"
            raise Refusal(f"{lacking}: {_some(sorted(missing))}{remedy}", EXIT_DATA)


def class_names(folder: Path) -> List[str]:
    """Sorted names of the class folders in `folder`.

    Raises:
        Refusal: if it cannot be listed or has none.
    """
    try:
        with os.scandir(str(folder)) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise Refusal(f"{shown(folder)} cannot be listed: {error.strerror}", EXIT_DATA) from error
    if not names:
        raise Refusal(f"{shown(folder)} has no class folders: put the images of each class into a folder", EXIT_DATA)
    return names


def check_root(root: str) -> Path:
    """The data path, when it is an existing folder.

    Raises:
        Refusal: naming it, if it is not.
    """
    if not root:
        raise Refusal("no data path: pass --data-path DIR (or --synthetic for generated images)")
    path = Path(root)
    if not path.is_dir():
        raise Refusal(f"data path {shown(path)} is not a folder", EXIT_DATA)
    return path


def _first_existing(root: Path, names: Sequence[str]) -> Optional[Path]:
    return next((root / name for name in names if (root / name).is_dir()), None)


def image_files(folder: Path, name: str = "", left_out: Optional[Counter[str]] = None) -> Iterator[str]:
    """Paths, relative to `folder`, of the image files of class `name`, or of all classes; hidden files are left out.

    Links to folders are followed; each folder is read once, since links can form cycles.

    Args:
        left_out: counts the other files by the ending of their names.
    """
    prefix, seen = os.path.join(str(folder), ""), set()
    for place, folders, files in os.walk(prefix + name, onerror=_refuse_unlistable, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders[:] = []
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        for file in files:
            if file.startswith("."):
                continue
            if file.lower().endswith(EXTENSIONS):
                yield os.path.join(place, file)[len(prefix) :]
            elif left_out is not None:
                left_out[os.path.splitext(file)[1].lower() or "no ending"] += 1


def note_left_out(folder: Path, left_out: Counter[str]) -> None:
    """Logs how many files are not read, by the ending of their names."""
    if left_out:
        endings = ", ".join(f"{count} of {shown(ending)}" for ending, count in left_out.most_common(SHOWN_ENDINGS))
        more = f" and {len(left_out) - SHOWN_ENDINGS} more" if len(left_out) > SHOWN_ENDINGS else ""
        logger.warning("%s: %d files are not read: %s%s", shown(folder), sum(left_out.values()), endings, more)


def _refuse_unlistable(error: OSError) -> None:
    raise Refusal(f"{shown(error.filename)} cannot be listed: {error.strerror}", EXIT_DATA) from error


def _some(names: Sequence[str], limit: int = 5) -> str:
    text = ", ".join(shown(name) for name in names[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"
