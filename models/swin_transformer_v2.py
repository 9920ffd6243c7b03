# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Swin Transformer V2 (Liu et al., CVPR 2022), with the parameter names of the official checkpoints.

It differs from the first generation in three ways: tokens are compared by their cosine, the bias of a relative position
is computed from its coordinates by an MLP, which lets windows change after pre-training, and the norms follow the
branches instead of preceding them.
"""

import math
from typing import Sequence, Set, Union

import torch
from torch import Tensor, nn

from planning.costs import swin_units
from planning.geometry import CPB_HIDDEN, LayerShape, Pair, Size, layer_shapes, pair

from .swin_transformer import (
    BasicLayer,
    BlockStyle,
    Linear,
    NormLayer,
    PatchEmbed,
    PatchMerging,
    ShiftedWindowAttention,
    SwinTransformer,
    SwinTransformerBlock,
)
from .windows import relative_coordinates

LARGEST_SCALE = math.log(100.0)  # of the logarithm of the cosine's scale (paper, section 3.3)
LARGEST_BIAS = 16.0  # the position bias lies between 0 and this value
SMALLEST_SQUARE = 1e-24  # lower bound of a vector's squared length, which keeps zero vectors zero


class CosineWindowAttention(ShiftedWindowAttention):
    """Attention by scaled cosines, with a continuous bias of relative positions; args as of the base class.

    The logarithm of each head's scale is learned, and the scale is bounded by 100. Queries and values have a bias; keys
    need none, since it would add the same to all scores of a query.
    """

    joint_bias = False
    relative_coords_table: Tensor

    def __init__(self, layer: LayerShape, shift: Pair, style: BlockStyle):
        super().__init__(layer, shift, style)
        self.logit_scale = nn.Parameter(torch.full((layer.heads, 1, 1), math.log(10.0)))
        self.q_bias = nn.Parameter(torch.zeros(layer.channels)) if style.qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(layer.channels)) if style.qkv_bias else None
        self.cpb_mlp = nn.Sequential(Linear(2, CPB_HIDDEN), nn.ReLU(), Linear(CPB_HIDDEN, layer.heads, bias=False))
        coordinates = relative_coordinates(self.window, layer.pretrained_window)
        self.register_buffer("relative_coords_table", coordinates, persistent=False)

    def project(self, x: Tensor) -> Tensor:
        """As of the base class: one linear layer, with a zero bias for the keys."""
        x = self.qkv(x)
        if self.q_bias is None or self.v_bias is None:
            return x
        return x + torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias)).to(x.dtype)

    def similarity(self, query: Tensor, key: Tensor) -> Tensor:
        """As of the base class: cosines times the scale of their head, lengths computed in float32."""
        scale = self.logit_scale.float().clamp(max=LARGEST_SCALE).exp()
        return _with_length(query, scale) @ _with_length(key, 1.0).transpose(-2, -1)

    def position_bias(self) -> Tensor:
        """As of the base class: the MLP's output for the coordinates of each position, between 0 and 16."""
        return LARGEST_BIAS * torch.sigmoid(self.cpb_mlp(self.relative_coords_table))


def _with_length(vectors: Tensor, length: Union[Tensor, float]) -> Tensor:
    """Vectors (..., C) of the given length and unchanged direction, in their dtype."""
    wide = vectors.float()
    shrink = wide.square().sum(-1, keepdim=True).clamp(min=SMALLEST_SQUARE).rsqrt()
    return (wide * (shrink * length)).to(vectors.dtype)


class PostNormBlock(SwinTransformerBlock):
    """Cosine attention and an MLP, each followed by a norm before it is added; args as of the base class."""

    attention_type = CosineWindowAttention

    def attend(self, x: Tensor) -> Tensor:
        """The attention half: (B, H, W, C) -> (B, H, W, C)."""
        return self.drop_path(x, self.norm1(self.attn(x)))

    def transform(self, x: Tensor) -> Tensor:
        """The MLP half: (B, H, W, C) -> (B, H, W, C)."""
        return self.drop_path(x, self.norm2(self.mlp(x)))


class PostNormMerging(PatchMerging):
    """Merges groups of 2 x 2 tokens into one token of twice the width, which is normalised afterwards."""

    def __init__(self, channels: int, norm_layer: NormLayer):
        super().__init__(channels, norm_layer)
        self.norm = norm_layer(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H / 2, W / 2, 2 C)."""
        return self.norm(self.reduction(self.joined(x)))


class PostNormLayer(BasicLayer):
    """A sequence of blocks at one resolution; args as of the base class."""

    block_type = PostNormBlock
    merging_type = PostNormMerging


class SwinTransformerV2(SwinTransformer):
    """Swin Transformer V2 classifier.

    Args:
        pretrained_window_sizes: side of the windows of each layer in pre-training, which scales the coordinates of the
            position bias; 0 or empty: the window of the layer itself.

    The other arguments are those of `SwinTransformer`, except `qk_scale`.

    Raises:
        ValueError: for sizes that do not match, with their values.
    """

    layer_type = PostNormLayer

    def __init__(
        self,
        img_size: Size = 256,
        patch_size: Size = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: Size = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_layer: NormLayer = nn.LayerNorm,
        ape: bool = False,
        patch_norm: bool = True,
        use_checkpoint: bool = False,
        pretrained_window_sizes: Sequence[int] = (),
    ):
        nn.Module.__init__(self)
        shapes = layer_shapes(img_size, patch_size, embed_dim, depths, num_heads, window_size, pretrained_window_sizes)
        self.units = swin_units(
            shapes, patch_size, in_chans, num_classes, mlp_ratio, patch_norm, qkv_bias, ape, second_generation=True
        )
        self.patch_embed = PatchEmbed(pair(patch_size), in_chans, embed_dim, norm_layer if patch_norm else None)
        style = BlockStyle(mlp_ratio, qkv_bias, None, drop_rate, attn_drop_rate, norm_layer)
        self._build(shapes, style, num_classes, drop_path_rate, ape, use_checkpoint)

    def _initialise(self) -> None:
        """As the first generation; the norms after the branches start at zero, which makes each block an identity."""
        super()._initialise()
        for module in self.modules():
            if isinstance(module, PostNormBlock):
                for parameter in (*module.norm1.parameters(), *module.norm2.parameters()):
                    nn.init.zeros_(parameter)

    def no_weight_decay_keywords(self) -> Set[str]:
        """Substrings of the names of parameters without weight decay."""
        return {"cpb_mlp", "logit_scale"}
