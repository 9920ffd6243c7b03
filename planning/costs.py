# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Costs of the parts of a Swin Transformer, computed from its sizes.

All numbers are for one image. MACs are multiply-accumulate operations of the matrix products and the convolution in
the forward pass: a FLOP counter that counts multiplications and additions gives twice as many. `kept` counts the
activations that the backward pass reads; autograd also saves the statistics of norms, about 1 % more.
"""

from typing import List, NamedTuple, Sequence, Tuple

from yacs.config import CfgNode

from .geometry import LayerShape, Size, configured_classes, configured_layers, pair


class Unit(NamedTuple):
    """A part of the model that is never split between devices.

    `module` is the name of its first module: layers.i.blocks.j for the attention half of a block and
    layers.i.blocks.j.norm2 for its MLP half. The other fields count: MACs, elements that pass a layer norm (once each),
    parameters, elements kept for the backward pass, elements of the largest value inside, and of the output.
    """

    module: str
    macs: int
    normalised: int
    parameters: int
    kept: int
    widest: int
    output: int

    @property
    def begins_block(self) -> bool:
        """Whether this is the attention half of a block."""
        return ".blocks." in self.module and not self.ends_block

    @property
    def ends_block(self) -> bool:
        """Whether this is the MLP half of a block."""
        return self.module.endswith(".norm2")


def swin_units(
    layers: Sequence[LayerShape],
    patch_size: Size,
    in_chans: int,
    num_classes: int,
    mlp_ratio: float,
    patch_norm: bool = True,
    qkv_bias: bool = True,
    ape: bool = False,
) -> List[Unit]:
    """The units of a Swin Transformer, in the order of execution.

    Args:
        layers: from `geometry.layer_shapes`.
        num_classes: 0 for a model without a head.
    """
    units = [_embedding_unit(layers[0], patch_size, in_chans, patch_norm, ape)]
    for index, layer in enumerate(layers):
        for block in range(layer.depth):
            units += _block_units(f"layers.{index}.blocks.{block}", layer, mlp_ratio, qkv_bias)
        if index + 1 < len(layers):
            units.append(_merging_unit(f"layers.{index}.downsample", layer))
    channels, elements = layers[-1].channels, layers[-1].tokens * layers[-1].channels
    units.append(Unit("norm", 0, elements, 2 * channels, elements, elements, channels))
    # the loss reads the logarithms of the probabilities, and the targets
    units.append(
        Unit(
            "head",
            channels * num_classes,
            0,
            (channels + 1) * num_classes,
            channels + 2 * num_classes,
            num_classes,
            num_classes or channels,
        )
    )
    return units


def configured_units(config: CfgNode) -> Tuple[Unit, ...]:
    """The units of the configured model."""
    swin = config.MODEL.SWIN
    return tuple(
        swin_units(
            configured_layers(config),
            swin.PATCH_SIZE,
            swin.IN_CHANS,
            configured_classes(config),
            swin.MLP_RATIO,
            swin.PATCH_NORM,
            swin.QKV_BIAS,
            swin.APE,
        )
    )


def _embedding_unit(layer: LayerShape, patch_size: Size, in_chans: int, patch_norm: bool, ape: bool) -> Unit:
    """A convolution without overlap: one product per patch and output channel."""
    patch = pair(patch_size)
    pixels = in_chans * patch[0] * patch[1]  # numbers in a patch
    elements = layer.tokens * layer.channels
    parameters = (pixels + 1) * layer.channels + 2 * layer.channels * patch_norm + elements * ape
    return Unit(
        "patch_embed",
        elements * pixels,
        elements * patch_norm,
        parameters,
        layer.tokens * pixels + elements * patch_norm,
        elements,
        elements,
    )


def _block_units(name: str, layer: LayerShape, mlp_ratio: float, qkv_bias: bool) -> List[Unit]:
    channels, hidden = layer.channels, int(layer.channels * mlp_ratio)
    elements, scores = layer.tokens * channels, layer.heads * layer.tokens * layer.window_tokens
    positions = (2 * layer.window[0] - 1) * (2 * layer.window[1] - 1)
    attention = Unit(
        name,
        macs=4 * elements * channels  # query, key, value and output
        + 2 * elements * layer.window_tokens,  # scores, and their products with the values
        normalised=elements,
        parameters=2 * channels
        + 4 * channels * channels
        + channels
        + 3 * channels * qkv_bias
        + positions * layer.heads,
        # what enters the norm, the first product and the last one; queries, keys, values; probabilities
        kept=6 * elements + scores,
        widest=max(3 * elements, scores),
        output=elements,
    )
    mlp = Unit(
        f"{name}.norm2",
        macs=2 * layer.tokens * channels * hidden,
        normalised=elements,
        parameters=2 * channels + 2 * channels * hidden + hidden + channels,
        kept=2 * elements + 2 * layer.tokens * hidden,  # what enters the norm, the first product, the GELU, the last
        widest=layer.tokens * hidden,
        output=elements,
    )
    return [attention, mlp]


def _merging_unit(name: str, layer: LayerShape) -> Unit:
    """Four neighbouring tokens become one of twice the width."""
    elements = layer.tokens * layer.channels
    return Unit(
        name,
        macs=elements * 2 * layer.channels,
        normalised=elements,
        parameters=8 * layer.channels + 8 * layer.channels**2,
        kept=2 * elements,  # what enters the norm and the product
        widest=elements,
        output=elements // 2,
    )
