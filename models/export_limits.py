# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Checks that the format of another program can hold an architecture; refuses it with the reason otherwise."""

from typing import List, NamedTuple, Optional, Tuple

from yacs.config import CfgNode

from common.errors import Refusal
from planning.geometry import Pair, Size, architecture, configured_layers, crop_share, fit_window, image_size

NAMES = {"microsoft": "the official program", "timm": "timm", "huggingface": "Hugging Face's {type}"}


class Fit(NamedTuple):
    """The window size to write to a format's configuration, and the resulting windows of its model."""

    stated: Size
    windows: List[Tuple[Pair, Pair]]  # window and shift of each layer


def check_fits(target: str, config: CfgNode, classes: int) -> None:
    """Raises `Refusal` if the target's format cannot hold a model of this configuration."""
    if target not in NAMES:  # formats of weights by name, or of computations
        return
    reasons = _missing_parts(target, config, classes)
    if reasons:
        raise _refusal(target, config, reasons[0])
    stated_window(target, config)


def stated_window(target: str, config: CfgNode) -> Size:
    """The window size to write to the target's configuration.

    Raises:
        Refusal: if its model would then have other windows than this one.
    """
    fit = _fit(target, config)
    if fit is None:
        raise _refusal(target, config, f"its windows are squares, not {architecture(config).WINDOW_SIZE}")
    for index, (layer, (window, shift)) in enumerate(zip(configured_layers(config), fit.windows)):
        if (layer.window, layer.shift) != (window, shift):
            raise _refusal(
                target,
                config,
                f"layer {index} has windows of {_shown(layer.window)}, shifted by {_shown(layer.shift)}, where it "
                f"would have {_shown(window)}, shifted by {_shown(shift)}",
            )
    return fit.stated


def _missing_parts(target: str, config: CfgNode, classes: int) -> List[str]:
    swin, second = architecture(config), config.MODEL.TYPE == "swinv2"
    if target == "microsoft":
        return []
    reasons = []
    if not swin.PATCH_NORM:
        reasons.append("its patch embedding always has a norm, this one has none (PATCH_NORM)")
    if not second and swin.QK_SCALE is not None:
        reasons.append("it always scales queries by the width of a head, not by QK_SCALE")
    if swin.APE and (target == "timm" or second):
        reasons.append("it has no absolute position embeddings (APE)")
    if target == "huggingface" and not classes:
        reasons.append("its classifier has a head, these weights have none")
    height, width = image_size(config)
    if target == "huggingface" and height != width and crop_share(config) < 1.0:
        reasons.append("its image processors crop squares only: set TEST.CROP False")
    return reasons


def _fit(target: str, config: CfgNode) -> Optional[Fit]:
    """The side of a square window, or None: only squares can be stated."""
    size, layers = architecture(config).WINDOW_SIZE, configured_layers(config)
    if target == "timm":
        sides = (size, size) if isinstance(size, int) else tuple(size)
        return Fit(list(sides), [fit_window(layer.grid, sides) for layer in layers])
    if target == "huggingface" and config.MODEL.TYPE == "swin":
        # All of its bias tables have the stated size, although it clamps windows to the map.
        side = max(layers[0].window)
        return Fit(side, [((side, side), fit_window(layer.grid, side)[1]) for layer in layers])
    if not isinstance(size, int) and size[0] != size[1]:
        return None
    side = size if isinstance(size, int) else size[0]
    if target == "huggingface":
        return Fit(side, [_by_height(layer.grid, side) for layer in layers])
    return Fit(side, [fit_window(layer.grid, side) for layer in layers])


def _by_height(grid: Pair, side: int) -> Tuple[Pair, Pair]:
    """Window and shift as fitted by Hugging Face's Swin V2, which uses only the height of the map."""
    window, shift = min(grid[0], side), 0 if grid[0] <= side else side // 2
    return (window, window), (shift, shift)


def _shown(sides: Pair) -> str:
    return f"{sides[0]}x{sides[1]}"


def _refusal(target: str, config: CfgNode, reason: str) -> Refusal:
    name = NAMES[target].format(type={"swin": "Swin", "swinv2": "Swin V2"}[config.MODEL.TYPE])
    return Refusal(f"--to {target}: {name} cannot hold this model: {reason}")
