# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Lists and reads the files of a data set, in every layout that training reads."""

import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from common.errors import EXIT_DATA, Refusal
from dataset.cached_image_folder import MAP_22K, open_22k, open_zip
from dataset.decode import read_file, shown
from dataset.image_folder import TRAINING_NAMES, VALIDATION_NAMES, ImageFolder, open_split, refuse_archives
from dataset.shards import ShardedImages, is_sharded


class Place(NamedTuple):
    """A file of a data set; `label` is the name of its class, None if it is in no class."""

    path: str
    split: str
    label: Optional[str]
    is_listed: bool = False  # in an index or a map, and read whatever its name


class FolderFiles:
    """All files below the folder of a split; `read` returns their bytes.

    Attributes:
        places: of the files, sorted, without hidden ones. Links to folders are followed.
    """

    def __init__(self, split: str, folder: Path) -> None:
        self.places = list(_walk(split, folder))

    def read(self, index: int) -> bytes:
        """The bytes of a file; raises decode.BadImage."""
        return read_file(self.places[index].path)


class ListedFiles:
    """The images of a split listed by an index or a map; `source` is the class that training reads them with."""

    def __init__(self, split: str, source: Any) -> None:
        labels = (str(source.classes[label]) for label in source.labels.tolist())
        self.places = [Place(source.name(index), split, label, True) for index, label in enumerate(labels)]
        self._source = source

    def read(self, index: int) -> bytes:
        """The bytes of a file; raises decode.BadImage."""
        return self._source.read(index)


class Inventory(NamedTuple):
    """The splits of a data set by name, and the reasons why training refuses its layout."""

    splits: Dict[str, Any]  # FolderFiles or ListedFiles
    refusals: List[str]

    def positions(self) -> List[Tuple[str, int]]:
        """Split and index of every file."""
        return [(split, index) for split, files in self.splits.items() for index in range(len(files.places))]

    def places(self) -> List[Place]:
        """Every file, in the order of `positions`."""
        return [place for files in self.splits.values() for place in files.places]


def take_inventory(root: Path, zipped: bool) -> Inventory:
    """Lists the files of the data set at `root`: shards, ImageNet-22k, folders of splits, or a folder of classes.

    Args:
        zipped: whether to read archives instead, as training does with --zip.

    Raises:
        Refusal: if no split can be listed.
    """
    folders = {name: root / name for name in (*TRAINING_NAMES, *VALIDATION_NAMES) if (root / name).is_dir()}
    if zipped:
        return _listed(root, lambda training: open_zip(root, training, "no", 0, 1))
    if is_sharded(root):
        return _listed(root, lambda training: ShardedImages(root, "train" if training else "validation"))
    if not folders and (root / MAP_22K.format("train")).exists():
        return _listed(root, lambda training: open_22k(root, training))
    if not folders:
        refuse_archives(root, TRAINING_NAMES)
    folders = folders or {"": root}
    splits = {split: FolderFiles(split, folder) for split, folder in folders.items()}
    return Inventory(splits, _folder_refusals(root, folders))


def _listed(root: Path, opened: Any) -> Inventory:
    """The splits that can be opened, and why the others cannot."""
    splits, refusals = {}, []
    for name, training in (("train", True), ("validation", False)):
        try:
            splits[name] = ListedFiles(name, opened(training))
        except Refusal as refusal:
            refusals.append(refusal)
    if not splits:
        raise refusals[0]
    return Inventory(splits, _once(map(str, refusals)))


def _folder_refusals(root: Path, folders: Dict[str, Path]) -> List[str]:
    """The refusals of training for folders and classes."""
    refusals = []
    for split, folder in folders.items():
        try:
            ImageFolder(folder) if split == "" else open_split(root, split in TRAINING_NAMES)
        except Refusal as refusal:
            refusals.append(str(refusal))
    return _once(refusals)


def _once(texts: Any) -> List[str]:
    return list(dict.fromkeys(texts))


def _walk(split: str, folder: Path) -> Iterator[Place]:
    """The files of a split; each folder is read once per class, as in training."""
    seen = set()
    for here, folders, files in os.walk(str(folder), onerror=_refuse_unlistable, followlinks=True):
        parts = Path(here).relative_to(folder).parts
        label = parts[0] if parts else None
        status = os.stat(here)
        if (label, status.st_dev, status.st_ino) in seen:
            folders[:] = []
            continue
        seen.add((label, status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            yield Place(os.path.join(here, name), split, label)


def _refuse_unlistable(error: OSError) -> None:
    raise Refusal(f"{shown(error.filename)} cannot be listed: {error.strerror}", EXIT_DATA) from error
