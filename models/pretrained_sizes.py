# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Image and window sizes that weights were trained with; position tables have only rows, without height and width."""

import math
import re
from typing import Any, Mapping, NamedTuple, Optional

from torch import Tensor
from yacs.config import CfgNode

from common.errors import Refusal
from common.pickles import Inert
from config import get_config
from planning.geometry import Pair, Size, architecture, fit_window, pair

LARGEST = 1 << 14  # side of an image or window


class Sizes(NamedTuple):
    """Size of the images in pixels and of the windows in tokens; None: unknown."""

    image: Optional[Size] = None
    window: Optional[Size] = None

    def __bool__(self) -> bool:
        return self != Sizes()

    @classmethod
    def asked(cls, config: CfgNode) -> "Sizes":
        """The sizes configured for the pretrained weights."""
        return cls(config.MODEL.PRETRAINED_IMG_SIZE or None, config.MODEL.PRETRAINED_WINDOW_SIZE or None)


def sizes_in(contents: Any) -> Sizes:
    """The sizes in the configuration saved beside the weights, as our text or the official program's tree."""
    saved = contents.get("config") if isinstance(contents, Mapping) else None
    if isinstance(saved, str):
        try:
            config = get_config(saved=saved)
        except Refusal:  # saved by another version, with other keys
            return Sizes()
        return Sizes(config.DATA.IMG_SIZE, architecture(config).WINDOW_SIZE)
    return Sizes(_size(_inside(saved, "DATA", "IMG_SIZE")), _size(_inside(saved, "MODEL", "SWIN", "WINDOW_SIZE")))


def table_grid(name: str, rows: int, sizes: Sizes, patch: Pair, index: Optional[Tensor]) -> Optional[Pair]:
    """Height and width of a table of positions, or None if they are unknown.

    Args:
        name: of an absolute position embedding, or of the bias table of a block.
        rows: of the table.
        sizes: that the weights were trained with.
        patch: size of a patch in pixels.
        index: the block's index into the table, if the file has it.
    """
    image = None if sizes.image is None else pair(sizes.image)
    grid = None if image is None else (image[0] // patch[0], image[1] // patch[1])
    if name == "absolute_pos_embed":
        return grid if grid is not None and grid[0] * grid[1] == rows else None
    window = window_of(index) if index is not None else _window(name, grid, sizes.window)
    if window is not None:
        height, width = 2 * window[0] - 1, 2 * window[1] - 1
        return (height, width) if height * width == rows else None
    side = math.isqrt(rows)  # published windows are square; other row counts are not
    return (side, side) if side * side == rows and side else None


def window_of(index: Tensor) -> Optional[Pair]:
    """The window of a relative position index (T, T), or None if it is not such an index.

    To the left of a token the numbers decrease by one, until the next row of the window.
    """
    if index.ndim != 2 or index.is_floating_point() or len(index) != index.shape[1] or not len(index):
        return None
    first = index[0].tolist()
    width = next((place for place, number in enumerate(first) if number != first[0] - place), len(first))
    height = len(first) // width
    return (height, width) if height * width == len(first) else None


def _window(name: str, grid: Optional[Pair], window: Optional[Size]) -> Optional[Pair]:
    """The window of a block, limited to its layer's feature map if the image size is known."""
    if window is None or grid is None:
        return None if window is None else pair(window)
    layer = re.match(r"layers\.(\d{1,3})\.", name)
    halvings = int(layer.group(1)) if layer else 0
    fitted, _ = fit_window((max(grid[0] >> halvings, 1), max(grid[1] >> halvings, 1)), window)
    return fitted


def _inside(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.items if isinstance(tree, Inert) else tree
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _size(value: Any) -> Optional[Size]:
    """A size stated by a foreign file, if it is valid."""
    sides = value if isinstance(value, (list, tuple)) else [value, value]
    if len(sides) != 2 or any(type(side) is not int or not 0 < side <= LARGEST for side in sides):
        return None
    return value if isinstance(value, int) else pair(value)
