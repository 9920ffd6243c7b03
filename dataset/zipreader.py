# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Random access to the members of a zip archive, from any number of processes.

The directory is read once. Members are then read by position (pread): processes share no file offset, so a forked or
pickled copy cannot disturb another reader. Nothing is extracted to disk.
"""

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, Iterator, Sequence

import numpy as np

from common.errors import EXIT_DATA, Refusal
from common.files import open_regular, retried
from common.logs import logger
from common.memory import available_memory
from dataset.decode import MAX_FILE_BYTES, BadImage, shown
from utils import one_line

LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # APPNOTE.TXT 4.3.7
LOCAL_SIGNATURE = b"PK\x03\x04"
ENCRYPTED = 1  # flag bit
WARM_CHUNK = 16 << 20


class ZipReader:
    """Reads members of an archive by their position in `names`.

    Args:
        path: the archive.
        names: names of the members to read, as in the archive.

    Raises:
        Refusal: for an archive that cannot be opened.
        KeyError: with a position in `names` as its argument, if that member is not in the archive.
    """

    def __init__(self, path: Path, names: Sequence[str]):
        self.path = path
        members = {info.filename: info for info in _directory(path)}
        self._table = np.empty(
            len(names),
            dtype=[
                ("offset", "i8"),
                ("packed", "i8"),
                ("size", "i8"),
                ("crc", "u4"),
                ("method", "u2"),
                ("flags", "u2"),
            ],
        )
        for position, name in enumerate(names):
            info = members.get(name)
            if info is None:
                raise KeyError(position)
            self._table[position] = (
                info.header_offset,
                info.compress_size,
                info.file_size,
                info.CRC,
                info.compress_type,
                info.flag_bits,
            )
        self._open()

    def _open(self) -> None:
        self._stream = open(open_regular(self.path), "rb", buffering=0)

    def __getstate__(self) -> Dict[str, Any]:
        return {"path": self.path, "_table": self._table}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._table)

    def read(self, position: int) -> bytes:
        """The contents of a member, checked against their checksum.

        Raises:
            BadImage: for a damaged or oversized member.
        """
        member = self._table[position]
        if max(member["size"], member["packed"]) > MAX_FILE_BYTES:
            raise BadImage(f"is larger than {MAX_FILE_BYTES >> 20} MiB ({member['size']} bytes)")
        if member["flags"] & ENCRYPTED:
            raise BadImage("is encrypted")
        try:
            data = retried(lambda: self._unpack(member))
        except (OSError, struct.error, zlib.error) as error:
            raise BadImage(f"is a damaged member: {error}") from error
        if len(data) != member["size"] or zlib.crc32(data) != member["crc"]:
            raise BadImage("is a damaged member: its checksum does not match")
        return data

    def _unpack(self, member: np.void) -> bytes:
        offset, packed = int(member["offset"]), int(member["packed"])
        header = LOCAL_HEADER.unpack(os.pread(self._stream.fileno(), LOCAL_HEADER.size, offset))
        if header[0] != LOCAL_SIGNATURE:
            raise BadImage("is a damaged member: no header where the archive's directory says")
        name_length, extra_length = header[-2:]
        data = os.pread(self._stream.fileno(), packed, offset + LOCAL_HEADER.size + name_length + extra_length)
        if member["method"] == zipfile.ZIP_STORED:
            return data
        if member["method"] == zipfile.ZIP_DEFLATED:  # stops at the announced size, so bombs are not unpacked
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, int(member["size"]) + 1)
        raise BadImage(f"is compressed with method {member['method']}: only stored and deflated members are read")

    def warm(self, part: int, parts: int) -> None:
        """Reads one of `parts` equal shares of the archive into the system's file cache.

        All processes of the machine share the cache, and the system reclaims it when memory is short. An archive that
        does not fit in the available memory is not cached.
        """
        size = os.fstat(self._stream.fileno()).st_size
        start, end = size * part // parts, size * (part + 1) // parts
        available = available_memory()
        if available is not None and end - start > available:
            logger.warning(
                "%s is not cached: %.1f GB are more than the %.1f GB of memory available (DATA.CACHE_MODE)",
                shown(self.path),
                (end - start) / 1e9,
                available / 1e9,
            )
            return
        for offset in range(start, end, WARM_CHUNK):
            os.pread(self._stream.fileno(), min(WARM_CHUNK, end - offset), offset)
        logger.info("cached %.1f MB of %s", (end - start) / 1e6, shown(self.path))


def _directory(path: Path) -> Iterator[zipfile.ZipInfo]:
    try:
        with open(open_regular(path), "rb") as stream, zipfile.ZipFile(stream) as archive:
            return iter(archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, struct.error, NotImplementedError) as error:
        raise Refusal(f"{shown(path)} cannot be read as a zip archive: {one_line(error)}", EXIT_DATA) from error
