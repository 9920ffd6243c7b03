# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Appends a digest of a whole file to files of torch.save, as the comment of their zip archive.

    ... members ... directory ... end record | "swin-sha256:" + 64 hexadecimal digits

Zip readers ignore comments, so torch.load and timm read a sealed file like any other. The digest covers every byte
before the comment, including padding and headers. Zip's own checksums cover only the contents of members, and
torch.load does not even verify those.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO, Union

from common.files import open_regular

MARK = b"swin-sha256:"
LENGTH = len(MARK) + 64
_END_RECORD = 22  # bytes, without a comment; its last two are the comment's length


class SealingStream:
    """A stream for torch.save that writes to another stream; `seal` appends the digest of the file.

    torch.save writes sequentially. The last bytes are held back, since the archive's end record needs the length of the
    comment.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self._held = b""

    def write(self, data: Union[bytes, memoryview]) -> int:
        """Writes all but the last bytes."""
        if len(data) >= _END_RECORD:
            self._pass_on(self._held)
            self._pass_on(memoryview(data)[:-_END_RECORD])
            self._held = bytes(memoryview(data)[-_END_RECORD:])
        else:
            joined = self._held + bytes(data)
            self._pass_on(joined[:-_END_RECORD])
            self._held = joined[-_END_RECORD:]
        return len(data)

    def flush(self) -> None:
        """Called by torch.save; keeps holding back the last bytes."""

    def seal(self) -> None:
        """Writes the rest of the archive and the digest.

        Raises:
            ValueError: if the data does not end like a zip archive without a comment.
        """
        if self._held[:4] != b"PK\x05\x06" or self._held[-2:] != b"\0\0":
            raise ValueError("the output of torch.save does not end like a zip archive")
        self._pass_on(self._held[:-2] + LENGTH.to_bytes(2, "little"))
        self._stream.write(MARK + self._digest.hexdigest().encode())
        self._held = b""

    def _pass_on(self, data: Union[bytes, memoryview]) -> None:
        self._digest.update(data)
        self._stream.write(data)


def is_sealed(contents: memoryview) -> bool:
    """Whether the contents of a file end with a digest."""
    return contents[-LENGTH:][: len(MARK)] == MARK


def is_intact(contents: memoryview) -> bool:
    """Whether the digest of a sealed file matches its contents."""
    return contents[-LENGTH:] == MARK + hashlib.sha256(contents[:-LENGTH]).hexdigest().encode()


def digest_of(path: Path) -> str:
    """The digest at the end of a sealed file, not verified; empty if there is none."""
    with open(open_regular(path), "rb") as stream:
        stream.seek(max(os.fstat(stream.fileno()).st_size - LENGTH, 0))
        end = stream.read(LENGTH)
    return end[len(MARK) :].decode("ascii") if end.startswith(MARK) else ""
