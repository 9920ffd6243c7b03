# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Data sets in a few large files: tar shards of the original image files, with an index for random access.

The shards are plain tar archives, the format of webdataset: `tar xf` extracts the files, and programs that read
webdataset shards sequentially can read these. Only the index is our own. Shuffling every epoch and resuming at any step
need random access, and the readers with random access require more than this program may: webdataset 1.0, litdata 0.2,
MosaicML streaming 0.13 (Python 3.10 or later; litdata PyTorch 2.4) and array_record 0.8 (Python 3.11). None of them
verifies checksums of images.

    shards.json                     MANIFEST: version, classes, and sizes and checksums of the files of each split
    train.index, validation.index   RECORDs, one per image, in the order of the folder data set
    train.names, validation.names   the concatenated paths of the images, CLASS/NAME
    train-00000.tar ...             the files

Everything in these files is checked before use: an index that does not fit its files is refused when it is opened, and
a file with a wrong checksum is a bad image when it is read.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from common.errors import EXIT_DATA, Refusal
from common.files import open_regular, read_regular, retried
from common.logs import logger
from dataset.decode import MAX_FILE_BYTES, BadImage, shown
from dataset.listing import some
from dataset.path_table import MappedArray, PathTable
from utils import one_line

MANIFEST = "shards.json"
VERSION = 1
MAX_MANIFEST_BYTES = 64 << 20
MAX_SHARDS = 1024  # per split; each is an open file
RECORD = np.dtype(
    [
        ("offset", "<i8"),  # of the file in its shard
        ("name_end", "<i8"),  # end of its path in the names
        ("size", "<u4"),
        ("crc", "<u4"),
        ("label", "<u4"),
        ("shard", "<u4"),
    ]
)


class ShardedImages:
    """The images of a split in shards; attributes as in ImageFolder.

    Args:
        root: the folder with MANIFEST.
        split: 'train' or 'validation'.
        allow_empty: whether classes may have no images.

    Raises:
        Refusal: if the split is missing, or its files do not match MANIFEST and index.
    """

    def __init__(self, root: Path, split: str, allow_empty: bool = False):
        self._root, self._split = root, split
        self.classes, description = read_manifest(root, split)
        try:
            self._records = MappedArray(root / f"{split}.index", RECORD, description["images"])
            text = MappedArray(root / f"{split}.names", np.uint8, description["bytes"])
            for array, part in ((self._records, "index"), (text, "names")):
                if zlib.crc32(array.values.data) != description[f"{part}_crc"]:
                    raise ValueError(f"the checksum of {split}.{part} does not match")
            self._open(len(description["shards"]))
            self._check(description["shards"], len(text))
            self._paths = PathTable(self._records.values["name_end"], text)
            self._check_classes()
        except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            raise _damaged(root, error) from error
        empty = np.flatnonzero(np.bincount(self.labels, minlength=len(self.classes)) == 0)
        if len(empty):
            names = f"{shown(root)}: no images of {split} in {some([self.classes[label] for label in empty])}"
            if not allow_empty:
                raise Refusal(f"{names}; DATA.ALLOW_EMPTY_CLASSES accepts that", EXIT_DATA)
            logger.warning("%s", names)

    def _open(self, shards: int) -> None:
        self._streams = [
            open(open_regular(shard_path(self._root, self._split, number)), "rb", buffering=0)
            for number in range(shards)
        ]

    def _check(self, sizes: List[int], text: int) -> None:
        """Raises ValueError unless shards have the right sizes and all records are inside shards, names and classes."""
        for number, (stream, size) in enumerate(zip(self._streams, sizes)):
            found = os.fstat(stream.fileno()).st_size
            if found != size:
                raise ValueError(f"{shard_path(self._root, self._split, number).name} has {found} bytes, not {size}")
        records = self._records.values
        if records["label"].max() >= len(self.classes):
            raise ValueError(f"{self._split}.index has label {records['label'].max()}, but {len(self.classes)} classes")
        if records["shard"].max() >= len(sizes) or records["size"].max() > MAX_FILE_BYTES:
            raise ValueError(f"{self._split}.index leads out of its shards")
        room = np.array(sizes, dtype=np.int64)[records["shard"]] - records["size"]
        if (records["offset"] < 0).any() or (records["offset"] > room).any():
            raise ValueError(f"{self._split}.index leads out of its shards")
        ends = records["name_end"]
        if ends[0] < 1 or (np.diff(ends) < 1).any() or ends[-1] != text:
            raise ValueError(f"{self._split}.index does not fit {self._split}.names")

    def _check_classes(self) -> None:
        """Raises ValueError unless labels and class names match the paths, which have a checksum."""
        labels, first = np.unique(self.labels, return_index=True)
        for label, index in zip(labels.tolist(), first.tolist()):
            path = self._paths[index]
            if path.partition("/")[0] != self.classes[label]:
                raise ValueError(f"{MANIFEST} calls class {label} {self.classes[label]!r}, but it has {shown(path)}")

    def __getstate__(self) -> Dict[str, Any]:
        state = {**self.__dict__, "_streams": len(self._streams)}
        state["_paths"] = self._paths.text
        return state

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._paths = PathTable(self._records.values["name_end"], state["_paths"])
        self._open(state["_streams"])

    @property
    def labels(self) -> np.ndarray:
        """The label of each image, uint32."""
        return self._records.values["label"]

    def __len__(self) -> int:
        return len(self._records)

    def relative(self, index: int) -> str:
        """The original path of an image below the folder of its split."""
        return self._paths[index]

    def name(self, index: int) -> str:
        """Shard and path of an image, for messages."""
        number = int(self._records[index]["shard"])
        return f"{shard_path(self._root, self._split, number)}@/{self._paths[index]}"

    def read(self, index: int) -> bytes:
        """The bytes of an image file; raises decode.BadImage."""
        record = self._records[index]
        descriptor = self._streams[record["shard"]].fileno()
        try:
            data = retried(lambda: os.pread(descriptor, int(record["size"]), int(record["offset"])))
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror or error}") from error
        if len(data) != record["size"] or zlib.crc32(data) != record["crc"]:
            raise BadImage("is damaged: its checksum does not match")
        return data


