# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Parts of JPEGs: rows of any, tiles of those with restart markers."""

import io
import random
import struct
from typing import Any, List, Optional, Tuple

import numpy as np
import pytest
from PIL import Image

from dataset import native
from dataset.decode import BadImage, PartialPicture, decode, fast_jpeg, open_picture
from dataset.jpeg_parts import JpegInRows, JpegInTiles, in_parts
from dataset.pixels import PartialPixels, Pixels

pytestmark = pytest.mark.skipif(native.library() is None, reason="pixels.c is not compiled")
needs_decoder = pytest.mark.skipif(fast_jpeg() is None, reason="simplejpeg is not installed")
SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "grey": None, "red, green and blue": None}


def picture(width: int, height: int) -> Image.Image:
    """Noise with edges: each pixel and each colour differs from its neighbours."""
    return Image.fromarray(np.random.RandomState(width * 1000 + height).randint(0, 256, (height, width, 3), np.uint8))


def encoded(width: int, height: int, subsampling: str = "4:2:0", blocks: int = 1, **options: Any) -> bytes:
    """A JPEG with a restart marker after every `blocks` MCUs, or none for 0."""
    image, buffer = picture(width, height), io.BytesIO()
    if subsampling == "grey":
        image = image.convert("L")
    elif SUBSAMPLINGS[subsampling] is None:
        options["keep_rgb"] = True
    else:
        options["subsampling"] = SUBSAMPLINGS[subsampling]
    image.save(buffer, "JPEG", quality=80, restart_marker_blocks=blocks, **options)
    return buffer.getvalue()


def boxes(width: int, height: int, count: int) -> List[Tuple[int, int, int, int]]:
    """Parts of a picture: last column, last row and the pixel in both, then random ones, many of them at borders."""
    draw = random.Random(width * 1000 + height)
    found = [(width - 1, 0, 1, height), (0, height - 1, width, 1), (width - 1, height - 1, 1, 1)]
    for _ in range(count):
        wide, high = draw.randint(1, width), draw.randint(1, height)
        left = draw.choice((0, width - wide, draw.randint(0, width - wide)))
        found.append((left, draw.choice((0, height - high, draw.randint(0, height - high))), wide, high))
    return found


def opened(data: bytes) -> PartialPicture:
    found = open_picture(data)
    assert isinstance(found, PartialPicture)
    return found


def cut(parts: PartialPicture, box: Tuple[int, int, int, int]) -> np.ndarray:
    """The pixels of a box out of those that are decoded for it."""
    pixels, x, y = parts.part(box)
    left, top, width, height = box
    return pixels[top - y : top - y + height, left - x : left - x + width]


@needs_decoder
@pytest.mark.parametrize("blocks, kind", [(0, JpegInRows), (1, JpegInTiles)])
@pytest.mark.parametrize("subsampling", sorted(SUBSAMPLINGS))
@pytest.mark.parametrize("width, height", [(500, 77), (97, 130), (33, 17), (17, 49), (8, 64), (9, 8), (1, 1)])
def test_parts_are_the_pixels_of_the_whole_picture(
    subsampling: str, width: int, height: int, blocks: int, kind: type
) -> None:
    data = encoded(width, height, subsampling, blocks)
    whole, parts = np.asarray(decode(data)), opened(data)
    assert isinstance(in_parts(data), kind) and parts.size == (width, height)
    for left, top, wide, high in boxes(width, height, 60):
        expected = whole[top : top + high, left : left + wide]
        assert np.array_equal(cut(parts, (left, top, wide, high)), expected), (left, top, wide, high)
    assert np.array_equal(parts.whole(), whole)


@needs_decoder
@pytest.mark.parametrize("blocks", [2, 4, 8])
def test_tiles_of_several_blocks_serve_as_well(blocks: int) -> None:
    data = encoded(128, 50, blocks=blocks)
    whole, parts = np.asarray(decode(data)), opened(data)
    assert isinstance(in_parts(data), JpegInTiles)
    for left, top, wide, high in boxes(128, 50, 60):
        assert np.array_equal(cut(parts, (left, top, wide, high)), whole[top : top + high, left : left + wide])


def test_a_part_leaves_the_data_of_other_tiles_out() -> None:
    data = encoded(480, 480)
    jpeg = in_parts(data)
    assert jpeg is not None
    part, box = jpeg.part((100, 200, 60, 50))
    assert box == (96, 192, 80, 64)
    assert len(part) < len(data) * (5 * 5) / (30 * 30) + 1000


@needs_decoder
@pytest.mark.parametrize("subsampling, rows", [("4:2:0", 272), ("4:4:4", 256), ("4:2:2", 256), ("grey", 256)])
def test_no_rows_below_a_part_are_decoded_but_those_of_its_last_blocks(subsampling: str, rows: int) -> None:
    data = encoded(64, 480, subsampling, blocks=0)
    pixels, left, top = opened(data).part((10, 20, 30, 235))
    assert (pixels.shape, left, top) == ((rows, 64, 3), 0, 0)


