# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The members of a zip archive in memory, as written by torch.save: stored, in order, unambiguous.

Zip readers disagree on files with two directories, overlapping members, or data before or after the archive. Such files
are refused here, so that the data checked is the data used. The format is described in PKWARE's APPNOTE.TXT, sections
4.3 and 4.5.3.
"""

import struct
import zlib
from typing import Dict, Iterator, List, NamedTuple, Tuple

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_EXTRA = struct.Struct("<2H")
_ZIP64 = 1  # id of the extra field for sizes beyond 32 bits
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the zip64 record"
_STORED, _ENCRYPTED = 0, 1
MAX_MEMBERS = 100_000


class BadArchive(ValueError):
    """The bytes are not an unambiguous zip archive; the message says why."""


class _Entry(NamedTuple):
    """An entry of the directory."""

    name: bytes
    checksum: int
    size: int
    offset: int  # of the member's local header


def stored_members(archive: memoryview, comment: int, checksums: bool) -> Dict[str, memoryview]:
    """The contents of every member by name, as views.

    Args:
        archive: a whole file.
        comment: length of the comment at its end.
        checksums: whether to compare the members' checksums.

    Raises:
        BadArchive: for anything but consecutive stored members followed by one directory.
    """
    members: Dict[str, memoryview] = {}
    try:
        entries, directory = _read_directory(archive, len(archive) - comment - _END.size, comment)
        free = 0  # every byte belongs to one member at most
        for entry in sorted(entries, key=lambda entry: entry.offset):
            begin = _contents_begin(archive, entry)
            if entry.offset < free or begin + entry.size > directory:
                raise BadArchive("its members overlap")
            free = begin + entry.size
            contents = archive[begin:free]
            name = entry.name.decode("utf-8")
            if name in members:
                raise BadArchive(f"its member {name} occurs twice")
            if checksums and zlib.crc32(contents) != entry.checksum:
                raise BadArchive(f"the checksum of its member {name} is wrong")
            members[name] = contents
    except (struct.error, UnicodeDecodeError) as error:
        raise BadArchive("its directory is damaged") from error
    return members


def _read_directory(archive: memoryview, end: int, comment: int) -> Tuple[List[_Entry], int]:
    """The entries of the directory, and its offset."""
    if end < 0 or bytes(archive[:4]) != b"PK\x03\x04" or bytes(archive[end : end + 4]) != b"PK\x05\x06":
        raise BadArchive("it is truncated, or not a file of torch.save")
    *_, count, size, offset, said = _END.unpack_from(archive, end)
    after = end
    if count == _FULL16 or size == _FULL32 or offset == _FULL32 or _has_locator(archive, end):
        magic, _, after, _ = _END64_LOCATOR.unpack_from(archive, end - _END64_LOCATOR.size)
        magic64, *_, count, size, offset = _END64.unpack_from(archive, after)
        if (magic, magic64) != (b"PK\x06\x07", b"PK\x06\x06") or after + _END64.size + _END64_LOCATOR.size != end:
            raise BadArchive("its directory is damaged")
    if said != comment or offset + size != after or count > MAX_MEMBERS:
        raise BadArchive("its directory is damaged")
    return list(_entries(archive[offset : offset + size], count)), offset


def _has_locator(archive: memoryview, end: int) -> bool:
    return bytes(archive[max(end - _END64_LOCATOR.size, 0) :][:4]) == b"PK\x06\x07"


def _entries(directory: memoryview, count: int) -> Iterator[_Entry]:
    at = 0
    for _ in range(count):
        fields = _ENTRY.unpack_from(directory, at)
        magic, _, _, flags, method, _, _, checksum, packed, size, name, extra, note, _, _, _, offset = fields
        at += _ENTRY.size
        if magic != b"PK\x01\x02":
            raise BadArchive("its directory is damaged")
        if method != _STORED or flags & _ENCRYPTED:
            raise BadArchive("its members are compressed, which torch.save never does")
        size, packed, offset = _wide(directory[at + name : at + name + extra], (size, packed, offset))
        if size != packed:
            raise BadArchive("its directory is damaged")
        yield _Entry(bytes(directory[at : at + name]), checksum, size, offset)
        at += name + extra + note
    if at != len(directory):
        raise BadArchive("its directory is damaged")


def _wide(extra: memoryview, values: Tuple[int, ...]) -> Tuple[int, ...]:
    """Sizes and offset of an entry, from the zip64 field if they do not fit into 32 bits."""
    missing = values.count(_FULL32)
    at = 0
    while missing and at + _EXTRA.size <= len(extra):
        kind, length = _EXTRA.unpack_from(extra, at)
        at += _EXTRA.size
        if kind == _ZIP64:
            wide = iter(struct.unpack_from(f"<{missing}Q", extra, at))
            return tuple(next(wide) if value == _FULL32 else value for value in values)
        at += length
    return values


def _contents_begin(archive: memoryview, entry: _Entry) -> int:
    """The offset of a member's contents, after its local header, which must have the same name."""
    magic, _, _, _, _, _, _, _, _, name, extra = _LOCAL.unpack_from(archive, entry.offset)
    at = entry.offset + _LOCAL.size
    if magic != b"PK\x03\x04" or archive[at : at + name] != entry.name:
        raise BadArchive("its directory and its members disagree")
    return at + name + extra
