# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Data sets whose images are listed in map files: zip archives of ImageNet-1k, and the files of ImageNet-22k.

The formats are those of the official Swin repository. Zip mode: train.zip with train_map.txt, and validation.zip (or
val.zip) with its map, one `path<TAB>label` per line, with paths as in the archive. ImageNet-22k: the maps are
ILSVRC2011fall_whole_map_train.txt and ..._map_val.txt, each a JSON list of [path, label] pairs with paths relative to
the data path; one pair per line, as JSON or separated by a tab, is read as well.
"""

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from common.errors import EXIT_DATA, Refusal
from common.files import read_regular
from common.logs import logger
from dataset.decode import read_file, shown
from dataset.image_folder import TRAINING_NAMES, VALIDATION_NAMES, first_existing
from dataset.path_table import PathTable
from dataset.zipreader import ZipReader
from planning.geometry import IMAGENET_22K_CLASSES
from utils import reason

MAP_22K = "ILSVRC2011fall_whole_map_{}.txt"
MAX_MAP_BYTES = 4 << 30  # the map of ImageNet-22k has 0.5 GB
LABEL = re.compile(r"\d{1,9}")


class ImageMap(NamedTuple):
    """The contents of a map file: `paths[i]` shows class `labels[i]` (int64)."""

    file: Path
    paths: List[str]
    labels: np.ndarray


class MappedImages:
    """Image files named by a map file, below `root`.

    Attributes:
        classes: names of the classes; a label is an index into them.
        labels: label of each image, int64.
    """

    def __init__(self, root: Union[Path, str], images: ImageMap, classes: List[str]):
        self.classes = classes
        self.labels = images.labels
        self._root = str(root)
        self._paths = PathTable.of(images.paths)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The path of an image, for messages."""
        return os.path.join(self._root, self._paths[index])

    def read(self, index: int) -> bytes:
        """The bytes of an image file; raises decode.BadImage."""
        return read_file(self.name(index))


class ZippedImages:
    """Images in an archive, named by a map file; attributes as MappedImages.

    Args:
        archive: the zip file.
        images: its map.
        classes: names of the classes.
        cache: 'no'; 'full': read the whole archive into the system's file cache at the start; 'part': only this
            process's share, so the processes of a machine together read it once.
        process, processes: index of this process and number of processes, for 'part'.
    """

    def __init__(self, archive: Path, images: ImageMap, classes: List[str], cache: str, process: int, processes: int):
        self.classes = classes
        self.labels = images.labels
        self._paths = PathTable.of(images.paths)
        try:
            self._reader = ZipReader(archive, images.paths)
        except KeyError as error:
            line = error.args[0]
            raise Refusal(
                f"{shown(images.file)}:{line + 1}: {shown(images.paths[line])} is not in {shown(archive)}", EXIT_DATA
            ) from error
        if cache != "no":
            part, parts = (0, 1) if cache == "full" else (process, processes)
            self._reader.warm(part, parts)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Archive and member of an image, for messages."""
        return f"{self._reader.path}@/{self._paths[index]}"

    def read(self, index: int) -> bytes:
        """The bytes of a member; raises decode.BadImage."""
        return self._reader.read(index)


def open_zip(root: Path, training: bool, cache: str, process: int, processes: int, limit: int = 0) -> ZippedImages:
    """The training or validation archive below `root`.

    Args:
        limit: labels must be below it; 0: any label.

    Raises:
        Refusal: if an archive or map is missing or damaged, with file and line.
    """
    archive = first_existing(root, TRAINING_NAMES if training else VALIDATION_NAMES, ".zip", warns=True)
    other = first_existing(root, VALIDATION_NAMES if training else TRAINING_NAMES, ".zip")
    if archive is None:
        expected = "train.zip" if training else "validation.zip or val.zip"
        raise Refusal(
            f"{shown(root)} has no {expected}: leave --zip out for folders and shards; python -m dataset.prepare zip "
            "packs a folder data set",
            EXIT_DATA,
        )
    images, classes = _read_maps(_map_of(archive), other and _map_of(other), training, limit)
    return ZippedImages(archive, images, classes, cache, process, processes)


def open_22k(root: Path, training: bool, limit: int = 0) -> MappedImages:
    """The training or validation images of ImageNet-22k below `root`; as `open_zip`.

    The maps may list only some of the images: there are always 21,841 classes, or `limit` if it is set.
    """
    ours, other = (root / MAP_22K.format(name) for name in (("train", "val") if training else ("val", "train")))
    if not ours.exists():
        raise Refusal(f"{shown(root)} has no {ours.name}: put the maps of ImageNet-22k into the data path", EXIT_DATA)
    others = other if other.exists() else None
    images, classes = _read_maps(
        ours, others, training, limit or IMAGENET_22K_CLASSES, fewest=limit or IMAGENET_22K_CLASSES
    )
    return MappedImages(root, images, classes)


def read_map(path: Path, limit: int = 0) -> ImageMap:
    """Reads a map file in any of its forms.

    Raises:
        Refusal: with file and line, for anything that is not a path inside the data set and a label (below `limit`).
    """
    paths, labels = [], []
    for line, name, label in _entries(path):
        if not isinstance(name, str) or not _stays_inside(name):
            raise Refusal(f"{shown(path)}:{line}: {shown(str(name))} is not a path inside the data set", EXIT_DATA)
        if not LABEL.fullmatch(str(label)):
            raise Refusal(f"{shown(path)}:{line}: {shown(str(label))} is not a label: expected 0, 1, 2 ...", EXIT_DATA)
        paths.append(name)
        labels.append(int(label))
    if not paths:
        raise Refusal(f"{shown(path)} names no images", EXIT_DATA)
    images = ImageMap(path, paths, np.array(labels, dtype=np.int64))
    if limit:
        _check_labels(images, limit, "MODEL.NUM_CLASSES")
    return images


def _map_of(archive: Path) -> Path:
    return archive.with_name(f"{archive.stem}_map.txt")


def _read_maps(
    path: Path, other: Optional[Path], training: bool, limit: int, fewest: int = 0
) -> Tuple[ImageMap, List[str]]:
    """The map at `path`, and the names of all classes: the same for both splits, since training's map comes first."""
    images = read_map(path, limit)
    if other is None:
        return images, _class_names([images], fewest)
    maps = [images, read_map(other, limit)] if training else [read_map(other, limit), images]
    count = max(int(maps[0].labels.max()) + 1, fewest)
    _check_labels(maps[1], count, f"the number of classes in {shown(maps[0].file)}")
    return images, _class_names(maps, fewest)