@needs_decoder
def test_damage_below_a_part_goes_unnoticed_and_damage_in_it_does_not() -> None:
    data = encoded(64, 480, blocks=0)
    start, whole = data.index(b"\xff\xda") + 14, np.asarray(decode(data))
    lower, upper = (start + share * (len(data) - start) // 10 for share in (8, 3))
    for at, is_seen in ((lower, False), (upper, True)):
        ended = data[:at] + b"\xff\xd9" + data[at + 2 :]  # an end before the end
        with pytest.raises(BadImage, match="(?i)premature end"):
            opened(ended).whole()
        if is_seen:
            with pytest.raises(BadImage, match="(?i)premature end"):
                opened(ended).part((0, 100, 64, 140))
        else:
            assert np.array_equal(cut(opened(ended), (0, 100, 64, 140)), whole[100:240])


@needs_decoder
@pytest.mark.parametrize("missing", [1, 2, 3, 50, 2000])
def test_truncated_files_are_bad_whatever_is_asked_of_them(missing: int) -> None:
    data = encoded(64, 480, blocks=0)[:-missing]
    for box in ((0, 0, 64, 480), (0, 0, 64, 1), (30, 100, 5, 140)):
        with pytest.raises(BadImage, match="(?i)premature end"):
            opened(data).part(box)


def with_size(data: bytes, width: int, height: int) -> bytes:
    """Another size in the frame header."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def with_byte(data: bytes, marker: bytes, offset: int, value: int) -> bytes:
    """Another byte in the first segment of a kind."""
    at = data.index(marker) + offset
    return data[:at] + bytes((value,)) + data[at + 1 :]


def with_scans(data: bytes) -> bytes:
    """A scan of the first component alone."""
    at = data.index(b"\xff\xda")
    return data[:at] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + data[at + 14 :]


def test_files_that_do_not_fit_exactly_have_no_parts() -> None:
    data = encoded(64, 64)
    marks = [at for at in range(len(data)) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    scan = data.index(b"\xff\xda")
    odd = {
        "markers that do not divide rows": encoded(64, 64, blocks=3),
        "progressive": encoded(64, 64, progressive=True),
        "wider": with_size(data, 80, 64),
        "lower": with_size(data, 64, 48),
        "of no height": with_size(data, 64, 0),
        "truncated": data[:-40],
        "without its end": data[:-2],
        "with more at its end": data + b"\0",
        "a marker less": data[: marks[3]] + data[marks[3] + 2 :],
        "a marker of another number": data[: marks[3] + 1] + b"\xd0" + data[marks[3] + 2 :],
        "two scans": with_scans(encoded(64, 64, blocks=0)),
        "12 bits": with_byte(data, b"\xff\xc0", 4, 12),
        "four components": with_byte(data, b"\xff\xc0", 9, 4),
        "a component sampled five times": with_byte(data, b"\xff\xc0", 11, 0x51),
        "a scan of another component": with_byte(data, b"\xff\xda", 5, 9),
        "a scan of some coefficients": with_byte(data, b"\xff\xda", 12, 62),
        "a segment that reaches out": with_byte(data, b"\xff\xdb", 2, 255),
        "another marker": data[: marks[3] + 1] + b"\xfe" + data[marks[3] + 2 :],
        "two frames": data[:scan] + data[data.index(b"\xff\xc0") : scan] + data[scan:],
        "headers alone": data[:scan],
        "nothing": b"",
        "no JPEG": b"\x89PNG",
    }
    assert in_parts(data) is not None
    assert [name for name, bad in odd.items() if in_parts(bad) is not None] == []


@needs_decoder
@pytest.mark.parametrize("blocks", [0, 1])
def test_damaged_files_give_pixels_or_a_reason_and_nothing_else(blocks: int) -> None:
    draw, data = random.Random(3), encoded(70, 70, "4:2:2", blocks)
    partial = 0
    for _ in range(400):
        bad = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            bad[draw.randrange(len(bad))] = draw.randrange(256)
        try:
            found = open_picture(bytes(bad))
            if isinstance(found, PartialPicture):
                partial += 1
                box = boxes(*found.size, 1)[-1]
                assert cut(found, box).shape == (box[3], box[2], 3)
        except BadImage:
            pass
    assert partial > 100


@needs_decoder
def test_truncated_files_are_rejected_as_a_whole() -> None:
    with pytest.raises(BadImage):
        open_picture(encoded(64, 64)[:-300])


def test_a_part_outside_of_the_picture_is_refused() -> None:
    for blocks in (0, 1):
        check_refusals(encoded(64, 48, blocks=blocks))


def check_refusals(data: bytes) -> None:
    jpeg = in_parts(data)
    assert jpeg is not None
    for box in ((-1, 0, 5, 5), (0, 44, 5, 5), (60, 0, 5, 5), (0, 0, 0, 5)):
        with pytest.raises(ValueError, match="64x48"):
            jpeg.part(box)


@needs_decoder
@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize("box", [None, (3, 2, 40, 30), (0, 0, 1, 1), (10, 0, 47, 37)])
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_parts_are_resized_to_the_pixels_of_the_whole_picture(
    box: Optional[Tuple[int, int, int, int]], resample: Image.Resampling, blocks: int
) -> None:
    data = encoded(130, 110, blocks=blocks)
    parts = opened(data)
    for size in ((57, 37), (400, 300)):
        expected = Pixels(np.asarray(decode(data))).resize(size, resample, box)
        assert np.array_equal(PartialPixels(parts).resize(size, resample, box).array, expected.array)
