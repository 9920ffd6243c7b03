# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Caches the file lists of large folder data sets: the next start need not read a million names again.

A cached list is used only if every folder still has the same status (inode, times of modification and change, size),
which changes when a file or class is added, removed or renamed. A list is cached only if its folders had not changed
for SETTLED when they were read, since a change in the same tick of the file system's clock would go unnoticed. Links
to files are assumed to remain links to files.

Format of a cached list: MAGIC, length and CRC of a JSON header, the header, then the arrays of a PathTable.
"""

import hashlib
import json
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any, Counter, Dict, Optional, Tuple

import numpy as np
from yacs.config import CfgNode

from common.files import open_regular, user_cache, write_atomically
from common.logs import logger
from dataset.decode import shown
from dataset.listing import FolderStatus, Listing, list_classes
from dataset.path_table import MappedArray, PathTable
from utils import one_line

MAGIC = b"swinidx1"
PREFIX = struct.Struct("<8sQI4x")  # magic, length and CRC of the header; keeps the arrays aligned
FEWEST = 10_000  # images; fewer are listed within milliseconds
SETTLED = 2_000_000_000  # nanoseconds, the coarsest file system clock


def cache_folder(config: CfgNode) -> Optional[Path]:
    """The folder of DATA.INDEX_CACHE, or None; auto: in the user's cache."""
    name = config.DATA.INDEX_CACHE
    if name == "auto":
        return user_cache()
    return Path(name) if name else None


def listed(folder: Path, cache: Optional[Path]) -> Listing:
    """The classes and image files of a folder, from the list in `cache` if it is still valid.

    Raises:
        Refusal: as in `list_classes`.
    """
    if cache is None:
        return list_classes(folder)
    file = cache / f"{hashlib.blake2b(os.fsencode(os.path.realpath(folder)), digest_size=16).hexdigest()}.index"
    found = _load(file, folder)
    if found is not None:
        return found
    start = time.time_ns()
    listing = list_classes(folder)
    if len(listing.paths) >= FEWEST and _is_settled(listing, start) and _is_current(folder, listing.folders):
        _store(file, folder, listing)
    return listing


def _load(file: Path, folder: Path) -> Optional[Listing]:
    """The list in a file; None if there is none or it cannot be trusted."""
    try:
        header, offset = _read_header(file)
        folders = {name: FolderStatus(*status) for name, status in header["folders"].items()}
        if header["folder"] != os.path.realpath(folder) or not _is_current(folder, folders):
            logger.info("%s has changed since it was listed: it is listed again", shown(folder))
            return None
        ends = MappedArray(file, np.int64, header["images"], offset)
        text = MappedArray(file, np.uint8, header["bytes"], offset + 8 * header["images"])
        if zlib.crc32(text.values.data, zlib.crc32(ends.values.data)) != header["crc"]:
            raise ValueError("its checksum does not match")
        return Listing(header["counts"], PathTable(ends, text), Counter(header["left_out"]), folders)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        logger.info("%s: the list in %s is not used: %s", shown(folder), shown(file), one_line(error))
        return None


def _read_header(file: Path) -> Tuple[Dict[str, Any], int]:
    """The header of a file, and the offset of the arrays."""
    with open(open_regular(file), "rb") as stream:
        status = os.fstat(stream.fileno())
        if status.st_uid not in (0, os.geteuid()):
            raise ValueError("it belongs to another user")
        prefix = stream.read(PREFIX.size)
        if len(prefix) < PREFIX.size:
            raise ValueError("it is truncated")
        magic, length, checksum = PREFIX.unpack(prefix)
        if magic != MAGIC or length > status.st_size:
            raise ValueError("it is not a list of this version")
        text = stream.read(length)
    if zlib.crc32(text) != checksum:
        raise ValueError("its checksum does not match")
    header = json.loads(text)
    if PREFIX.size + length + 8 * header["images"] + header["bytes"] != status.st_size:
        raise ValueError("its size is wrong")
    return header, PREFIX.size + length


def _is_settled(listing: Listing, start: int) -> bool:
    """Whether no folder had changed for SETTLED at the time `start`."""
    newest = max(max(status.modified, status.changed) for status in listing.folders.values())
    return newest < start - SETTLED


def _is_current(folder: Path, folders: Dict[str, FolderStatus]) -> bool:
    """Whether folders are unchanged since they were read."""
    prefix = os.path.join(str(folder), "")
    try:
        return all(FolderStatus.of(os.stat(prefix + name)) == status for name, status in folders.items())
    except OSError:
        return False


def _store(file: Path, folder: Path, listing: Listing) -> None:
    """Writes a list to a file; if this fails, the next start reads the folder again."""
    arrays = [np.asarray(listing.paths.ends[:]), np.asarray(listing.paths.text[:])]
    header = {
        "folder": os.path.realpath(folder),
        "folders": listing.folders,
        "counts": listing.counts,
        "left_out": listing.left_out,
        "images": len(arrays[0]),
        "bytes": len(arrays[1]),
        "crc": zlib.crc32(arrays[1].data, zlib.crc32(arrays[0].data)),
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    prefix = PREFIX.pack(MAGIC, len(text), zlib.crc32(text))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, b"".join([prefix, text, arrays[0].tobytes(), arrays[1].tobytes()]))
    except OSError as error:
        logger.info("%s: its list cannot be kept in %s: %s", shown(folder), shown(file.parent), one_line(error))
