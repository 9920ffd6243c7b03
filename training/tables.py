# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""CSV files of an evaluation: accuracy per class, confusion matrix, and predictions per image."""

from pathlib import Path
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence

import numpy as np

from common.results import write_table
from dataset.samples import UNREADABLE
from training.outcomes import Outcomes


class Tables(NamedTuple):
    """Where to write the tables of an evaluation; None: nowhere."""

    per_class: Optional[Path] = None
    confusion_matrix: Optional[Path] = None
    predictions: Optional[Path] = None

    def write(self, outcomes: Outcomes, names: Sequence[str], dataset: Any) -> None:
        """Writes the tables that have a path.

        Args:
            names: of the classes; unnamed ones are numbered.
            dataset: from `build_dataset`; has the paths and labels.

        Raises:
            Refusal: if a file exists already or cannot be written.
        """
        every = numbered(names, outcomes.num_classes)
        if self.per_class:
            columns = ("class", "images", "top1", "top5", "predicted", "precision")
            write_table(self.per_class, columns, _classes(outcomes, every))
        if self.confusion_matrix:
            cells = outcomes.confusions().tolist()
            rows = ((every[label], every[predicted], images) for label, predicted, images in cells)
            write_table(self.confusion_matrix, ("class", "predicted", "images"), rows)
        if self.predictions:
            header = ("path", "class", "correct", *prediction_header(outcomes.predicted.shape[1]))
            write_table(self.predictions, header, _images(outcomes, every, dataset))


def numbered(names: Sequence[str], classes: int) -> List[str]:
    """The names of all classes; unnamed ones get their number."""
    return [*names, *(str(label) for label in range(len(names), classes))]


def prediction_header(top: int) -> List[str]:
    """The columns of the `top` predicted classes."""
    return [f"{column}_{rank}" for rank in range(1, top + 1) for column in ("predicted", "probability")]


def _classes(outcomes: Outcomes, names: Sequence[str]) -> Iterator[List[Any]]:
    """Per class: images, top-1 (recall) and top-5 accuracy in per cent, number of predictions, precision."""
    predicted = np.bincount(outcomes.predicted[outcomes.is_readable, 0], minlength=len(names)).tolist()
    for name, (images, top1, top5), told in zip(names, outcomes.class_counts().tolist(), predicted):
        yield [name, images, _percent(top1, images), _percent(top5, images), told, _percent(top1, told)]


def _images(outcomes: Outcomes, names: Sequence[str], dataset: Any) -> Iterator[List[Any]]:
    rows = zip(outcomes.labels.tolist(), outcomes.predicted.tolist(), outcomes.probabilities.tolist())
    for index, (label, predicted, probabilities) in enumerate(rows):
        if label == UNREADABLE:  # counts as incorrect
            yield [dataset.path(index), names[dataset.label(index)], 0, *[""] * (2 * len(predicted))]
            continue
        told = [cell for guess, share in zip(predicted, probabilities) for cell in (names[guess], f"{share:.6g}")]
        yield [dataset.path(index), names[label], int(label == predicted[0]), *told]


def _percent(part: int, whole: int) -> str:
    """A percentage; empty if `whole` is zero."""
    return f"{100 * part / whole:.4f}" if whole else ""
