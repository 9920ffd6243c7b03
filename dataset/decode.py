# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Bytes of a file -> pixels, for files that nobody vouches for.

A file is read whole, its size and its picture's size are checked before anything is decoded, and a picture is either
decoded completely or refused with the reason: no grey fill, no noise, no hang on something that is no file.
"""

import functools
import importlib
import io
import os
import struct
import time
import zlib
from types import ModuleType
from typing import Optional, Union

import numpy as np
from PIL import Image

from common import deadlines
from common.files import TRANSIENT_ERRORS, NotRegular, TooLarge, read_regular
from utils import one_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # Pillow's other decoders are never started
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of bombs: 256 MiB of RGB
MAX_FILE_BYTES = 64 << 20
READ_ATTEMPTS = 3

# What Pillow's parsers raise on damaged input, beside its own OSError subclasses.
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


Picture = Union[Image.Image, np.ndarray]


class BadImage(Exception):
    """A file that gives no picture; the message says why, without the path."""


def shown(path: Union[str, "os.PathLike[str]"]) -> str:
    """A path as a log line may hold it: control characters and undecodable bytes are escaped."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)


def read_file(path: str) -> bytes:
    """The contents of a regular file.

    Errors that network storage gives and takes back are tried again a few times.

    Raises:
        BadImage: when it cannot be read, is no regular file or is larger than MAX_FILE_BYTES.
    """
    for attempt in range(READ_ATTEMPTS):
        try:
            return bytes(read_regular(path, MAX_FILE_BYTES))
        except TooLarge as error:
            raise BadImage(f"is larger than {MAX_FILE_BYTES >> 20} MiB ({error.size} bytes)") from error
        except NotRegular as error:
            raise BadImage("is not a regular file") from error
        except OSError as error:
            if error.errno not in TRANSIENT_ERRORS or attempt + 1 == READ_ATTEMPTS:
                raise BadImage(f"cannot be read: {error.strerror or error}") from error
            time.sleep(deadlines.RETRY * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def decode(data: bytes) -> Picture:
    """The picture in `data` as RGB, 8 bits a channel; orientation tags are ignored, as ImageNet's recipes do.

    Returns:
        An array of bytes (H, W, 3) where the fast decoder took it, else Pillow's picture: turning one into the other
        takes as long as a resize, so that whoever needs the other kind may do it.

    Raises:
        BadImage: for anything that does not decode completely into a picture of at most MAX_PIXELS.
    """
    if not data:
        raise BadImage("is empty")
    try:
        pixels = _decode_plain_jpeg(data)
        return _decode_any(data) if pixels is None else pixels
    except Image.UnidentifiedImageError as error:
        raise BadImage(f"is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture") from error
    except DECODER_ERRORS as error:
        raise BadImage(f"does not decode: {one_line(error)}") from error


@functools.lru_cache(maxsize=None)
def fast_jpeg() -> Optional[ModuleType]:
    """simplejpeg where it is installed: it decodes a JPEG to the same pixels as Pillow in four fifths of the time."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def _decode_plain_jpeg(data: bytes) -> Optional[np.ndarray]:
    """The pixels of a sound JPEG in colours or grey; None for anything else, which is left to Pillow to judge.

    But for one whose data end early before a marker: Pillow fills the rest with grey and says nothing.
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
