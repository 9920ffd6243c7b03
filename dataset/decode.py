# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Bytes of untrusted image files -> pixels.

The sizes of a file and of its picture are checked before decoding. A picture, or the requested part of it, is decoded
completely or rejected with a reason: truncated pictures are never filled with grey. Only regular files are opened.
"""

import functools
import importlib
import io
import os
import struct
import zlib
from types import ModuleType
from typing import Optional, Tuple, Union

import numpy as np
from PIL import Image

from common.files import NotRegular, TooLarge, read_regular
from dataset.jpeg_parts import Box, decode_part, read_header
from utils import one_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # Pillow's other decoders are never started
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
MAX_PIXELS = 89_478_485  # beyond this, Pillow warns of decompression bombs: 256 MiB of RGB
MAX_FILE_BYTES = 64 << 20
BAD_SHARE = 0.05  # of a data set that may be bad before the run stops
BAD_FEWEST = 3  # this many are always tolerated

# Exceptions that Pillow's parsers raise on damaged input, in addition to its own subclasses of OSError.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BadImage(Exception):
    """A file that cannot be decoded; the message is the reason, without the path."""


class PartialPicture:
    """A JPEG decoded only as far as requested; damage in the rest goes unnoticed."""

    def __init__(self, data: bytes, size: Tuple[int, int]):
        self._data, self.size = data, size

    def part(self, box: Box) -> Tuple[np.ndarray, int, int]:
        """Pixels that include `box`, bit for bit as in the whole picture, and the left and top of their first pixel.

        Raises:
            BadImage: as in `decode`.
            ValueError: if `box` is not inside the picture.
        """
        pixels = decode_part(self._data, self.size, box)
        return (self.whole(), 0, 0) if pixels is None else (pixels, *box[:2])

    def whole(self) -> np.ndarray:
        """All pixels; raises as `decode` does."""
        return np.asarray(decode(self._data))


Picture = Union[Image.Image, np.ndarray, PartialPicture]


def most_bad(images: int) -> int:
    """The number of images of a data set that may be bad before a run stops."""
    return max(BAD_FEWEST, int(BAD_SHARE * images))


def shown(path: Union[str, "os.PathLike[str]"]) -> str:
    """A path for messages: control characters and undecodable bytes are escaped."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)


def read_file(path: str) -> bytes:
    """The contents of a regular file.

    Raises:
        BadImage: if it cannot be read, is not a regular file or is larger than MAX_FILE_BYTES.
    """
    try:
        return bytes(read_regular(path, MAX_FILE_BYTES))
    except TooLarge as error:
        raise BadImage(f"is larger than {MAX_FILE_BYTES >> 20} MiB ({error.size} bytes)") from error
    except NotRegular as error:
        raise BadImage("is not a regular file") from error
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror or error}") from error


def open_picture(data: bytes) -> Picture:
    """As `decode`, but an ordinary JPEG is decoded lazily, as far as it is used."""
    header = read_header(data)
    if header is None or header.width * header.height > MAX_PIXELS:
        return decode(data)
    return PartialPicture(data, (header.width, header.height))


def decode(data: bytes) -> Union[Image.Image, np.ndarray]:
    """The picture in `data` as 8-bit RGB; orientation tags are ignored, as in ImageNet recipes.

    Returns:
        A uint8 array (H, W, 3) from the fast decoder, else a Pillow image. Converting one into the other takes as long
        as a resize, so it is left to the caller.

    Raises:
        BadImage: if the data does not decode completely into a picture of at most MAX_PIXELS.
    """
    if not data:
        raise BadImage("is empty")
    try:
        pixels = _decode_plain_jpeg(data)
        return _decode_any(data) if pixels is None else pixels
    except Image.UnidentifiedImageError as error:
        raise BadImage(f"is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture") from error
    except DECODER_ERRORS as error:
        raise BadImage(f"does not decode: {one_line(error)}") from error


@functools.lru_cache(maxsize=None)
def fast_jpeg() -> Optional[ModuleType]:
    """simplejpeg if it is installed; it decodes a JPEG to the same pixels as Pillow in four fifths of the time."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def _decode_plain_jpeg(data: bytes) -> Optional[np.ndarray]:
    """The pixels of an intact colour or grey JPEG; None for anything else, to be decoded or rejected by Pillow.

    Truncated data is rejected here, since Pillow may fill the rest with grey without an error.
    """
    decoder = fast_jpeg()
    if decoder is None or not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = decoder.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or height * width > MAX_PIXELS:
            return None
        return decoder.decode_jpeg(data, "RGB")
    except ValueError as error:
        if "premature end" in str(error).lower():
            raise BadImage(f"does not decode: {one_line(error)}") from error
        return None


def _decode_any(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadImage(f"has {width}x{height} pixels: more than {MAX_PIXELS} are not decoded")
        image.load()
        return _as_rgb(image)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip instead of scale
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise BadImage("holds grey levels beyond 16 bits")
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("holds floating-point grey levels")
    if image.mode == "P" and "transparency" in image.info:  # the same pixels, without Pillow's warning
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
