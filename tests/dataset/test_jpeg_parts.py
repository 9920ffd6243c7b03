# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Parts of JPEGs, with and without restart markers, beside the whole pictures that libjpeg-turbo decodes."""

import io
import random
import struct
from typing import Any, List, Optional, Tuple

import numpy as np
import pytest
from PIL import Image

from dataset import native
from dataset.decode import BadImage, PartialPicture, decode, fast_jpeg, open_picture
from dataset.jpeg_parts import decode_part, read_header
from dataset.pixels import PartialPixels, Pixels

pytestmark = pytest.mark.skipif(native.library() is None, reason="pixels.c is not compiled")
needs_decoder = pytest.mark.skipif(fast_jpeg() is None, reason="simplejpeg is not installed")
SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def picture(width: int, height: int) -> Image.Image:
    """Noise with edges: each pixel and each colour differs from its neighbours."""
    return Image.fromarray(np.random.RandomState(width * 1000 + height).randint(0, 256, (height, width, 3), np.uint8))


def encoded(width: int, height: int, subsampling: str = "4:2:0", blocks: int = 1, **options: Any) -> bytes:
    """A JPEG with a restart marker after every `blocks` MCUs, or none for 0."""
    image, buffer = picture(width, height), io.BytesIO()
    if subsampling == "grey":
        image = image.convert("L")
    else:
        options["subsampling"] = SUBSAMPLINGS[subsampling]
    image.save(buffer, "JPEG", restart_marker_blocks=blocks, **{"quality": 80, **options})
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
@pytest.mark.parametrize("blocks", [0, 1, 7])
@pytest.mark.parametrize("subsampling", [*SUBSAMPLINGS, "grey"])
@pytest.mark.parametrize("width, height", [(500, 77), (97, 130), (33, 17), (17, 49), (8, 64), (9, 8), (5, 1)])
def test_parts_are_the_pixels_of_the_whole_picture(subsampling: str, width: int, height: int, blocks: int) -> None:
    data = encoded(width, height, subsampling, blocks)
    whole, parts = np.asarray(decode(data)), opened(data)
    for box in boxes(width, height, 60):
        left, top, wide, high = box
        found = decode_part(data, parts.size, box)
        assert found is not None and np.array_equal(found, whole[top : top + high, left : left + wide]), box
    assert np.array_equal(parts.whole(), whole)


