# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Collates batches for the device, with timm's mixup or cutmix in groups independent of the number of workers."""

from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Tuple, Union

import numpy as np
import torch
from timm.data import Mixup
from timm.data.mixup import cutmix_bbox_and_lam
from yacs.config import CfgNode

from common.errors import EXIT_USAGE, Refusal
from dataset.handover import HandedOver
from dataset.pixels import exchange, mix
from dataset.samplers import Layout, mix_seed
from dataset.samples import Batch
from dataset.transforms import generators_kept, seeded

MIXUP_STREAM = 1  # separates mixup's random numbers from those of the group's first image


class Groups(NamedTuple):
    """Groups of samples that are mixed with each other.

    Groups lie within `unit` consecutive samples: `order` (unit,) lists their rows group by group, `size` rows each.
    """

    unit: int
    size: int
    order: np.ndarray

    def places(self, first: int) -> Iterator[Union[slice, List[int]]]:
        """The rows of each group of the unit starting at row `first`, as slices, which are faster, or lists."""
        for start in range(0, self.unit, self.size):
            rows = (first + self.order[start : start + self.size]).tolist()
            yield slice(rows[0], rows[-1] + 1) if rows == list(range(rows[0], rows[-1] + 1)) else rows


def group(layout: Layout) -> Groups:
    """Groups of one micro-batch, or of two if the micro-batch size is odd, since mixup pairs the images of a group.

    The two are consecutive micro-batches of a replica, or else those of two neighbouring replicas.

    Raises:
        Refusal: if there is no second micro-batch to pair with.
    """
    size, replicas = layout.micro_batch, layout.local_replicas
    if size % 2 == 0:
        return Groups(size, size, np.arange(size))
    if layout.accumulation % 2 == 0:
        rows = np.arange(2 * replicas * size).reshape(2, replicas, size)
        return Groups(rows.size, 2 * size, rows.transpose(1, 0, 2).reshape(-1))
    if replicas % 2 == 0:
        return Groups(2 * size, 2 * size, np.arange(2 * size))
    raise Refusal(
        f"mixup pairs images: micro-batch {size}, accumulation {layout.accumulation} and {replicas} replicas "
        "per process are all odd; make one of them even, or set AUG.MIXUP and AUG.CUTMIX to 0",
        EXIT_USAGE,
    )


def build_mixup(config: CfgNode, classes: int) -> Optional[Mixup]:
    """timm's mixup as configured, with label smoothing in its targets; None if it is off."""
    aug = config.AUG
    if not (aug.MIXUP > 0 or aug.CUTMIX > 0 or aug.CUTMIX_MINMAX is not None):
        return None
    return InPlaceMixup(
        mixup_alpha=aug.MIXUP,
        cutmix_alpha=aug.CUTMIX,
        cutmix_minmax=aug.CUTMIX_MINMAX,
        prob=aug.MIXUP_PROB,
        switch_prob=aug.MIXUP_SWITCH_PROB,
        mode=aug.MIXUP_MODE,
        label_smoothing=config.MODEL.LABEL_SMOOTHING,
        num_classes=classes,
    )


def unmixed(batch: Batch) -> Tuple[torch.Tensor, torch.Tensor]:
    """A batch -> images (N, C, H, W) and class indices (N,) int64."""
    return batch.images, batch.labels


class MixingCollate:
    """A batch -> mixed images (N, C, H, W), in place, and soft targets (N, classes) float32.

    N is a multiple of the groups' unit. The random numbers of a group depend only on the seed, the epoch and the first
    sample of the group.
    """

    def __init__(self, mixup: Mixup, groups: Groups, seed: int):
        self._mixup = mixup
        self._groups = groups
        self._seed = seed

    def __call__(self, batch: Batch) -> Tuple[torch.Tensor, torch.Tensor]:
        targets = torch.empty(len(batch.labels), self._mixup.num_classes)
        with generators_kept():
            for first in range(0, len(batch.labels), self._groups.unit):
                for rows in self._groups.places(first):
                    images = Rows(batch.images, rows)
                    epoch, index = batch.positions[images.rows[0]]
                    with seeded(mix_seed(self._seed, epoch, index, MIXUP_STREAM)):
                        _, targets[rows] = self._mixup(images, batch.labels[rows])
        return batch.images, targets


class HandingOver:
    """A collate function whose images stay in their kept memory.

    Args:
        collate: a batch -> its images, unchanged or modified in place, and targets.
    """

    def __init__(self, collate: Callable[[Batch], Tuple[torch.Tensor, torch.Tensor]]):
        self._collate = collate

    def __call__(self, batch: Batch) -> Tuple[Any, torch.Tensor]:
        images, targets = self._collate(batch)
        if batch.memory is None:
            return images, targets
        return HandedOver(batch.memory, tuple(images.shape), images.dtype), targets


class Rows:
    """Some images of a batch, (group, C, H, W), for `InPlaceMixup`."""

    def __init__(self, images: torch.Tensor, rows: Union[slice, List[int]]):
        self.rows = list(range(rows.start, rows.stop)) if isinstance(rows, slice) else rows
        self._images = images
        self.shape = (len(self.rows), *images.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def pairs(self) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of images: first and last, second and second to last, and so on."""
        for one, other in zip(self.rows[: len(self) // 2], reversed(self.rows)):
            yield self._images[one], self._images[other]

    def floats(self) -> torch.Tensor:
        """A copy as float32."""
        return self._images[self.rows].float()

    def put(self, images: torch.Tensor) -> None:
        """Replaces the images; bytes are rounded to nearest."""
        self._images[self.rows] = (images if self._images.is_floating_point() else images.round()).to(
            self._images.dtype
        )


class InPlaceMixup(Mixup):
    """timm's mixup of `Rows` with its random numbers and results, without copies if all pairs have the same share."""

    def _mix_batch(self, x: Rows) -> float:
        share, is_cutmix = self._params_per_batch()
        if share == 1.0:
            return 1.0
        if is_cutmix:
            (top, bottom, left, right), share = cutmix_bbox_and_lam(
                x.shape, share, ratio_minmax=self.cutmix_minmax, correct_lam=self.correct_lam
            )
        for one, other in x.pairs():
            if is_cutmix:
                exchange(one[:, top:bottom, left:right], other[:, top:bottom, left:right])
            else:
                mix(one, other, share)
        return float(share)

    def _mix_pair(self, x: Rows) -> torch.Tensor:
        return self._mix_copy(super()._mix_pair, x)

    def _mix_elem(self, x: Rows) -> torch.Tensor:
        return self._mix_copy(super()._mix_elem, x)

    def _mix_copy(self, function: Callable[[torch.Tensor], torch.Tensor], x: Rows) -> torch.Tensor:
        images = x.floats()
        shares = function(images)
        x.put(images)
        return shares
