# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Tables of window attention that depend on sizes alone: relative positions, and which tokens see each other."""

from typing import Optional

import torch
from torch import Tensor

from planning.geometry import Pair

# Finite, and within half precision. The official -100 leaves attention weights of exp(-100), which are denormal numbers
# in float32: CPUs work on them several times slower than on the zeros that this value gives.
MASKED = -1000.0


def relative_position_index(window: Pair) -> Tensor:
    """The row of the bias table for each pair of tokens in a window of N tokens: (N, N), int64.

    A window of h x w tokens has (2 h - 1) (2 w - 1) relative positions; they are numbered row by row, from the query
    that is furthest above and left of its key.
    """
    height, width = window
    rows = torch.arange(height).view(-1, 1).expand(height, width).flatten()
    columns = torch.arange(width).repeat(height)
    below = rows.unsqueeze(1) - rows + height - 1
    right = columns.unsqueeze(1) - columns + width - 1
    return below * (2 * width - 1) + right


def shift_mask(grid: Pair, window: Pair, shift: Pair) -> Optional[Tensor]:
    """What is added to attention scores where windows are shifted: (windows, N, N); None where nothing is shifted.

    Shifting rolls the map, so that windows at its end hold tokens from opposite edges. Those must not see each other:
    the mask is 0 for two tokens of one region and -1000 otherwise (paper, section 3.2 and figure 4).
    """
    if not any(shift):
        return None
    rows, columns = ((torch.arange(side) >= side - moved).long() for side, moved in zip(grid, shift))
    regions = 2 * rows.unsqueeze(1) + columns  # of windows at the end: what stayed, and what was rolled around
    parts = regions.view(grid[0] // window[0], window[0], grid[1] // window[1], window[1]).transpose(1, 2)
    parts = parts.reshape(-1, window[0] * window[1])
    return (parts.unsqueeze(1) != parts.unsqueeze(2)).float() * MASKED
