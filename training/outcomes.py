# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""A model's predictions for each image of a data set, and their accuracy, confusion matrix and calibration."""

from typing import NamedTuple, Optional, Sequence, Tuple

import numpy as np

from dataset.samples import UNREADABLE

TOP = 5  # classes kept per image
CALIBRATION_BINS = 15  # as Guo et al., "On Calibration of Modern Neural Networks", ICML 2017


class Accuracy(NamedTuple):
    """Exact counts of an evaluation; `classes[label]` is (images of the class, correct ones)."""

    images: int
    top1_correct: int
    top5_correct: int
    classes: Sequence[Tuple[int, int]] = ()

    @property
    def top1(self) -> float:
        """Top-1 accuracy in per cent."""
        return 100.0 * self.top1_correct / self.images

    @property
    def top5(self) -> Optional[float]:
        """Top-5 accuracy in per cent; None for fewer than six classes."""
        return None if 0 < len(self.classes) < 6 else 100.0 * self.top5_correct / self.images

    def __str__(self) -> str:
        top5 = "" if self.top5 is None else f" top-5: {self.top5:.2f} %"
        return f"top-1: {self.top1:.2f} %{top5} images: {self.images}"


class Outcomes(NamedTuple):
    """The top k classes of each image of a data set, in its order; N images, k = min(TOP, num_classes).

    Attributes:
        labels: true classes, (N,) int64; UNREADABLE for images that do not decode: ignore the rest of their rows.
        predicted: the top classes, (N, k) int64, most probable first.
        probabilities: of `predicted`, (N, k) float32.
        num_classes: number of classes of the model.
    """

    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    num_classes: int

    @property
    def is_readable(self) -> np.ndarray:
        """Which images were decoded, (N,) bool."""
        return self.labels != UNREADABLE

    @property
    def hits(self) -> np.ndarray:
        """Which of `predicted` is the true class, (N, k) bool, at most one per row."""
        return self.predicted == self.labels[:, None]

    def accuracy(self) -> Accuracy:
        """The counts over all images; those that do not decode count as incorrect, and in no class."""
        hits, per_class = self.hits, self.class_counts()
        classes = [(images, top1) for images, top1, _ in per_class.tolist()]
        return Accuracy(len(self.labels), int(hits[:, 0].sum()), int(hits.sum()), classes)

    def class_counts(self) -> np.ndarray:
        """Per class the number of readable images, of top-1 and of top-5 correct ones, (num_classes, 3) int64."""
        hits = self.hits
        chosen = (self.labels[self.is_readable], self.labels[hits[:, 0]], self.labels[hits.any(1)])
        return np.stack([np.bincount(labels, minlength=self.num_classes) for labels in chosen], axis=1)

    def confusions(self) -> np.ndarray:
        """The M non-zero cells of the confusion matrix, (M, 3) int64: true class, predicted class, images.

        Sorted by class. The full matrix of ImageNet-22k would have 477 million cells.
        """
        pairs = np.stack([self.labels, self.predicted[:, 0]], axis=1)[self.is_readable]
        cells, images = np.unique(pairs, axis=0, return_counts=True)
        return np.concatenate([cells, images[:, None]], axis=1)

    def calibration_error(self) -> float:
        """The expected calibration error (ECE) of the top-1 predictions of the readable images, 0 to 1.

        Predictions are binned by probability into 15 bins of equal width, (0, 1/15] to (14/15, 1]. The error is the
        distance between accuracy and mean probability of a bin, averaged over all predictions (Guo et al., 2017,
        equation 3). NaN without readable images.
        """
        confidence = self.probabilities[self.is_readable, 0].astype(np.float64)
        right = self.hits[self.is_readable, 0]
        bins = np.searchsorted(np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1], confidence, side="left")
        gaps = np.bincount(bins, weights=right - confidence, minlength=CALIBRATION_BINS)
        return float(np.abs(gaps).sum() / len(confidence)) if len(confidence) else float("nan")
