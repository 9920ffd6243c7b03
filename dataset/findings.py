# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Findings about the files of a data set, and how training handles them."""

import dataclasses
import enum
import hashlib
import importlib
import io
import os
import warnings
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from common.errors import Refusal
from dataset.decode import DECODER_ERRORS, EXTENSIONS, FORMATS, BadImage, decode
from dataset.inventory import Place

ENDINGS = {  # those of EXTENSIONS that imply a format
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
}
ORIENTATION = 0x0112  # the EXIF tag; 1: upright
HASH_BITS = 64
NEAR = 4  # maximum bits in which perceptual hashes of near duplicates differ
CUT_OFF = ("truncated", "premature end", "broken data stream")  # in messages of decoders
CELLS = 1 << 22  # pairs of hashes compared at once


class Severity(enum.IntEnum):
    """The severity of a finding."""

    NOTE = 0
    WARNING = 1


class Kind(NamedTuple):
    """A kind of finding, and how training handles such files."""

    name: str
    severity: Severity
    effect: str


UNREADABLE = Kind(
    "unreadable", Severity.WARNING, "training uses its neighbour instead; in validation it is misclassified"
)
TRUNCATED = Kind("truncated", Severity.WARNING, UNREADABLE.effect)
WRONG_ENDING = Kind("wrong ending", Severity.NOTE, "read by its contents, whatever its name")
LEFT_OUT = Kind("other file", Severity.NOTE, "not read")
IMAGE_LEFT_OUT = Kind("image with another ending", Severity.WARNING, f"not read: rename it ({', '.join(EXTENSIONS)})")
NO_CLASS = Kind("outside of the classes", Severity.WARNING, "not read: move it into the folder of its class")
TURNED = Kind("orientation tag", Severity.NOTE, "the tag is ignored: the picture is read as it is stored")
ACROSS_SPLITS = Kind("duplicate across splits", Severity.WARNING, "trained on and validated: the accuracy is too high")
ACROSS_CLASSES = Kind("duplicate in another class", Severity.WARNING, "read with both labels, one of which is wrong")
TWICE = Kind("duplicate", Severity.NOTE, "read as often as it is there: it counts more than others")
NEAR_SPLITS = Kind("near duplicate across splits", Severity.WARNING, ACROSS_SPLITS.effect)
NEAR_CLASSES = Kind("near duplicate in another class", Severity.WARNING, "read with both labels")
NEAR_TWICE = Kind("near duplicate", Severity.NOTE, TWICE.effect)
DUPLICATES = (ACROSS_SPLITS, ACROSS_CLASSES, TWICE)
NEAR_DUPLICATES = (NEAR_SPLITS, NEAR_CLASSES, NEAR_TWICE)


class Finding(NamedTuple):
    """A finding about a file."""

    kind: Kind
    detail: str  # may be empty


@dataclasses.dataclass
class Facts:
    """Facts found by reading a file."""

    size: int = 0  # bytes
    format: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""  # Pillow's
    digest: str = ""  # SHA-256 of the contents, in hexadecimal
    perceptual: Optional[int] = None  # perceptual hash of 64 bits
    is_readable: bool = False
    findings: List[Finding] = dataclasses.field(default_factory=list)


def inspect(place: Place, read: Callable[[], bytes], perceptual: bool) -> Facts:
    """Reads and decodes a file as training does.

    Args:
        read: returns its bytes; raises BadImage.
    """
    facts = Facts()
    ending = os.path.splitext(place.path)[1].lower()
    is_listed = place.is_listed or place.path.lower().endswith(EXTENSIONS)
    try:
        data = read()
        facts.size, facts.digest = len(data), hashlib.sha256(data).hexdigest()
        _read_header(data, facts)
        picture = decode(data)
        facts.is_readable = True
    except BadImage as error:
        if is_listed:
            cut = any(words in str(error).lower() for words in CUT_OFF)
            facts.findings.append(Finding(TRUNCATED if cut else UNREADABLE, str(error)))
    if not is_listed:
        facts.findings.append(Finding(IMAGE_LEFT_OUT if facts.is_readable else LEFT_OUT, facts.format))
        facts.is_readable = False
    elif place.label is None:
        facts.findings.append(Finding(NO_CLASS, ""))
        facts.is_readable = False
    if not facts.is_readable:
        return facts
    if ending not in ENDINGS.get(facts.format, (ending,)):
        facts.findings.append(Finding(WRONG_ENDING, f"is {facts.format}"))
    if perceptual:
        facts.perceptual = _perceptual_hash(picture)
    return facts


