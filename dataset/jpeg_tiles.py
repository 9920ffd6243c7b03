# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Parts of JPEGs with restart markers, as smaller JPEGs: what a decoder does not get, it need not decode.

After a restart marker a decoder begins anew (ITU-T T.81, F.2.1.3.1), so that segments of the entropy-coded data can be
left out where markers divide each row of MCUs, the blocks that are coded together. The smaller JPEG is the same in its
tables; its frame header has another size, and its markers are numbered anew.

The files are untrusted: those that are not exactly as expected have no tiles and are to be decoded as a whole.
"""

import ctypes
import struct
from typing import Iterator, NamedTuple, Optional, Tuple

import numpy as np

from dataset import native

Box = Tuple[int, int, int, int]  # left, top, width, height
SOI, SOS, DQT, DHT, DRI, APP0, APP14 = 0xD8, 0xDA, 0xDB, 0xC4, 0xDD, 0xE0, 0xEE
HUFFMAN_FRAMES = (0xC0, 0xC1)  # sequential ones
KEPT_AS_THEY_ARE = (DQT, DHT, APP0, APP14)
LEFT_OUT = (0xFE, *(code for code in range(0xE0, 0xF0) if code not in KEPT_AS_THEY_ARE))  # do not change pixels
MOST_HEADERS = 100
BLOCK = 8  # side, in pixels


class Frame(NamedTuple):
    """What a frame header says.

    Attributes:
        across, down: pixels of an MCU.
        reach: pixels by which upsampled colours may depend on their neighbours.
    """

    width: int
    height: int
    components: bytes
    across: int
    down: int
    reach: Tuple[int, int]


class TiledJpeg:
    """A JPEG in tiles; see `tiled`.

    Args:
        library: of pixels.c.
        headers: its headers up to the entropy-coded data, without the frame header's size.
        size_at: where in `headers` height and width are.
        first: where its entropy-coded data begin.
        marks: (rows, columns) positions of the markers that end the tiles.
        tile: width and height of a tile.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        data: bytes,
        frame: Frame,
        headers: bytes,
        size_at: int,
        first: int,
        marks: np.ndarray,
        tile: Tuple[int, int],
    ):
        self._library, self._data = library, data
        self.width, self.height = frame.width, frame.height
        self._reach, self._tile = frame.reach, tile
        self._headers, self._size_at = headers, size_at
        self._first, self._marks = first, marks

    def part(self, box: Box) -> Tuple[np.ndarray, int, int]:
        """A JPEG (bytes,) with all tiles that determine the pixels of `box`, and where its left and upper edges are.

        Raises:
            ValueError: if `box` is not inside the picture.
        """
        left, top, width, height = box
        if min(left, top) < 0 or min(width, height) < 1 or left + width > self.width or top + height > self.height:
            raise ValueError(f"the part {box} reaches out of {self.width}x{self.height} pixels")
        rows, columns = self._marks.shape
        west, east = _covering(left, width, self._reach[0], self._tile[0], columns)
        if west > 0 and self.width - west * self._tile[0] <= 2 * self._reach[0]:
            west -= 1  # libjpeg does not interpolate the colours of pictures of one or two samples
        north, south = _covering(top, height, self._reach[1], self._tile[1], rows)
        x, y = west * self._tile[0], north * self._tile[1]
        size = min(self.height - y, (south - north) * self._tile[1]), min(self.width - x, (east - west) * self._tile[0])
        return self._tiles(size, north, south, west, east), x, y

    def _tiles(self, size: Tuple[int, int], north: int, south: int, west: int, east: int) -> np.ndarray:
        """A JPEG of the rows north..south and columns west..east of tiles; `size` is its height and width."""
        start = len(self._headers)
        out = np.empty(start + len(self._data) - self._first, np.uint8)
        out[:start] = np.frombuffer(self._headers, np.uint8)
        out[self._size_at : self._size_at + 4] = np.frombuffer(struct.pack(">HH", *size), np.uint8)
        places = self._first, self._marks.shape[1], north, south, west, east
        copied = self._library.copy_tiles(self._data, _at(self._marks), *map(ctypes.c_int64, places), _at(out[start:]))
        return out[: start + copied]


