# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What the parts of a Swin Transformer cost, worked out from its sizes.

Costs are MACs (multiply-accumulate operations) of the matrix products and the convolution, of one image and its forward
pass. A FLOP counter that counts multiplications and additions gives twice these numbers.
"""
from typing import List, NamedTuple, Sequence

from .geometry import LayerShape, Size, pair


class Unit(NamedTuple):
    """A part of the model that runs on one device as a whole.

    `module` is the name of the module with which it begins: layers.i.blocks.j for the attention half of a block and
    layers.i.blocks.j.norm2 for its MLP half. `normalised` counts elements that pass a layer norm, once each.
    """

    module: str
    macs: int
    normalised: int


def swin_units(layers: Sequence[LayerShape], patch_size: Size, in_chans: int, num_classes: int, mlp_ratio: float,
               patch_norm: bool = True) -> List[Unit]:
    """The parts of a Swin Transformer in the order in which they run.

    Args:
        layers: from `geometry.layer_shapes`.
        num_classes: 0 where the model ends with its features.
    """
    first, last = layers[0], layers[-1]
    patch = pair(patch_size)
    embedded = first.tokens * first.channels
    units = [Unit("patch_embed", embedded * in_chans * patch[0] * patch[1], embedded if patch_norm else 0)]
    for index, layer in enumerate(layers):
        for block in range(layer.depth):
            units += _block_units(f"layers.{index}.blocks.{block}", layer, mlp_ratio)
        if layer is not last:  # four neighbours become one token of twice the width
            elements = layer.tokens * layer.channels
            units.append(Unit(f"layers.{index}.downsample", elements * 2 * layer.channels, elements))
    units.append(Unit("norm", 0, last.tokens * last.channels))
    units.append(Unit("head", last.channels * num_classes, 0))
    return units


def _block_units(name: str, layer: LayerShape, mlp_ratio: float) -> List[Unit]:
    elements = layer.tokens * layer.channels
    projections = 4 * elements * layer.channels  # query, key, value and output
    attention = 2 * elements * layer.window_tokens  # scores, and their products with the values
    mlp = 2 * elements * int(layer.channels * mlp_ratio)
    return [Unit(name, projections + attention, elements), Unit(f"{name}.norm2", mlp, elements)]