def _check_labels(images: ImageMap, limit: int, reason: str) -> None:
    beyond = np.flatnonzero(images.labels >= limit)
    if len(beyond):
        line, label = beyond[0] + 1, images.labels[beyond[0]]
        raise Refusal(f"{shown(images.file)}:{line}: label {label} is not below {limit}, {reason}", EXIT_DATA)


def _class_names(maps: Sequence[ImageMap], fewest: int) -> List[str]:
    """A name for each label up to the largest: the folder shared by its images, or else the label itself."""
    count = max(fewest, 1 + max(int(images.labels.max()) for images in maps))
    names: List[Optional[str]] = [None] * count
    for images in maps:
        labels, first = np.unique(images.labels, return_index=True)
        for label, position in zip(labels, first):
            names[label] = names[label] or PurePosixPath(images.paths[position]).parent.name or None
    taken = [name for name in names if name is not None]
    if len(set(taken)) < len(taken):  # a folder shared by several classes names none of them
        names = [None] * count
    absent = np.setdiff1d(np.arange(count), maps[0].labels)
    if len(absent):
        logger.warning(
            "%s names no image of %d of %d classes, label %d among them",
            shown(maps[0].file),
            len(absent),
            count,
            absent[0],
        )
    return [str(label) if name is None else name for label, name in enumerate(names)]


def _entries(path: Path) -> Iterator[Tuple[int, Any, Any]]:
    """(line, path, label) of each entry; for a JSON list, `line` is the number of the entry."""
    try:
        text = read_regular(path, MAX_MAP_BYTES).decode("utf-8").replace("\r\n", "\n").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{shown(path)} cannot be read: {reason(error)}", EXIT_DATA) from error
    pairs = _json_list(path, text) if re.match(r"\s*\[\s*\[", text) else _lines(path, text)
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Refusal(f"{shown(path)}:{number}: expected a path and a label separated by a tab", EXIT_DATA)
        yield number, pair[0], pair[1]


def _json_list(path: Path, text: str) -> List[Any]:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{shown(path)} is not a JSON list of [path, label] pairs: {error}", EXIT_DATA) from error


def _lines(path: Path, text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n") if text else [], start=1):
        line = line.rstrip("\r")
        if not line.startswith("["):
            yield line.split("\t")
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Refusal(f"{shown(path)}:{number}: not a JSON pair [path, label]: {error}", EXIT_DATA) from error


def _stays_inside(name: str) -> bool:
    """Whether a path of a map stays inside the data set."""
    return bool(name) and "\0" not in name and not os.path.isabs(name) and ".." not in PurePosixPath(name).parts