def tiled(data: bytes) -> Optional[TiledJpeg]:
    """The tiles of a sequential JPEG of one scan whose rows restart markers divide evenly; None for anything else.

    They are found by pixels.c: without a compiler, nothing has tiles.
    """
    library = native.library()
    if library is None:
        return None
    try:
        headers, frame, size_at, interval, first = _headers(data)
    except (LookupError, ValueError, struct.error):
        return None
    columns, rows = -(-frame.width // frame.across), -(-frame.height // frame.down)
    if columns % interval or rows * columns // interval > len(data):
        return None
    marks = np.empty((rows, columns // interval), np.int64)
    if not library.find_tiles(data, *map(ctypes.c_int64, (first, len(data), marks.size)), _at(marks)):
        return None
    return TiledJpeg(library, data, frame, headers, size_at, first, marks, (interval * frame.across, frame.down))


def _headers(data: bytes) -> Tuple[bytes, Frame, int, int, int]:
    """Headers that matter, frame, where its size is among them, restart interval, where the entropy-coded data begin.

    Raises:
        ValueError, LookupError, struct.error: for other files.
    """
    kept, size_at, interval = bytearray((0xFF, SOI)), 0, 0
    frame: Optional[Frame] = None
    for code, at, end in _segments(data):
        body = data[at + 4 : end]
        if code in HUFFMAN_FRAMES and frame is None:
            frame, size_at = _frame(body), len(kept) + 5
        elif code == DRI:
            (interval,) = struct.unpack(">H", body)
        elif code == SOS and frame is not None and interval and _is_whole(body, frame):
            return bytes(kept + data[at:end]), frame, size_at, interval, end
        elif code not in (*KEPT_AS_THEY_ARE, *LEFT_OUT):
            raise ValueError("another kind of JPEG")
        if code not in LEFT_OUT:
            kept += data[at:end]
    raise ValueError("no scan")


def _segments(data: bytes) -> Iterator[Tuple[int, int, int]]:
    """Code, start and end of the marker segments at the beginning; raises ValueError and struct.error as `_headers`."""
    at = 2 if data[:2] == bytes((0xFF, SOI)) else len(data)
    for _ in range(MOST_HEADERS):
        prefix, code, length = struct.unpack_from(">BBH", data, at)
        end = at + 2 + length
        if prefix != 0xFF or length < 2 or end > len(data):
            raise ValueError("no marker segment")
        yield code, at, end
        at = end


def _frame(body: bytes) -> Frame:
    precision, height, width, count = struct.unpack_from(">BHHB", body)
    if precision != 8 or not height or not width or count not in (1, 3) or len(body) != 6 + 3 * count:
        raise ValueError("another kind of frame")
    factors = [(body[at] >> 4, body[at] & 15) for at in range(7, len(body), 3)]
    if not all(1 <= factor <= 4 for pair in factors for factor in pair):
        raise ValueError("wrong sampling factors")
    across, down = (1, 1) if count == 1 else (max(pair[0] for pair in factors), max(pair[1] for pair in factors))
    reach = across if across > 1 else 0, down if down > 1 else 0
    return Frame(width, height, body[6::3], BLOCK * across, BLOCK * down, reach)


def _is_whole(body: bytes, frame: Frame) -> bool:
    """Whether a scan has all coefficients of all components."""
    count = len(frame.components)
    return (
        len(body) == 4 + 2 * count and body[0] == count and body[1:-3:2] == frame.components and body[-3:] == b"\0?\0"
    )


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _covering(start: int, length: int, reach: int, tile: int, count: int) -> Tuple[int, int]:
    """The first tile and the one after the last of those that a range of pixels depends on."""
    return max(start - reach, 0) // tile, min(-(-(start + length + reach) // tile), count)
