# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Results of a validation for the page: confusions, classes, and mistakes with their pictures."""

import base64
import io
from typing import Any, List, NamedTuple, Optional, Sequence

import numpy as np
from PIL import Image

MATRIX_CLASSES = 30  # with more classes, the worst confusions are listed instead of a matrix
WORST_CONFUSIONS = 40
SHOWN_CLASSES = 1000  # with more classes, those with the lowest accuracy are shown
PICTURE_SIDE = 160  # pixels
SHARP_SIDE = 64  # pictures up to this size are stored losslessly


class Cell(NamedTuple):
    """A cell of the confusion matrix; `share` of the images of the true class."""

    true: str
    predicted: str
    images: int
    share: float


class ClassRow(NamedTuple):
    """The accuracy of a class, in per cent; `top5` is None for models with fewer than six classes."""

    name: str
    images: int
    top1: float
    top5: Optional[float]


class Mistake(NamedTuple):
    """An image that was classified wrongly."""

    picture: str  # data URI; empty if the file cannot be decoded
    file: str
    true: str
    predicted: str
    probability: float


class Results(NamedTuple):
    """The results of a validation. `matrix` is empty with more than MATRIX_CLASSES classes."""

    epoch: int  # from 1
    names: List[str]
    matrix: List[List[Cell]]
    confusions: List[Cell]
    classes: List[ClassRow]
    left_out: int  # classes not in `classes`
    mistakes: List[Mistake]


def build_results(
    epoch: int, names: Sequence[str], confusions: np.ndarray, counts: np.ndarray, mistakes: Sequence[Mistake]
) -> Results:
    """The results of a validation.

    Args:
        epoch: from 1.
        names: of the classes; a model may have more classes than names.
        confusions: (M, 3): true class, predicted class, images; cells without images are omitted.
        counts: (classes, 3): images of each class, and those with top-1 and top-5 correct.
        mistakes: the most confident mistakes, most confident first.
    """
    known = [*names, *(str(label) for label in range(len(names), len(counts)))]
    wrong = confusions[confusions[:, 0] != confusions[:, 1]]
    worst = wrong[np.argsort(-wrong[:, 2], kind="stable")][:WORST_CONFUSIONS]
    classes = [
        ClassRow(known[label], images, 100 * top1 / images, 100 * top5 / images if len(counts) > 5 else None)
        for label, (images, top1, top5) in enumerate(counts.tolist())
        if images
    ]
    shown = classes if len(classes) <= SHOWN_CLASSES else sorted(classes, key=lambda row: row.top1)[:SHOWN_CLASSES]
    return Results(
        epoch,
        known,
        _matrix(known, confusions, counts) if len(known) <= MATRIX_CLASSES else [],
        [_cell(known, row, counts) for row in worst.tolist()],
        shown,
        len(classes) - len(shown),
        list(mistakes),
    )


def _cell(names: Sequence[str], row: Sequence[int], counts: np.ndarray) -> Cell:
    true, predicted, images = row
    return Cell(names[true], names[predicted], images, images / max(int(counts[true, 0]), 1))


def _matrix(names: Sequence[str], confusions: np.ndarray, counts: np.ndarray) -> List[List[Cell]]:
    images = {(true, predicted): count for true, predicted, count in confusions.tolist()}
    labels = range(len(names))
    return [[_cell(names, (true, guess, images.get((true, guess), 0)), counts) for guess in labels] for true in labels]


def data_uri(picture: Any) -> str:
    """A data URI with a small copy of a picture (a Pillow image, or uint8 (H, W, 3))."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    kind = "PNG" if max(image.size) <= SHARP_SIDE else "JPEG"
    image = image.convert("RGB")
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 80} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
