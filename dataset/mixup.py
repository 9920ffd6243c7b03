# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Samples -> batches: stacking, and timm's mixup or cutmix within groups that depend on no worker count."""

from typing import List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from timm.data import Mixup
from torch.utils.data import default_collate
from yacs.config import CfgNode

from common.errors import EXIT_USAGE, Refusal
from dataset.samplers import Layout, mix_seed
from dataset.transforms import seeded

Sample = Tuple[torch.Tensor, int, int, int]  # image, label, epoch, index
MIXUP_STREAM = 1  # keeps mixup's random numbers apart from those of the group's first image


class Groups(NamedTuple):
    """Groups of samples that are mixed with each other.

    Groups lie within `unit` consecutive samples: `order` (unit,) lists their rows group by group, `size` rows each.
    """

    unit: int
    size: int
    order: np.ndarray


def group(layout: Layout) -> Groups:
    """Groups of one micro-batch, or of two where a micro-batch is odd, since mixup pairs the images of a group.

    The two are consecutive micro-batches of one replica, or else those of two neighbouring replicas.

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
        "a process are all odd; make one of them even, or set AUG.MIXUP and AUG.CUTMIX to 0",
        EXIT_USAGE,
    )


def build_mixup(config: CfgNode, classes: int) -> Optional[Mixup]:
    """timm's mixup as configured, with label smoothing in its targets; None if it is off."""
    aug = config.AUG
    if not (aug.MIXUP > 0 or aug.CUTMIX > 0 or aug.CUTMIX_MINMAX is not None):
        return None
    return Mixup(
        mixup_alpha=aug.MIXUP,
        cutmix_alpha=aug.CUTMIX,
        cutmix_minmax=aug.CUTMIX_MINMAX,
        prob=aug.MIXUP_PROB,
        switch_prob=aug.MIXUP_SWITCH_PROB,
        mode=aug.MIXUP_MODE,
        label_smoothing=config.MODEL.LABEL_SMOOTHING,
        num_classes=classes,
    )


def stack(samples: List[Sample]) -> Tuple[torch.Tensor, torch.Tensor]:
    """Samples -> images (N, C, H, W) and class indices (N,) int64."""
    return default_collate([image for image, *_ in samples]), torch.tensor([label for _, label, *_ in samples])


class MixingCollate:
    """Samples -> mixed images (N, C, H, W) and soft targets (N, classes) float32; N is a multiple of the groups' unit.

    The random numbers of a group depend on the seed, the epoch and the group's first sample alone.
    """

    def __init__(self, mixup: Mixup, groups: Groups, seed: int):
        self._mixup = mixup
        self._groups = groups
        self._seed = seed

    def __call__(self, samples: List[Sample]) -> Tuple[torch.Tensor, torch.Tensor]:
        order = self._order(len(samples))
        images, labels = stack([samples[row] for row in order])
        targets = []
        for start in range(0, len(order), self._groups.size):
            rows = slice(start, start + self._groups.size)
            _, _, epoch, index = samples[order[start]]
            part = images[rows]
            with seeded(mix_seed(self._seed, epoch, index, MIXUP_STREAM)):
                mixed, soft = self._mixup(part.float(), labels[rows])  # works in place
            if part.dtype != mixed.dtype:
                part.copy_(mixed if part.is_floating_point() else mixed.round_())
            targets.append(soft)
        return _restore(images, order), _restore(torch.cat(targets), order)

    def _order(self, count: int) -> np.ndarray:
        starts = np.arange(0, count, self._groups.unit)
        return (starts[:, None] + self._groups.order).reshape(-1)


def _restore(rows: torch.Tensor, order: np.ndarray) -> torch.Tensor:
    """Rows in their original order, given rows taken in `order`."""
    if (order[1:] > order[:-1]).all():
        return rows
    return rows[torch.from_numpy(np.argsort(order))]
