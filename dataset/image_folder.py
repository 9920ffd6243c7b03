# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Data sets in ImageNet layout: ROOT/train/CLASS/... and ROOT/validation/CLASS/... (or ROOT/val)."""

import os
from pathlib import Path
from typing import List, Optional, Sequence

import numpy as np

from common.errors import EXIT_DATA, Refusal
from common.logs import logger
from dataset.decode import EXTENSIONS, read_file, shown
from dataset.index_cache import listed
from dataset.listing import class_names, note_left_out, some

TRAINING_NAMES = ("train",)
VALIDATION_NAMES = ("validation", "val")


class ImageFolder:
    """The image files of one split.

    Attributes:
        classes: sorted names of the class folders; a label is an index into it.
        labels: label of each file, int64.

    Args:
        folder: has one folder per class, with images at any depth. Hidden ones are ignored.
        classes: sorted names of the classes, including all of the folder; None: those of the folder.
        allow_empty: whether classes may have no images, or no folder.
        cache: folder for lists of large folders; None: none.

    Raises:
        Refusal: if the folder is missing, has no classes, or a class has no images.
    """

    def __init__(
        self,
        folder: Path,
        classes: Optional[List[str]] = None,
        allow_empty: bool = False,
        cache: Optional[Path] = None,
    ):
        self.folder = folder
        listing = listed(folder, cache)
        self.classes = list(listing.counts) if classes is None else classes
        counts = [listing.counts.get(name, 0) for name in self.classes]
        if sum(counts) != len(listing.paths):
            raise Refusal(f"{shown(folder)} has other classes than {some(self.classes)}: has it changed?", EXIT_DATA)
        note_left_out(folder, listing.left_out)
        empty = [name for name, count in zip(self.classes, counts) if count == 0]
        if empty and (not allow_empty or not any(counts)):
            raise Refusal(
                f"{shown(folder)}: no images ({', '.join(EXTENSIONS)}) in {some(empty)}: remove folders that are no "
                "class, or accept them with DATA.ALLOW_EMPTY_CLASSES",
                EXIT_DATA,
            )
        if empty:
            logger.warning("%s: no images in %s", shown(folder), some(empty))
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        self._paths = listing.paths

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


def open_split(root: Path, training: bool, allow_empty: bool = False, cache: Optional[Path] = None) -> ImageFolder:
    """The training or validation split below `root`; its classes must equal those of the other split if there is one.

    Args:
        allow_empty: whether classes may be empty, or missing in validation.
        cache: folder for lists of large folders; None: none.

    Raises:
        Refusal: naming the path, if the layout is wrong.
    """
    names, others = (TRAINING_NAMES, VALIDATION_NAMES) if training else (VALIDATION_NAMES, TRAINING_NAMES)
    folder = first_existing(root, names, warns=True)
    if folder is None:
        refuse_archives(root, names)
        raise Refusal(
            f"{shown(root)} has no folder {' or '.join(names)}: ImageNet layout is train/CLASS/*.JPEG and "
            "validation/CLASS/*.JPEG; python -m dataset.prepare folder splits a folder of classes like this",
            EXIT_DATA,
        )
    other = first_existing(root, others)
    if other is None:
        return ImageFolder(folder, None, allow_empty, cache)
    trained, validated = (folder, other) if training else (other, folder)
    check_same_classes(trained, validated, allow_empty)
    return ImageFolder(folder, class_names(trained), allow_empty, cache)


def refuse_archives(root: Path, names: Sequence[str]) -> None:
    """Raises `Refusal` if a split of one of these names is an archive, which only --zip reads."""
    if any((root / f"{name}.zip").exists() for name in names):
        raise Refusal(f"{shown(root)} has archives: add --zip to read them", EXIT_DATA)


def check_same_classes(trained: Path, validated: Path, allow_empty: bool) -> None:
    """Raises `Refusal` if the class folders of two splits differ, which would give labels different meanings.

    With `allow_empty`, classes may be missing in validation, since labels are those of training.
    """
    ours, theirs = set(class_names(trained)), set(class_names(validated))
    for here, there, missing in ((trained, validated, ours - theirs), (validated, trained, theirs - ours)):
        if missing and not (allow_empty and there == validated):
            remedy = "; DATA.ALLOW_EMPTY_CLASSES accepts that" if there == validated else ""
            lacking = f"{shown(there)} lacks {len(missing)} of the classes of {shown(here)}"
            raise Refusal(f"{lacking}: {some(sorted(missing))}{remedy}", EXIT_DATA)


def check_named(root: str) -> None:
    """Raises `Refusal` for a data path that was not given."""
    if not root:
        raise Refusal("no data path: pass --data-path DIR (or --synthetic for generated images)")


def check_root(root: str) -> Path:
    """The data path; raises `Refusal` if it is not an existing folder."""
    check_named(root)
    path = Path(root)
    if not path.is_dir():
        raise Refusal(f"data path {shown(path)} is not a folder", EXIT_DATA)
    return path


def first_existing(root: Path, names: Sequence[str], ending: str = "", warns: bool = False) -> Optional[Path]:
    """The folder, or with `ending` the file, of the first of some names that exists below `root`.

    Args:
        warns: whether to warn of another one that exists, too, and is not read.
    """
    paths = [root / f"{name}{ending}" for name in names]
    found = [path for path in paths if (path.exists() if ending else path.is_dir())]
    for other in found[1:] if warns else ():
        if not other.samefile(found[0]):  # a link under the other name
            logger.warning("%s is read, %s beside it is not: remove the wrong one", shown(found[0]), shown(other))
    return found[0] if found else None
