# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Zip archives of images that bomb, lead out of the data set, or lie about what they hold."""

import io
import random
import zipfile
import zlib
from pathlib import Path
from typing import Callable, Dict, Iterable, Optional

from PIL import Image

from common.errors import Refusal
from dataset.cached_image_folder import open_zip
from dataset.decode import MAX_FILE_BYTES, BadImage, decode
from tests.faults.files import require_within_limits
from tests.faults.runs import Place, require

ENTRY, LOCAL = b"PK\x01\x02", b"PK\x03\x04"  # where the directory's entry of a member begins, and its own header
CHECKSUM, PACKED, SIZE, OFFSET, FLAGS, METHOD = 16, 20, 24, 42, 8, 10  # bytes from there, in the directory
NAME = "0/0.png"
BOMB_PARTS = 200  # MiB


def _picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def _archive(path: Path, contents: Iterable[bytes], name: str = NAME, method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive, archive.open(name, "w") as member:
        for part in contents:
            member.write(part)


def _lie(at: int, value: int, size: int = 4, magic: bytes = ENTRY) -> Callable[[Path], None]:
    """An archive of one picture with another number in its directory, or in the picture's own header."""

    def write(path: Path) -> None:
        _archive(path, [_picture()])
        data = bytearray(path.read_bytes())
        begin = data.index(magic) + at
        data[begin : begin + size] = value.to_bytes(size, "little")
        path.write_bytes(data)

    return write


def _bomb(path: Path) -> None:
    _archive(path, (bytes(1 << 20) for _ in range(BOMB_PARTS)))


def _bomb_that_lies(path: Path) -> None:
    """Its directory says 100 bytes, and their checksum."""
    _bomb(path)
    data = bytearray(path.read_bytes())
    begin = data.rindex(ENTRY)
    data[begin + SIZE : begin + SIZE + 4] = (100).to_bytes(4, "little")
    data[begin + CHECKSUM : begin + CHECKSUM + 4] = zlib.crc32(bytes(100)).to_bytes(4, "little")
    path.write_bytes(data)


def _huge_picture(path: Path) -> None:
    """A small PNG that says it has 2**31 - 1 pixels a side."""
    data = bytearray(_picture())
    data[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    _archive(path, [bytes(data)])


CASES: Dict[str, Callable[[Path], None]] = {
    "deflated bomb": _bomb,
    "bomb that states a small size": _bomb_that_lies,
    "picture that states many pixels": _huge_picture,
    "no archive": lambda path: path.write_bytes(b"PK" + bytes(1000)),
    "empty": lambda path: path.write_bytes(b""),
    "another checksum": _lie(CHECKSUM, 1),
    "more bytes than it has": _lie(SIZE, 60_000_000),
    "more packed bytes than the archive has": _lie(PACKED, 60_000_000),
    "packed bytes beyond all memory": _lie(PACKED, 2**32 - 2),
    "fewer bytes than it has": _lie(SIZE, 10),
    "offset beyond the end": _lie(OFFSET, 2**31),
    "offset into the picture": _lie(OFFSET, 40),
    "encrypted": _lie(FLAGS, 1, 2),
    "unknown method": _lie(METHOD, 99, 2),
    "said to be stored": _lie(METHOD, 0, 2),
    "long name in its own header": _lie(26, 65_535, 2, LOCAL),
    "no header of its own": _lie(0, 0, 4, LOCAL),
}
PATHS = ("../outside.png", "/etc/passwd", "0/../../outside.png", "a\0b.png", "")


def bad_zip(place: Place, chance: random.Random) -> None:
    """A zip archive of images that bombs, leads out of the data set, or lies: told, nothing is written."""
    number = int(place.folder.name) % (len(CASES) + len(PATHS))
    root = place.folder / "data"
    root.mkdir()
    if number < len(CASES):
        name, case = NAME, sorted(CASES)[number]
        CASES[case](root / "train.zip")
    else:
        name = case = PATHS[number - len(CASES)]
        _archive(root / "train.zip", [_picture()], name.replace("\0", "_") or "_")
    (root / "train_map.txt").write_text(f"{name}\t0\n")
    (root / "validation.zip").write_bytes(b"")
    (root / "validation_map.txt").write_text(f"{NAME}\t0\n")
    there = sorted(place.folder.rglob("*"))

    def read() -> Optional[bytes]:
        try:
            data = open_zip(root, training=True, cache="full", process=0, processes=1).read(0)
            decode(data)
            return data
        except BadImage as error:
            require("\n" not in str(error), f"{case}: it takes more than a line: {error}")
            return None

    try:
        data = require_within_limits(read, MAX_FILE_BYTES)
    except Refusal as error:
        require("\n" not in str(error), f"{case}: it takes more than a line: {error}")
    else:
        require(data in (_picture(), None), f"{case}: other bytes were taken")
    require(sorted(place.folder.rglob("*")) == there, f"{case}: it left files")