def random_jpeg(draw: random.Random) -> Tuple[bytes, Tuple[int, int]]:
    """A JPEG of random size, detail, quality, sampling, Huffman tables and restart markers; and its size."""
    width, height = (draw.randint(1, draw.choice((20, 70, 200))) for _ in range(2))
    image, coarse = picture(width, height), draw.randint(1, 8)
    image = image.resize((-(-width // coarse), -(-height // coarse))).resize((width, height), Image.Resampling.BICUBIC)
    options = {"quality": draw.randint(1, 100), "optimize": draw.random() < 0.5}
    options["restart_marker_blocks"] = draw.choice((0, draw.randint(1, 9)))
    if draw.random() < 0.2:
        image = image.convert("L")
    else:
        options["subsampling"] = draw.randint(0, 2)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue(), image.size


@needs_decoder
def test_random_files_and_parts_have_the_pixels_of_both_other_decoders() -> None:
    draw, decoded = random.Random(0), 0
    for _ in range(400):
        data, size = random_jpeg(draw)
        whole, slow = np.asarray(decode(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(whole, slow)
        for box in ((0, 0, *size), boxes(*size, 1)[-1]):
            left, top, wide, high = box
            found = decode_part(data, size, box)
            decoded += found is not None
            assert found is None or np.array_equal(found, whole[top : top + high, left : left + wide])
    assert decoded > 700


@needs_decoder
def test_damaged_files_have_the_pixels_of_libjpeg_turbo_or_are_left_to_it() -> None:
    draw, decoded = random.Random(1), 0
    for _ in range(60):
        data, size = random_jpeg(draw)
        scan = data.index(b"\xff\xda")
        for _ in range(20):
            bad = bytearray(data)
            for at in (draw.randrange(scan, len(bad)) for _ in range(draw.randint(1, 3))):
                bad[at] = draw.choice((bad[at] ^ 1 << draw.randrange(8), 0, 255))
            found = decode_part(bytes(bad), size, (0, 0, *size))
            decoded += found is not None
            assert found is None or np.array_equal(found, np.asarray(decode(bytes(bad))))
    assert decoded > 150


def test_no_truncated_file_is_decoded() -> None:
    for blocks in (0, 1):
        data = encoded(40, 30, blocks=blocks)
        assert decode_part(data, (40, 30), (0, 0, 1, 1)) is not None
        assert [size for size in range(len(data)) if decode_part(data[:size], (40, 30), (0, 0, 1, 1)) is not None] == []


def test_segments_beside_a_part_are_not_read() -> None:
    data = bytearray(encoded(480, 480))
    marks = [at for at in range(len(data)) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    box, rows, columns = (100, 200, 60, 50), range(12, 16), range(6, 11)
    expected = decode_part(bytes(data), (480, 480), box)
    for tile, (start, end) in enumerate(zip(marks, marks[1:]), 1):
        if tile // 30 not in rows or tile % 30 not in columns:
            data[start + 2 : end] = bytes(end - start - 2)
    found = decode_part(bytes(data), (480, 480), box)
    assert expected is not None and found is not None and np.array_equal(found, expected)
    assert decode_part(bytes(data), (480, 480), (80, 200, 60, 50)) is None


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
@pytest.mark.parametrize("blocks", [0, 1])
def test_truncated_files_are_bad_whatever_is_asked_of_them(missing: int, blocks: int) -> None:
    data = encoded(64, 480, blocks=blocks)[:-missing]
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


def test_files_that_are_not_as_expected_have_no_parts() -> None:
    data = encoded(64, 64)
    marks = [at for at in range(len(data)) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    scan, frame = data.index(b"\xff\xda"), data.index(b"\xff\xc0")
    adobe = b"\xff\xee\x00\x0eAdobe\0\0\0\0\0\0"
    odd = {
        "progressive": encoded(64, 64, progressive=True),
        "red, green and blue": encoded(64, 64, "4:4:4", keep_rgb=True),
        "colours of another kind": data[:2] + adobe + b"\x02" + data[2:],
        "wider": with_size(data, 80, 64),
        "lower": with_size(data, 64, 48),
        "of no height": with_size(data, 64, 0),
        "larger than its data can be": with_size(encoded(64, 64, blocks=0), 60000, 60000),
        "truncated": data[:-40],
        "without its end": data[:-2],
        "a marker less": data[: marks[3]] + data[marks[3] + 2 :],
        "a marker of another number": data[: marks[3] + 1] + b"\xd0" + data[marks[3] + 2 :],
        "two scans": with_scans(encoded(64, 64, blocks=0)),
        "12 bits": with_byte(data, b"\xff\xc0", 4, 12),
        "four components": with_byte(data, b"\xff\xc0", 9, 4),
        "a component sampled four times": with_byte(data, b"\xff\xc0", 11, 0x41),
        "half the height alone": with_byte(data, b"\xff\xc0", 11, 0x12),
        "colours as large as brightness of 2x2": with_byte(data, b"\xff\xc0", 14, 0x22),
        "two samples of colour": encoded(4, 64),
        "a table that is not there": with_byte(data, b"\xff\xc0", 12, 3),
        "a table number too high": with_byte(data, b"\xff\xda", 6, 0x50),
        "a table of 16 bits": with_byte(data, b"\xff\xdb", 4, 0x10),
        "codes of ones alone": with_byte(data, b"\xff\xc4", 5, 2),
        "a scan of another component": with_byte(data, b"\xff\xda", 5, 9),
        "a scan of some coefficients": with_byte(data, b"\xff\xda", 12, 62),
        "a segment that reaches out": with_byte(data, b"\xff\xdb", 2, 255),
        "another marker": data[: marks[3] + 1] + b"\xfe" + data[marks[3] + 2 :],
        "bytes left over": data[: marks[3]] + bytes(2) + data[marks[3] :],
        "two frames": data[:scan] + data[frame:scan] + data[scan:],
        "headers alone": data[:scan],
        "nothing": b"",
        "no JPEG": b"\x89PNG",
    }
    assert decode_part(data, (64, 64), (0, 0, 64, 64)) is not None
    assert decode_part(data[:2] + adobe + b"\x01" + data[2:], (64, 64), (0, 0, 64, 64)) is not None
    assert [name for name, bad in odd.items() if whole_by_parts(bad) is not None] == []


def whole_by_parts(data: bytes) -> Optional[np.ndarray]:
    header = read_header(data)
    return None if header is None else decode_part(data, (header.width, header.height), (0, 0, 64, 48))


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


def test_a_part_outside_of_the_picture_is_refused() -> None:
    for box in ((-1, 0, 5, 5), (0, 44, 5, 5), (60, 0, 5, 5), (0, 0, 0, 5)):
        with pytest.raises(ValueError, match="64x48"):
            opened(encoded(64, 48)).part(box)


def test_a_size_that_is_not_that_of_the_file_decodes_nothing() -> None:
    assert decode_part(encoded(64, 48), (640, 480), (60, 40, 5, 5)) is None


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
