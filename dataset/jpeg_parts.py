# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Parts of JPEGs, as smaller JPEGs: what a decoder does not get, it need not decode.

The smaller JPEG is the same in its tables, and its frame header has another size. A decoder ends after the rows that
the header announces, so that of any sequential JPEG the rows below a part can be left out. After a restart marker a
decoder begins anew (ITU-T T.81, F.2.1.3.1), so that segments of the entropy-coded data can be left out where markers
divide each row of MCUs, the blocks that are coded together; the markers of the others are numbered anew.

The files are untrusted: those that are not exactly as expected have no parts and are to be decoded as a whole.
"""

import ctypes
import struct
from typing import NamedTuple, Optional, Tuple, Union

import numpy as np

from dataset import native

Box = Tuple[int, int, int, int]  # left, top, width, height
BLOCK = 8  # side, in pixels


class Headers(ctypes.Structure):
    """What the headers of a JPEG say; see jpeg.c."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("width", "height", "across", "down", "interval", "height_at", "first")
    ]
    width: int
    height: int
    across: int
    down: int
    interval: int
    height_at: int
    first: int

    @property
    def reach(self) -> Tuple[int, int]:
        """Pixels by which upsampled colours may depend on their neighbours, to the sides and above or below."""
        return self.across if self.across > 1 else 0, self.down if self.down > 1 else 0


class Part(NamedTuple):
    """A JPEG that has some of the pixels of another one: those of `box`."""

    data: Union[bytearray, np.ndarray]
    box: Box


class JpegInRows:
    """A sequential JPEG of which rows can be left out at the bottom."""

    def __init__(self, data: bytes, headers: Headers):
        self._data, self._headers = data, headers
        self.size = headers.width, headers.height

    def part(self, box: Box) -> Part:
        """All rows down to the last that determines the pixels of `box`; raises ValueError outside of the picture."""
        _check(box, self.size)
        headers, row = self._headers, BLOCK * self._headers.down
        rows = -(-(box[1] + box[3] + headers.reach[1]) // row)
        height, data = min(rows * row, headers.height), bytearray(self._data)
        struct.pack_into(">H", data, headers.height_at, height)
        return Part(data, (0, 0, headers.width, height))


class JpegInTiles:
    """A sequential JPEG whose rows restart markers divide into tiles.

    Args:
        library: of jpeg.c.
        marks: (rows, columns) positions of the markers that end the tiles.
        tile: width and height of a tile.
    """

    def __init__(self, library: ctypes.CDLL, data: bytes, headers: Headers, marks: np.ndarray, tile: Tuple[int, int]):
        self._library, self._data, self._headers = library, data, headers
        self.size = headers.width, headers.height
        self._marks, self._tile = marks, tile

    def part(self, box: Box) -> Part:
        """All tiles that determine the pixels of `box`; raises ValueError outside of the picture."""
        _check(box, self.size)
        left, top, width, height = box
        rows, columns = self._marks.shape
        across, down = self._headers.reach
        west, east = _covering(left, width, across, self._tile[0], columns)
        if west > 0 and self.size[0] - west * self._tile[0] <= 2 * across:
            west -= 1  # libjpeg does not interpolate the colours of pictures of one or two samples
        north, south = _covering(top, height, down, self._tile[1], rows)
        x, y = west * self._tile[0], north * self._tile[1]
        right, bottom = min(east * self._tile[0], self.size[0]), min(south * self._tile[1], self.size[1])
        found = x, y, right - x, bottom - y
        return Part(self._tiles(found[2:], north, south, west, east), found)

    def _tiles(self, size: Tuple[int, ...], north: int, south: int, west: int, east: int) -> np.ndarray:
        """A JPEG of the rows north..south and columns west..east of tiles."""
        first, at = self._headers.first, self._headers.height_at
        out = np.empty(len(self._data), np.uint8)
        out[:first] = np.frombuffer(self._data, np.uint8, first)
        out[at : at + 4] = np.frombuffer(struct.pack(">HH", *reversed(size)), np.uint8)
        places = first, self._marks.shape[1], north, south, west, east
        copied = self._library.copy_tiles(self._data, _at(self._marks), *places, _at(out[first:]))
        return out[: first + copied]


def in_parts(data: bytes) -> Union[JpegInRows, JpegInTiles, None]:
    """A sequential JPEG of one scan, in rows, or in tiles if restart markers divide its rows evenly; None for others.

    Headers are read by jpeg.c: without a compiler, nothing has parts.
    """
    library = native.library()
    headers = Headers()
    if library is None or not library.read_headers(data, len(data), ctypes.byref(headers)):
        return None
    return _in_tiles(library, data, headers) if headers.interval else JpegInRows(data, headers)


def _in_tiles(library: ctypes.CDLL, data: bytes, headers: Headers) -> Optional[JpegInTiles]:
    across, down, interval, first = headers.across * BLOCK, headers.down * BLOCK, headers.interval, headers.first
    columns, rows = -(-headers.width // across), -(-headers.height // down)
    if columns % interval or rows * columns // interval > len(data):
        return None
    marks = np.empty((rows, columns // interval), np.int64)
    if not library.find_tiles(data, first, len(data), marks.size, _at(marks)):
        return None
    return JpegInTiles(library, data, headers, marks, (interval * across, down))


def _check(box: Box, size: Tuple[int, int]) -> None:
    left, top, width, height = box
    if min(left, top) < 0 or min(width, height) < 1 or left + width > size[0] or top + height > size[1]:
        raise ValueError(f"the part {box} reaches out of {size[0]}x{size[1]} pixels")


def _at(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def _covering(start: int, length: int, reach: int, tile: int, count: int) -> Tuple[int, int]:
    """The first tile and the one after the last of those that a range of pixels depends on."""
    return max(start - reach, 0) // tile, min(-(-(start + length + reach) // tile), count)
