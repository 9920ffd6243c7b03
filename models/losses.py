# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Configuration -> the loss of a micro-batch: timm's losses, with class weights."""

from typing import Optional

import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from yacs.config import CfgNode


class WeightedCrossEntropy(SoftTargetCrossEntropy):
    """Cross-entropy of probabilities (B, classes) whose terms are multiplied by `weight` (classes,)."""

    weight: Tensor

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The mean over the micro-batch, not divided by the weights."""
        return super().forward(x, target * self.weight)


class ClassificationLoss(nn.Module):
    """The mean loss of float32 logits (B, classes), a scalar: cross-entropy or binary cross-entropy (TRAIN.LOSS).

    Targets are class indices (B,), smoothed here by MODEL.LABEL_SMOOTHING, or probabilities (B, classes), already
    smoothed by mixup. The state dict is empty.
    """

    labels: Tensor  # (classes,)

    def __init__(self, config: CfgNode, num_classes: int):
        super().__init__()
        self._smoothing = config.MODEL.LABEL_SMOOTHING
        is_plain = config.TRAIN.LOSS.NAME == "cross_entropy" and not config.TRAIN.CLASS_WEIGHTS
        self._of_indices: Optional[nn.Module] = None  # None: as for probabilities, after smoothing
        if is_plain:
            smooths = self._smoothing > 0
            self._of_indices = LabelSmoothingCrossEntropy(self._smoothing) if smooths else nn.CrossEntropyLoss()
        else:
            _keep(self, "labels", torch.arange(num_classes))
        self._of_probabilities = SoftTargetCrossEntropy() if is_plain else _of_probabilities(config)
        if config.TRAIN.CLASS_WEIGHTS:
            _keep(self._of_probabilities, "weight", torch.ones(num_classes))

    def weigh(self, weights: Tensor) -> None:
        """Sets the class weights (classes,) of TRAIN.CLASS_WEIGHTS."""
        self._of_probabilities.get_buffer("weight").copy_(weights)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the micro-batch."""
        if targets.is_floating_point():
            return self._of_probabilities(logits, targets.float())
        if self._of_indices is not None:
            return self._of_indices(logits, targets)
        hard = (targets.unsqueeze(1) == self.labels).float()  # one_hot reads values on the host
        return self._of_probabilities(logits, hard * (1 - self._smoothing) + self._smoothing / len(self.labels))


def _of_probabilities(config: CfgNode) -> nn.Module:
    loss = config.TRAIN.LOSS
    if loss.NAME == "cross_entropy":
        return WeightedCrossEntropy()
    binary = BinaryCrossEntropy(0.0, loss.TARGET_THRESHOLD, sum_classes=loss.SUM_CLASSES)
    if loss.POSITIVE_WEIGHT is not None:
        _keep(binary, "pos_weight", torch.tensor(loss.POSITIVE_WEIGHT))
    return binary


def _keep(module: nn.Module, name: str, values: Tensor) -> None:
    """Registers constants that move with the module and are not saved in checkpoints."""
    module.register_buffer(name, values, persistent=False)
