# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Sizes of a Swin Transformer (feature maps, windows, classes), from its hyper-parameters alone."""

from typing import List, NamedTuple, Sequence, Tuple, Union

from yacs.config import CfgNode

IMAGENET_CLASSES = 1000
IMAGENET_22K_CLASSES = 21841
CPB_HIDDEN = 512  # width of the MLP for Swin V2's continuous position bias
CENTRE_SHARE = 224 / 256  # side of the centre crop over that of the resized image

Size = Union[int, Sequence[int]]  # one number for a square, or (height, width)
Pair = Tuple[int, int]


class LayerShape(NamedTuple):
    """The sizes of one layer, a sequence of blocks at the same resolution.

    `grid` and `window` are (height, width) in tokens; `shift` is the offset of the windows in every second block;
    `pretrained_window` is the window size in pre-training, used by Swin V2 to scale coordinates.
    """

    grid: Pair
    channels: int
    depth: int
    heads: int
    window: Pair
    shift: Pair
    pretrained_window: Pair = (0, 0)

    @property
    def tokens(self) -> int:
        """Number of tokens of one image."""
        return self.grid[0] * self.grid[1]

    @property
    def window_tokens(self) -> int:
        """Number of tokens in a window."""
        return self.window[0] * self.window[1]


def pair(size: Size) -> Pair:
    """(height, width) of a size given as one number or two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def patch_grid(img_size: Size, patch_size: Size) -> Pair:
    """Number of patches along height and width.

    Raises:
        ValueError: if patches do not tile the image.
    """
    image, patch = pair(img_size), pair(patch_size)
    if any(side % extent for side, extent in zip(image, patch)):
        raise ValueError(f"image size {image[0]}x{image[1]} is not a multiple of the patch size {patch[0]}x{patch[1]}")
    return image[0] // patch[0], image[1] // patch[1]


def fit_window(grid: Pair, window: Size) -> Tuple[Pair, Pair]:
    """Window and shift for a feature map.

    Maps no larger than the window are not shifted. A window given as one number follows the official code: if either
    side of the map is no larger, the window becomes a square of the shorter side. A window given as (height, width) is
    fitted to each side separately.
    """
    if isinstance(window, int):
        if min(grid) <= window:
            return (min(grid), min(grid)), (0, 0)
        return (window, window), (window // 2, window // 2)
    fitted = pair([min(side, extent) for side, extent in zip(grid, pair(window))])
    return fitted, pair([0 if side <= extent else extent // 2 for side, extent in zip(grid, fitted)])


def layer_shapes(
    img_size: Size,
    patch_size: Size,
    embed_dim: int,
    depths: Sequence[int],
    num_heads: Sequence[int],
    window_size: Size,
    pretrained_windows: Sequence[int] = (),
) -> List[LayerShape]:
    """The layers of a Swin Transformer: each halves the resolution of the one before and doubles its width.

    Args:
        pretrained_windows: window size of each layer in pre-training; 0 or empty: the current one.

    Raises:
        ValueError: for sizes that do not match, with their values.
    """
    if len(depths) != len(num_heads):
        raise ValueError(f"depths {list(depths)} and num_heads {list(num_heads)} differ in length")
    if pretrained_windows and len(pretrained_windows) != len(depths):
        raise ValueError(f"depths {list(depths)} and pretrained windows {list(pretrained_windows)} differ in length")
    grid, layers = patch_grid(img_size, patch_size), []
    for index, (depth, heads) in enumerate(zip(depths, num_heads)):
        if index:
            if grid[0] % 2 or grid[1] % 2:
                raise ValueError(f"layer {index - 1} has {grid[0]}x{grid[1]} tokens: patch merging needs even numbers")
            grid = grid[0] // 2, grid[1] // 2
        channels = embed_dim * 2**index
        if channels % heads:
            raise ValueError(f"layer {index}: the width {channels} is not divisible by {heads} heads")
        window, shift = fit_window(grid, window_size)
        if grid[0] % window[0] or grid[1] % window[1]:
            raise ValueError(
                f"layer {index} has {grid[0]}x{grid[1]} tokens, which windows of {window[0]}x{window[1]} do not tile: "
                "choose an image or window size with which they tile every layer"
            )
        pretrained = pretrained_windows[index] if pretrained_windows else 0
        pretrained_window = (pretrained, pretrained) if pretrained else window
        layers.append(LayerShape(grid, channels, depth, heads, window, shift, pretrained_window))
    return layers


def configured_layers(config: CfgNode) -> List[LayerShape]:
    """The layers of the configured model; raises ValueError as `layer_shapes` does."""
    swin = architecture(config)
    return layer_shapes(
        config.DATA.IMG_SIZE,
        swin.PATCH_SIZE,
        swin.EMBED_DIM,
        swin.DEPTHS,
        swin.NUM_HEADS,
        swin.WINDOW_SIZE,
        swin.get("PRETRAINED_WINDOW_SIZES", ()),
    )


def architecture(config: CfgNode) -> CfgNode:
    """The section of hyper-parameters that MODEL.TYPE selects: MODEL.SWIN or MODEL.SWINV2."""
    return config.MODEL.SWINV2 if config.MODEL.TYPE == "swinv2" else config.MODEL.SWIN


def configured_classes(config: CfgNode) -> int:
    """MODEL.NUM_CLASSES, or the number of classes of the configured data set if it is 0."""
    known = IMAGENET_22K_CLASSES if config.DATA.DATASET == "imagenet22K" else IMAGENET_CLASSES
    return config.MODEL.NUM_CLASSES or known


def image_size(config: CfgNode) -> Tuple[int, int]:
    """Height and width of the images in pixels."""
    return pair(config.DATA.IMG_SIZE)


def crop_share(config: CfgNode) -> float:
    """The share of the resized image's side that evaluation crops; 1.0: it resizes the whole image instead."""
    return CENTRE_SHARE if config.TEST.CROP and not config.AUG.SHIFT else 1.0


def evaluation_interpolation(config: CfgNode) -> str:
    """The interpolation of evaluation: DATA.INTERPOLATION, unless it is random."""
    return "bilinear" if config.DATA.INTERPOLATION == "random" else config.DATA.INTERPOLATION
