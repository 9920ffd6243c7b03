# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Inspection of a classifier: its pooled features, and the attention of its last blocks."""

from typing import Any, List, Tuple

import torch
from torch import Tensor, nn

from .build import SwinClassifier
from .swin_transformer import ShiftedWindowAttention


class InspectedClassifier(nn.Module):
    """A classifier whose outputs are its logits, its features and an attention map.

    The map is the attention received by each token of the last layer: the mean of the attention weights over the
    layer's blocks, their heads and the queries of the token's window, since the classifier averages all tokens equally.
    It is relative to uniform attention: its mean in each window is 1. It shows where the last blocks take information
    from, not the evidence for a class: tokens have already exchanged information in earlier layers.

    Args:
        model: the classifier, in evaluation mode; V1 or V2.
    """

    def __init__(self, model: SwinClassifier):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Classifies images.

        Args:
            images: as for SwinClassifier.

        Returns:
            Logits (B, num_classes), features before the head (B, num_features), and the map of the last layer's tokens
            (B, H, W), all float32.
        """
        maps: List[Tensor] = []

        def look(attention: Any, inputs: Tuple[Tensor], output: Tensor) -> None:
            maps.append(_received(attention, inputs[0]))

        last = [module for module in self.model.layers[-1].modules() if isinstance(module, ShiftedWindowAttention)]
        hooks = [attention.register_forward_hook(look) for attention in last]
        try:
            with self.model.autocast():
                features = self.model.forward_features(self.model.normalised(images))
                logits = self.model.head(features)
        finally:
            for hook in hooks:
                hook.remove()
        return logits.float(), features.float(), torch.stack(maps).mean(0)


def _received(attention: ShiftedWindowAttention, x: Tensor) -> Tensor:
    """The attention received by each token, relative to uniform attention: (B, H, W, C) -> (B, H, W), float32."""
    batch, height, width, _ = x.shape
    rows, columns = height // attention.window[0], width // attention.window[1]
    weights = attention.weights(x).float()
    received = weights.mean((2, 3)) * weights.shape[-1]
    received = received.reshape(batch, rows, columns, *attention.window).permute(0, 1, 3, 2, 4)
    received = received.reshape(batch, height, width)
    return torch.roll(received, attention.shift, (1, 2)) if any(attention.shift) else received