def is_sharded(root: Path) -> bool:
    """Whether a data path has shards."""
    return (root / MANIFEST).exists()


def shard_path(root: Path, split: str, number: int) -> Path:
    """The path of a shard."""
    return root / f"{split}-{number:05d}.tar"


def read_manifest(root: Path, split: str) -> Tuple[List[str], Dict[str, Any]]:
    """The names of the classes and the description of a split, with checked types.

    Raises:
        Refusal: if the manifest cannot be read or does not describe the split.
    """
    try:
        manifest = json.loads(bytes(read_regular(root / MANIFEST, MAX_MANIFEST_BYTES)))
        if manifest["version"] != VERSION:
            raise ValueError(f"its version is {manifest['version']!r}, and {VERSION} is read here")
        classes, description = manifest["classes"], manifest["splits"][split]
        if not classes or not _are(str, classes) or not _are(int, description["shards"]):
            raise ValueError("its classes must be names and its shards sizes")
        if not _are(int, [description[key] for key in ("images", "bytes", "index_crc", "names_crc")]):
            raise ValueError("its counts and checksums must be numbers")
        if not 1 <= len(description["shards"]) <= MAX_SHARDS or description["images"] < 1 or description["bytes"] < 1:
            raise ValueError(f"it must have images, in 1 to {MAX_SHARDS} shards")
        return classes, description
    except KeyError as error:
        raise _damaged(root, f"{MANIFEST} lacks {error}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(root, f"{MANIFEST}: {one_line(error)}") from error


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _damaged(root: Path, error: object) -> Refusal:
    return Refusal(
        f"the shards in {shown(root)} are damaged or incomplete: {one_line(error)}; prepare them again "
        "(python -m dataset.prepare shards)",
        EXIT_DATA,
    )
