# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Decodes parts of JPEGs with baseline.c, to the same pixels as the whole picture.

Blocks beside the part are parsed but not decoded, since each block starts where the previous one ends; blocks below it
are not read. Decoding can start after any restart marker (ITU-T T.81, F.2.1.3.1), so intervals between two markers are
skipped if they are not needed.

The files are untrusted: those that are not exactly as expected are not decoded here.
"""

import ctypes
from typing import Optional, Tuple

import numpy as np

from dataset import native

Box = Tuple[int, int, int, int]  # left, top, width, height


class Header(ctypes.Structure):
    """The headers of an ordinary JPEG; see jpeg.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("width", "height", "interval")]
    width: int
    height: int
    interval: int


def read_header(data: bytes) -> Optional[Header]:
    """The header of a JPEG whose parts can be decoded; None for other files, or without a compiler."""
    library, header = native.library(), Header()
    if library is None or not library.describe_jpeg(data, len(data), ctypes.byref(header)):
        return None
    return header


def decode_part(data: bytes, size: Tuple[int, int], box: Box) -> Optional[np.ndarray]:
    """The pixels (height, width, 3) of `box` in a JPEG of `size`; None if its data is not as expected.

    Raises:
        ValueError: if `box` is not inside the picture.
    """
    left, top, width, height = box
    if min(left, top) < 0 or min(width, height) < 1 or left + width > size[0] or top + height > size[1]:
        raise ValueError(f"the part {box} extends beyond {size[0]}x{size[1]} pixels")
    library, pixels = native.library(), np.empty((height, width, 3), np.uint8)
    if library is None or not library.decode_part(data, len(data), *box, pixels.ctypes.data):
        return None
    return pixels
