# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Balances classes with different numbers of images: class weights of the loss, and balanced sampling."""

from typing import Any, Sequence, Union

import numpy as np
import torch

from common.errors import EXIT_DATA, Refusal


def class_weights(setting: Union[str, Sequence[float]], dataset: Any, classes: int) -> torch.Tensor:
    """The weights of TRAIN.CLASS_WEIGHTS as float32 (classes,).

    Balanced weights are inversely proportional to the number of images of a class, with a mean of 1 over the images, as
    in scikit-learn; a class without images has weight 0.

    Args:
        setting: "balanced", or one number per class.
        dataset: from `build_dataset`.
        classes: number of outputs of the model.

    Raises:
        Refusal: if the number of weights is not that of the classes.
    """
    if setting == "balanced":
        counts = class_counts(dataset, classes)
        present = counts > 0
        weights = np.divide(counts.sum(), present.sum() * counts, out=np.zeros(classes), where=present)
        return torch.from_numpy(weights).float()
    if len(setting) != classes:
        raise Refusal(f"TRAIN.CLASS_WEIGHTS has {len(setting)} numbers: the model has {classes} classes", EXIT_DATA)
    return torch.tensor(setting, dtype=torch.float32)


def class_counts(dataset: Any, classes: int) -> np.ndarray:
    """Images per class (classes,) int64; 1 for generated images, whose labels are random."""
    labels = getattr(dataset, "labels", None)
    return np.ones(classes, dtype=np.int64) if labels is None else np.bincount(np.asarray(labels), minlength=classes)


def balanced_order(labels: np.ndarray, generator: np.random.RandomState) -> np.ndarray:
    """Indices of as many samples as there are labels, shuffled (int64), with classes drawn equally often, up to one.

    Within a class, samples are drawn equally often, up to one: those of a large class once or not at all.
    """
    present, counts = np.unique(labels, return_counts=True)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    share, more = divmod(len(labels), len(present))
    drawn = []
    for samples, is_favoured in zip(members, generator.permutation(len(present)) < more):
        wanted = share + int(is_favoured)
        rounds = [generator.permutation(samples) for _ in range(-(-wanted // len(samples)))]
        drawn.append(np.concatenate([*rounds, samples[:0]])[:wanted])
    return generator.permutation(np.concatenate(drawn))