def _read_header(data: bytes, facts: Facts) -> None:
    """Fills in format, size and mode as far as the header has them; decoding finds what is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, about damaged metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                facts.format, facts.mode = image.format or "", image.mode
                facts.width, facts.height = image.size
                orientation = image.getexif().get(ORIENTATION, 1)
    except DECODER_ERRORS:
        return
    if orientation not in (0, 1):
        facts.findings.append(Finding(TURNED, f"orientation {orientation}"))


def image_hashes() -> ModuleType:
    """The package imagehash; raises `Refusal` if it is not installed."""
    try:
        return importlib.import_module("imagehash")
    except ModuleNotFoundError as error:
        raise Refusal(f"--near-duplicates needs the package {error.name}: pip install imagehash") from error


def _perceptual_hash(picture: Any) -> int:
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    return int(str(image_hashes().phash(image)), 16)


def note_duplicates(places: Sequence[Place], facts: Sequence[Facts]) -> None:
    """Adds findings to images with equal contents."""
    groups: Dict[str, List[int]] = {}
    for index, fact in enumerate(facts):
        if fact.is_readable:
            groups.setdefault(fact.digest, []).append(index)
    for members in groups.values():
        for index in members if len(members) > 1 else ():
            ranked = [(_relation(places[index], places[other]), other) for other in members if other != index]
            relation, other = min(ranked)
            facts[index].findings.append(Finding(DUPLICATES[relation], f"equals {places[other].path}"))


def note_near_duplicates(places: Sequence[Place], facts: Sequence[Facts]) -> None:
    """Adds findings to images with different contents whose perceptual hashes differ in at most NEAR bits."""
    indices = [index for index, fact in enumerate(facts) if fact.perceptual is not None and _has_structure(fact)]
    hashes = np.array([facts[index].perceptual for index in indices], dtype=np.uint64)
    nearest: Dict[int, Tuple[int, int]] = {}  # closest relation of each image, and the other image
    for left, right in near_pairs(hashes):
        one, other = indices[left], indices[right]
        if facts[one].digest == facts[other].digest:
            continue
        relation = _relation(places[one], places[other])
        for index, partner in ((one, other), (other, one)):
            nearest[index] = min(nearest.get(index, (relation, partner)), (relation, partner))
    for index, (relation, other) in sorted(nearest.items()):
        facts[index].findings.append(Finding(NEAR_DUPLICATES[relation], f"looks like {places[other].path}"))


def near_pairs(hashes: np.ndarray) -> Iterator[Tuple[int, int]]:
    """The pairs (i, j), i < j, of 64-bit hashes (N,) that differ in at most NEAR bits; pairs may be repeated.

    Such hashes are equal in at least one of NEAR + 1 bands of bits, so only hashes with an equal band are compared.
    """
    edges = np.linspace(0, HASH_BITS, NEAR + 2).astype(int)
    for low, high in zip(edges, edges[1:]):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.diff(band[order])) + 1
        for members in np.split(order, starts):
            step = max(CELLS // max(len(members), 1), 1)
            for first in range(0, len(members) if len(members) > 1 else 0, step):
                rows = members[first : first + step]
                apart = _bits(hashes[rows, None] ^ hashes[None, members])
                for row, column in np.argwhere(apart <= NEAR):
                    if rows[row] < members[column]:
                        yield int(rows[row]), int(members[column])


def _bits(values: np.ndarray) -> np.ndarray:
    """The number of set bits in each uint64 of (M, N)."""
    ones = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
    return ones[np.ascontiguousarray(values).view(np.uint8)].reshape(*values.shape, 8).sum(-1)


def _has_structure(facts: Facts) -> bool:
    """Whether a hash is distinctive: pictures of a single colour all have the same one."""
    return bin(facts.perceptual or 0).count("1") > 1


def _relation(one: Place, other: Place) -> int:
    """0: of different splits; 1: of different classes of one split; 2: of one class."""
    if one.split != other.split:
        return 0
    return 1 if one.label != other.label else 2
