# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Packs a folder data set into shards (see dataset/shards.py), one by one: interrupted packing can be resumed.

A shard is read back and compared with its files before it gets its final name. A note beside it has the positions of
the files, for the index, and a digest of them: a shard whose files have changed is written again.
"""

import hashlib
import io
import json
import os
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from common.cores import usable_cores
from common.errors import EXIT_DATA, EXIT_RESOURCE, Refusal
from common.files import write_atomically
from common.logs import logger
from common.progress_bar import tracked
from dataset.decode import BadImage, shown
from dataset.image_folder import ImageFolder, open_split
from dataset.restart_markers import find_tool, with_restart_markers
from dataset.shards import MANIFEST, RECORD, VERSION, shard_path

SHARD_IMAGES = 8192  # 0.9 GB of ImageNet
MOST_SHARDS = 512  # per split; larger data sets get larger shards
AT_ONCE = 64  # files rewritten at once, which all have to fit in memory
# Of a shard: 'files', a digest of its files; 'bytes'; 'rewritten', a count; lists 'offset', 'size', 'crc' by image
Note = Dict[str, Any]


class Packing(NamedTuple):
    """Settings of 'shards'.

    Attributes:
        restart_markers: whether JPEGs are losslessly rewritten for faster decoding (dataset/restart_markers.py).
    """

    restart_markers: bool = False


def pack(out: Path, source: Optional[Path], options: Packing = Packing()) -> None:  # noqa: B008 (immutable)
    """Writes the shards of a folder data set to the folder `out`, which may already have some of them.

    Raises:
        Refusal: if the source is not a folder data set, one of its files cannot be read, or a tool is missing.
    """
    if source is None:
        raise Refusal("shards packs a folder data set: pass it as --source DIR")
    if options.restart_markers:
        find_tool()
    folders = {split: open_split(source, split == "train", allow_empty=True) for split in ("train", "validation")}
    splits = {split: _pack_split(out, split, folder, options) for split, folder in folders.items()}
    manifest = {"version": VERSION, "classes": folders["train"].classes, "splits": splits}
    wanted = {
        shard_path(out, split, number).name
        for split, description in splits.items()
        for number in range(len(description["shards"]))
    }
    for entry in out.iterdir():  # notes, and shards left from when the source had more images
        if entry.suffix in (".note", ".tmp", ".tar") and entry.name not in wanted:
            entry.unlink()
    write_atomically(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _pack_split(out: Path, split: str, folder: ImageFolder, options: Packing) -> Dict[str, Any]:
    """Writes the shards and the index of a split; returns its description for the manifest."""
    step = max(SHARD_IMAGES, -(-len(folder) // MOST_SHARDS))
    records, sizes, rewritten = np.zeros(len(folder), RECORD), [], 0
    for number, first in enumerate(tracked(range(0, len(folder), step), f"packing {split}", " shards")):
        part = range(first, min(first + step, len(folder)))
        path = shard_path(out, split, number)
        note = _finished(path, _digest(folder, part))
        if note is None:
            note = _write_shard(path, folder, part, options)
        rows = records[first : first + len(part)]
        for key in ("offset", "size", "crc"):
            rows[key] = note[key]
        rows["shard"] = number
        sizes.append(path.stat().st_size)
        rewritten += note["rewritten"]
    if options.restart_markers:
        logger.info("%s: restart markers in %d of %d files; the others are unchanged", split, rewritten, len(folder))
    names = [os.fsencode(folder.relative(index)) for index in range(len(folder))]
    records["label"] = folder.labels
    records["name_end"] = np.cumsum([len(name) for name in names], dtype=np.int64)
    index, text = records.tobytes(), b"".join(names)
    write_atomically(out / f"{split}.index", index)
    write_atomically(out / f"{split}.names", text)
    return {
        "images": len(folder),
        "bytes": len(text),
        "index_crc": zlib.crc32(index),
        "names_crc": zlib.crc32(text),
        "shards": sizes,
    }


def _digest(folder: ImageFolder, part: range) -> str:
    """A digest of the names, sizes and times of the files of a shard."""
    digest = hashlib.blake2b(digest_size=16)
    for index in part:
        try:
            status = os.stat(folder.name(index))
        except OSError as error:
            raise _unreadable(folder, index, f"cannot be read: {error.strerror}") from error
        times = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(os.fsencode(folder.relative(index)) + f"\0{times}\n".encode())
    return digest.hexdigest()


def _note_path(path: Path) -> Path:
    return path.with_suffix(".note")


def _finished(path: Path, digest: str) -> Optional[Note]:
    """The note of a shard already written from the same files, or None."""
    try:
        note = json.loads(_note_path(path).read_text(encoding="utf-8"))
        is_same = note["files"] == digest and path.stat().st_size == note["bytes"] and "rewritten" in note
        return note if is_same else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _write_shard(path: Path, folder: ImageFolder, part: range, options: Packing) -> Note:
    """Writes a shard and its note."""
    note: Note = {"files": _digest(folder, part), "rewritten": 0, "offset": [], "size": [], "crc": []}
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for index, (data, is_rewritten) in zip(part, _contents(folder, part, options)):
            member = tarfile.TarInfo(folder.relative(index))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
            note["offset"].append(stream.tell() - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            note["size"].append(len(data))
            note["crc"].append(zlib.crc32(data))
            note["rewritten"] += is_rewritten
        archive.close()  # writes the end of the archive
        stream.flush()
        os.fsync(stream.fileno())
    _verify(temporary, [folder.relative(index) for index in part], note)
    if _digest(folder, part) != note["files"]:
        raise Refusal(
            f"{shown(folder.folder)} changed while it was packed: run again when nothing writes to it", EXIT_DATA
        )
    note["bytes"] = temporary.stat().st_size
    os.replace(temporary, path)
    write_atomically(_note_path(path), json.dumps(note))
    return note


def _contents(folder: ImageFolder, part: range, options: Packing) -> Iterator[Tuple[bytes, bool]]:
    """The bytes to pack for each file, and whether they were rewritten."""
    if not options.restart_markers:
        yield from ((_read(folder, index), False) for index in part)
        return
    tool = find_tool()

    def rewrite(index: int) -> Tuple[bytes, bool]:
        data = _read(folder, index)
        rewritten = with_restart_markers(data, tool)
        return (data, False) if rewritten is None else (rewritten, True)

    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(part), AT_ONCE):
            yield from pool.map(rewrite, part[start : start + AT_ONCE])


def _read(folder: ImageFolder, index: int) -> bytes:
    try:
        return folder.read(index)
    except BadImage as error:
        raise _unreadable(folder, index, str(error)) from error


def _verify(path: Path, names: List[str], note: Note) -> None:
    """Reads a shard as a tar archive and at the positions in its note, and compares both with the packed files.

    Raises:
        Refusal: if the disk returns other data than was written.
    """
    expected = list(zip(names, note["offset"], note["size"], note["crc"]))
    found = []
    with open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            data = os.pread(stream.fileno(), member.size, member.offset_data)
            found.append((member.name, member.offset_data, member.size, zlib.crc32(data)))
    if found != expected:
        raise Refusal(f"{shown(path)} does not hold what was written to it: check the disk", EXIT_RESOURCE)


def _unreadable(folder: ImageFolder, index: int, text: str) -> Refusal:
    return Refusal(f"{shown(folder.name(index))} {text}: repair or remove it, and run again", EXIT_DATA)
