# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Constant tables of window attention: relative positions, and the mask of shifted windows."""

from typing import Optional

import torch
from torch import Tensor

from planning.geometry import Pair

# Finite in half precision. With the official -100, attention weights are exp(-100), which is denormal in float32: CPUs
# process them several times slower than the zeros obtained with this value.
MASKED = -1000.0


def relative_position_index(window: Pair) -> Tensor:
    """The row of the bias table for each pair of tokens in a window of N tokens: (N, N), int64.

    A window of h x w tokens has (2 h - 1) (2 w - 1) relative positions, numbered row by row, starting with the query
    at the top left of its key.
    """
    height, width = window
    rows = torch.arange(height).view(-1, 1).expand(height, width).flatten()
    columns = torch.arange(width).repeat(height)
    below = rows.unsqueeze(1) - rows + height - 1
    right = columns.unsqueeze(1) - columns + width - 1
    return below * (2 * width - 1) + right


def relative_coordinates(window: Pair, pretrained_window: Pair) -> Tensor:
    """The coordinates of each row of `relative_position_index`: (positions, 2), rows and columns, about -1 to 1.

    They are log-spaced, so windows larger than in pre-training extrapolate little: with x the distance times 8 over the
    largest distance in a window of pre-training, sign(x) log2(1 + |x|) / log2(8) (V2 paper, section 3.3, and the
    scaling of the official code).
    """
    sides = []
    for side, pretrained in zip(window, pretrained_window):
        distances = torch.arange(-(side - 1), side, dtype=torch.float32) * 8 / max(pretrained - 1, 1)
        sides.append(torch.sign(distances) * torch.log2(1 + distances.abs()) / 3)
    rows, columns = sides
    grid = rows.view(-1, 1, 1).expand(-1, len(columns), 1), columns.view(1, -1, 1).expand(len(rows), -1, 1)
    return torch.cat(grid, dim=2).reshape(-1, 2)


def shift_mask(grid: Pair, window: Pair, shift: Pair) -> Optional[Tensor]:
    """The mask added to the attention scores of shifted windows: (windows, N, N); None without a shift.

    Shifting rolls the feature map, so windows at its end hold tokens from opposite edges, which must not attend to each
    other: the mask is 0 for two tokens of the same region and -1000 otherwise (paper, section 3.2 and figure 4).
    """
    if not any(shift):
        return None
    rows, columns = ((torch.arange(side) >= side - moved).long() for side, moved in zip(grid, shift))
    regions = 2 * rows.unsqueeze(1) + columns  # rolled around or not, vertically and horizontally
    parts = regions.view(grid[0] // window[0], window[0], grid[1] // window[1], window[1]).transpose(1, 2)
    parts = parts.reshape(-1, window[0] * window[1])
    return (parts.unsqueeze(1) != parts.unsqueeze(2)).float() * MASKED
