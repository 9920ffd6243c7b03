# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Costs of the parts of a Swin Transformer, computed from its sizes.

All numbers are for one image. MACs are multiply-accumulate operations of the matrix products and the convolution in
the forward pass: a FLOP counter that counts multiplications and additions gives twice as many. `kept` counts the
activations that the backward pass reads; autograd also saves the statistics of norms, about 1 % more.
"""

from typing import List, NamedTuple, Sequence, Tuple

from yacs.config import CfgNode

from .geometry import CPB_HIDDEN, LayerShape, Size, architecture, configured_classes, configured_layers, pair

MLP_HALVES = (".norm2", ".mlp")  # where the MLP half of a block begins: in Swin V1, and in Swin V2


class Unit(NamedTuple):
    """A part of the model that is never split between devices.

    `module` is the name of its first module: layers.i.blocks.j for the attention half of a block and
    layers.i.blocks.j.norm2 for its MLP half, in Swin V2 layers.i.blocks.j.mlp. The other fields count: MACs, elements
    that pass a layer norm (once each), parameters, elements kept for the backward pass, elements of the largest value
    inside, and of the output.
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
        return is_mlp_half(self.module)


def is_mlp_half(module: str) -> bool:
    """Whether a unit that begins at the module of this name is the MLP half of a block."""
    return module.endswith(MLP_HALVES)


def swin_units(
    layers: Sequence[LayerShape],
    patch_size: Size,
    in_chans: int,
    num_classes: int,
    mlp_ratio: float,
    patch_norm: bool = True,
    qkv_bias: bool = True,
    ape: bool = False,
    second_generation: bool = False,
) -> List[Unit]:
    """The units of a Swin Transformer, in the order of execution.

    Args:
        layers: from `geometry.layer_shapes`.
        num_classes: 0 for a model without a head.
        second_generation: whether the model is a Swin V2.
    """
    units = [_embedding_unit(layers[0], patch_size, in_chans, patch_norm, ape)]
    for index, layer in enumerate(layers):
        for block in range(layer.depth):
            name = f"layers.{index}.blocks.{block}"
            attention = _cosine_attention_unit if second_generation else _attention_unit
            units += [attention(name, layer, qkv_bias), _mlp_unit(name, layer, mlp_ratio, second_generation)]
        if index + 1 < len(layers):
            units.append(_merging_unit(f"layers.{index}.downsample", layer, second_generation))
    channels, elements = layers[-1].channels, layers[-1].tokens * layers[-1].channels
    units.append(Unit("norm", 0, elements, 2 * channels, elements, elements, channels))
    # the loss reads the log-probabilities and the targets
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
    swin = architecture(config)
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
            config.MODEL.TYPE == "swinv2",
        )
    )


def _embedding_unit(layer: LayerShape, patch_size: Size, in_chans: int, patch_norm: bool, ape: bool) -> Unit:
    """A convolution without overlap: one product per patch and output channel."""
    patch = pair(patch_size)
    pixels = in_chans * patch[0] * patch[1]  # values per patch
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


def _attention_unit(name: str, layer: LayerShape, qkv_bias: bool) -> Unit:
    channels, elements, scores = layer.channels, layer.tokens * layer.channels, _scores(layer)
    return Unit(
        name,
        macs=_attention_macs(layer),
        normalised=elements,
        parameters=_attention_parameters(layer) + 3 * channels * qkv_bias + _positions(layer) * layer.heads,
        # inputs of the norm, of the first product and of the last one; queries, keys, values; probabilities
        kept=6 * elements + scores,
        widest=max(3 * elements, scores),
        output=elements,
    )


def _cosine_attention_unit(name: str, layer: LayerShape, qkv_bias: bool) -> Unit:
    """The MLP of the position bias runs once for a whole micro-batch; it counts as if it ran for each image."""
    elements, scores, positions = layer.tokens * layer.channels, _scores(layer), _positions(layer)
    return Unit(
        name,
        macs=_attention_macs(layer) + positions * CPB_HIDDEN * (2 + layer.heads),
        normalised=elements,
        parameters=_attention_parameters(layer)
        + 2 * layer.channels * qkv_bias
        + layer.heads
        + CPB_HIDDEN * (2 + 1 + layer.heads),
        # inputs of the first product, of the last one and of the norm; queries and keys before and after they are
        # normalised, with one element per token and head for their lengths; values; probabilities; inside the MLP
        kept=8 * elements + 6 * layer.tokens * layer.heads + scores + positions * (CPB_HIDDEN + layer.heads),
        widest=max(3 * elements, scores),
        output=elements,
    )


def _attention_macs(layer: LayerShape) -> int:
    """MACs of the projections (queries, keys, values, output), of the scores and of their product with the values."""
    elements = layer.tokens * layer.channels
    return 4 * elements * layer.channels + 2 * elements * layer.window_tokens


def _attention_parameters(layer: LayerShape) -> int:
    """Parameters of the norm, of the two linear layers and of the bias of the last."""
    return 2 * layer.channels + 4 * layer.channels * layer.channels + layer.channels


def _scores(layer: LayerShape) -> int:
    return layer.heads * layer.tokens * layer.window_tokens


def _positions(layer: LayerShape) -> int:
    """The number of relative positions of two tokens in a window."""
    return (2 * layer.window[0] - 1) * (2 * layer.window[1] - 1)


def _mlp_unit(block: str, layer: LayerShape, mlp_ratio: float, post_norm: bool) -> Unit:
    channels, hidden = layer.channels, int(layer.channels * mlp_ratio)
    elements = layer.tokens * channels
    return Unit(
        block + MLP_HALVES[post_norm],
        macs=2 * layer.tokens * channels * hidden,
        normalised=elements,
        parameters=2 * channels + 2 * channels * hidden + hidden + channels,
        kept=2 * elements + 2 * layer.tokens * hidden,  # inputs of the norm, first product, GELU, last product
        widest=layer.tokens * hidden,
        output=elements,
    )


def _merging_unit(name: str, layer: LayerShape, post_norm: bool) -> Unit:
    """Patch merging: four neighbouring tokens become one of twice the width, normalised before or after."""
    elements = layer.tokens * layer.channels
    normalised, norm_parameters = (elements // 2, 4) if post_norm else (elements, 8)
    return Unit(
        name,
        macs=elements * 2 * layer.channels,
        normalised=normalised,
        parameters=norm_parameters * layer.channels + 8 * layer.channels**2,
        kept=elements + normalised,  # inputs of the product and the norm
        widest=elements,
        output=elements // 2,
    )
