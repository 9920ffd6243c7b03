# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Swin Transformer V1 (Liu et al., ICCV 2021), with the parameter names of the official checkpoints.

Feature maps are (B, H, W, C) throughout: B images, H x W tokens, C channels. Window partitioning shares the copy that
separates the attention heads, and window reversal the copy that joins them. The forward pass has static shapes and uses
only operations that PopTorch supports.
"""

from typing import Any, Callable, ClassVar, List, Mapping, NamedTuple, Optional, Sequence, Set, Type

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from planning.costs import swin_units
from planning.geometry import LayerShape, Pair, Size, layer_shapes, pair

from .windows import relative_position_index, shift_mask

COMPUTED = (
    "relative_position_index",
    "attn_mask",
    "relative_coords_table",
)  # in foreign checkpoints; computed from sizes here

NormLayer = Callable[[int], nn.Module]  # builds a norm from a width


class BlockStyle(NamedTuple):
    """The settings shared by all blocks of a model; see SwinTransformer."""

    mlp_ratio: float
    qkv_bias: bool
    qk_scale: Optional[float]
    drop: float
    attn_drop: float
    norm_layer: NormLayer


class Linear(nn.Linear):
    """A linear layer that computes in the dtype of its input and casts its weights to it."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in the dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return functional.linear(x, self.weight.to(x.dtype), bias)


class LayerNorm(nn.LayerNorm):
    """A layer norm that computes in the dtype of its input and casts its weights to it."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C), in the dtype of `x`."""
        return functional.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def dropout(rate: float) -> nn.Module:
    """Dropout, or for rate 0 the identity, which draws no random numbers."""
    return nn.Dropout(rate) if rate else nn.Identity()


class DropPath(nn.Module):
    """Adds a residual branch, which is dropped for random samples in training (stochastic depth).

    Args:
        rate: probability to drop the branch of a sample; the others are scaled by 1 / (1 - rate).
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """The sum of `x` and `branch`, both (B, H, W, C)."""
        if not self.training or self.rate == 0.0:
            return x + branch
        kept = branch.new_empty((branch.shape[0], 1, 1, 1)).bernoulli_(1 - self.rate).div(1 - self.rate)
        return torch.addcmul(x, branch, kept)

    def extra_repr(self) -> str:
        """The arguments shown by print(model)."""
        return f"rate={self.rate:.3f}"


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, applied to each token."""

    def __init__(self, channels: int, hidden: int, drop: float):
        super().__init__()
        self.fc1 = Linear(channels, hidden)
        self.fc2 = Linear(hidden, channels)
        self.drop = dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> (..., channels)."""
        return self.drop(self.fc2(self.drop(functional.gelu(self.fc1(x)))))


class ShiftedWindowAttention(nn.Module):
    """Multi-head self-attention within the windows of a regular or shifted grid (paper, section 3.2).

    The two generations of Swin project and compare tokens differently and have different position biases: subclasses
    define `project`, `similarity` and `position_bias`.

    Args:
        layer: sizes of the layer.
        shift: offset of the windows, down and to the right; (0, 0) for regular windows.
        style: settings shared by all blocks.
    """

    joint_bias: ClassVar[bool] = True  # the bias of queries, keys and values belongs to the layer `qkv`
    relative_position_index: Tensor
    attn_mask: Optional[Tensor]

    def __init__(self, layer: LayerShape, shift: Pair, style: BlockStyle):
        super().__init__()
        self.window, self.shift, self.heads = layer.window, shift, layer.heads
        self.register_buffer("relative_position_index", relative_position_index(self.window), persistent=False)
        self.register_buffer("attn_mask", shift_mask(layer.grid, self.window, shift), persistent=False)
        self.qkv = Linear(layer.channels, 3 * layer.channels, bias=style.qkv_bias and self.joint_bias)
        self.attn_drop = dropout(style.attn_drop)
        self.proj = Linear(layer.channels, layer.channels)
        self.proj_drop = dropout(style.drop)

    def project(self, x: Tensor) -> Tensor:
        """Tokens (..., C) -> their queries, keys and values (..., 3 C)."""
        raise NotImplementedError

    def similarity(self, query: Tensor, key: Tensor) -> Tensor:
        """Queries and keys (..., tokens, C / heads), heads third from last -> scores (..., tokens, tokens)."""
        raise NotImplementedError

    def position_bias(self) -> Tensor:
        """The bias of each relative position, (positions, heads)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        if any(self.shift):
            x = torch.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
        x = self._map(self.attend(*self._windows(self.project(x))), x.shape)
        if any(self.shift):
            x = torch.roll(x, self.shift, (1, 2))
        return self.proj_drop(self.proj(x))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries, keys and values -> attention outputs, all (B, windows, heads, tokens, C / heads)."""
        scores = self.similarity(query, key) + self.bias().to(query.dtype)
        return self.attn_drop(functional.softmax(scores, dim=-1)) @ value

    def weights(self, x: Tensor) -> Tensor:
        """The attention weights for an input (B, H, W, C): (B, windows, heads, tokens, tokens), each row sums to one.

        Windows are those of the shifted grid, row by row.
        """
        if any(self.shift):
            x = torch.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
        query, key, _ = self._windows(self.project(x))
        return functional.softmax(self.similarity(query, key) + self.bias().to(query.dtype), dim=-1)

    def _windows(self, qkv: Tensor) -> List[Tensor]:
        """(B, H, W, 3 C) -> queries, keys and values, each (B, windows, heads, tokens of a window, C / heads)."""
        batch, height, width, channels = qkv.shape
        rows, columns = height // self.window[0], width // self.window[1]
        size = channels // (3 * self.heads)
        parts = qkv.reshape(batch, rows, self.window[0], columns, self.window[1], 3, self.heads, size)
        shape = (batch, rows * columns, self.heads, self.window[0] * self.window[1], size)
        # Unbinding first lets the backward pass join and permute the three gradients in a single copy.
        return [part.permute(0, 1, 3, 5, 2, 4, 6).reshape(shape) for part in parts.unbind(5)]

    def _map(self, windows: Tensor, shape: Sequence[int]) -> Tensor:
        """(B, windows, heads, tokens of a window, C / heads) -> the map (B, H, W, C) of the given shape."""
        batch, height, width, channels = shape
        rows, columns = height // self.window[0], width // self.window[1]
        size = channels // self.heads
        parts = windows.reshape(batch, rows, columns, self.heads, self.window[0], self.window[1], size)
        return parts.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, channels)

    def bias(self) -> Tensor:
        """Position bias, plus the mask of shifted windows: (1 or windows, heads, tokens, tokens)."""
        bias = self.relative_bias().unsqueeze(0)
        return bias if self.attn_mask is None else bias + self.attn_mask.unsqueeze(1)

    def relative_bias(self) -> Tensor:
        """The position bias of each pair of tokens: (heads, tokens, tokens)."""
        tokens = self.window[0] * self.window[1]
        bias = self.position_bias().index_select(0, self.relative_position_index.flatten())
        return bias.view(tokens, tokens, self.heads).permute(2, 0, 1).contiguous()


class WindowAttention(ShiftedWindowAttention):
    """Attention by scaled dot products, with a learned bias for each relative position; args as of the base class."""

    def __init__(self, layer: LayerShape, shift: Pair, style: BlockStyle):
        super().__init__(layer, shift, style)
        self.scale = style.qk_scale or (layer.channels // layer.heads) ** -0.5
        positions = (2 * self.window[0] - 1) * (2 * self.window[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(positions, layer.heads))

    def project(self, x: Tensor) -> Tensor:
        """As of the base class: one linear layer."""
        return self.qkv(x)

    def similarity(self, query: Tensor, key: Tensor) -> Tensor:
        """As of the base class: dot products."""
        return (query * self.scale) @ key.transpose(-2, -1)

    def position_bias(self) -> Tensor:
        """As of the base class: a parameter."""
        return self.relative_position_bias_table


class SwinTransformerBlock(nn.Module):
    """Window attention and an MLP, with pre-normalisation and residual connections.

    Args:
        layer: sizes of the layer.
        shifted: whether the windows are shifted.
        drop_path: rate of stochastic depth.
        style: settings that all blocks share.
    """

    attention_type: ClassVar[Type[ShiftedWindowAttention]] = WindowAttention

    def __init__(self, layer: LayerShape, shifted: bool, drop_path: float, style: BlockStyle):
        super().__init__()
        self.norm1 = style.norm_layer(layer.channels)
        self.attn = self.attention_type(layer, layer.shift if shifted else (0, 0), style)
        self.drop_path = DropPath(drop_path)
        self.norm2 = style.norm_layer(layer.channels)
        self.mlp = Mlp(layer.channels, int(layer.channels * style.mlp_ratio), style.drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.transform(self.attend(x))

    def attend(self, x: Tensor) -> Tensor:
        """The attention half: (B, H, W, C) -> (B, H, W, C)."""
        return self.drop_path(x, self.attn(self.norm1(x)))

    def transform(self, x: Tensor) -> Tensor:
        """The MLP half: (B, H, W, C) -> (B, H, W, C)."""
        return self.drop_path(x, self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Merges groups of 2 x 2 tokens into one token of twice the width."""

    def __init__(self, channels: int, norm_layer: NormLayer):
        super().__init__()
        self.reduction = Linear(4 * channels, 2 * channels, bias=False)
        self.norm = norm_layer(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H / 2, W / 2, 2 C)."""
        return self.reduction(self.norm(self.joined(x)))

    def joined(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H / 2, W / 2, 4 C), by concatenating neighbours."""
        batch, height, width, channels = x.shape
        parts = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        # the lower neighbour before the right one, as in the official weights
        return parts.permute(0, 1, 3, 4, 2, 5).reshape(batch, height // 2, width // 2, 4 * channels)


class BasicLayer(nn.Module):
    """The blocks of one resolution, every second one shifted, with patch merging before the next layer.

    Args:
        layer: sizes of the layer.
        drop_path: rate of stochastic depth of each block.
        merge: whether to merge patches at the end.
        style: settings that all blocks share.
        use_checkpoint: recompute the blocks in the backward pass instead of storing their activations.
    """

    block_type: ClassVar[Type[SwinTransformerBlock]] = SwinTransformerBlock
    merging_type: ClassVar[Type[PatchMerging]] = PatchMerging

    def __init__(
        self, layer: LayerShape, drop_path: Sequence[float], merge: bool, style: BlockStyle, use_checkpoint: bool
    ):
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            self.block_type(layer, index % 2 == 1, rate, style) for index, rate in enumerate(drop_path)
        )
        self.downsample = self.merging_type(layer.channels, style.norm_layer) if merge else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> the same, or (B, H / 2, W / 2, 2 C) with merging."""
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.use_checkpoint else block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Splits images into patches and projects each to a token."""

    def __init__(self, patch_size: Pair, in_chans: int, embed_dim: int, norm_layer: Optional[NormLayer]):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = None if norm_layer is None else norm_layer(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H / patch, W / patch, embed_dim)."""
        bias = None if self.proj.bias is None else self.proj.bias.to(images.dtype)
        x = functional.conv2d(images, self.proj.weight.to(images.dtype), bias, self.proj.stride)
        x = x.permute(0, 2, 3, 1).contiguous()
        return x if self.norm is None else self.norm(x)


class SwinTransformer(nn.Module):
    """Swin Transformer classifier.

    Args:
        img_size: image size in pixels, one number or (height, width).
        patch_size: patch size in pixels, one number or (height, width).
        in_chans: number of image channels.
        num_classes: number of classes; 0: no head, the model returns its features.
        embed_dim: width of the first layer; each following layer is twice as wide.
        depths: number of blocks of each layer.
        num_heads: number of attention heads of each layer.
        window_size: window size in tokens, one number or (height, width); see `geometry.fit_window`.
        mlp_ratio: ratio of the hidden width of the MLPs to the width of the layer.
        qkv_bias: whether queries, keys and values have a bias.
        qk_scale: scale of the attention scores; None: head width ** -0.5.
        drop_rate: dropout rate of tokens, MLPs and attention outputs.
        attn_drop_rate: dropout rate of attention weights.
        drop_path_rate: stochastic depth rate of the last block, growing linearly from 0 at the first.
        norm_layer: builds a norm from a width.
        ape: whether to add an absolute position embedding to the patches.
        patch_norm: whether to normalise the embedded patches.
        use_checkpoint: whether to recompute blocks in the backward pass to save memory (hosts only).
        fused_window_process: ignored; for callers of the official class, where it selects a CUDA kernel.

    Raises:
        ValueError: for sizes that do not match, with their values.
    """

    layer_type: ClassVar[Type[BasicLayer]] = BasicLayer

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: Size = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: Optional[float] = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_layer: NormLayer = nn.LayerNorm,
        ape: bool = False,
        patch_norm: bool = True,
        use_checkpoint: bool = False,
        fused_window_process: bool = False,
    ):
        super().__init__()
        shapes = layer_shapes(img_size, patch_size, embed_dim, depths, num_heads, window_size)
        self.units = swin_units(shapes, patch_size, in_chans, num_classes, mlp_ratio, patch_norm, qkv_bias, ape)
        self.patch_embed = PatchEmbed(pair(patch_size), in_chans, embed_dim, norm_layer if patch_norm else None)
        style = BlockStyle(mlp_ratio, qkv_bias, qk_scale, drop_rate, attn_drop_rate, norm_layer)
        self._build(shapes, style, num_classes, drop_path_rate, ape, use_checkpoint)

    def _build(
        self,
        shapes: Sequence[LayerShape],
        style: BlockStyle,
        num_classes: int,
        drop_path_rate: float,
        ape: bool,
        use_checkpoint: bool,
    ) -> None:
        """Builds everything after the patch embedding, and initialises all weights."""
        self.num_classes = num_classes
        self.num_layers = len(shapes)
        self.embed_dim = shapes[0].channels
        self.num_features = shapes[-1].channels
        self.patch_grid = shapes[0].grid
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, shapes[0].tokens, self.embed_dim)) if ape else None
        self.pos_drop = dropout(style.drop)
        blocks = sum(shape.depth for shape in shapes)
        rates = [drop_path_rate * block / max(blocks - 1, 1) for block in range(blocks)]
        self.layers = nn.ModuleList()
        for index, shape in enumerate(shapes):
            first = sum(earlier.depth for earlier in shapes[:index])
            self.layers.append(
                self.layer_type(
                    shape, rates[first : first + shape.depth], index + 1 < len(shapes), style, use_checkpoint
                )
            )
        self.norm = style.norm_layer(self.num_features)
        self.head = Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal of std 0.02 for linear weights, position embeddings and bias tables; zero linear biases."""
        for name, parameter in self.named_parameters():
            if name.endswith(("absolute_pos_embed", "relative_position_bias_table")):
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As nn.Module.load_state_dict, but ignores the constant tables of official state dicts."""
        weights = {name: value for name, value in state_dict.items() if not name.endswith(COMPUTED)}
        return super().load_state_dict(weights, *args, **kwargs)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_features), the mean over the normalised tokens of the last layer."""
        x = self.embed(images)
        for layer in self.layers:
            x = layer(x)
        return self.pool(x)

    def embed(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> tokens (B, H / patch, W / patch, embed_dim), with position embeddings if `ape`."""
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            x = x + self.absolute_pos_embed.to(x.dtype).view(1, *x.shape[1:])
        return self.pos_drop(x)

    def pool(self, x: Tensor) -> Tensor:
        """Tokens of the last layer (B, H, W, num_features) -> (B, num_features)."""
        return self.norm(x).mean((1, 2))

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.head(self.forward_features(images))

    def no_weight_decay(self) -> Set[str]:
        """Names of parameters without weight decay."""
        return {"absolute_pos_embed"}

    def no_weight_decay_keywords(self) -> Set[str]:
        """Substrings of the names of parameters without weight decay."""
        return {"relative_position_bias_table"}

    def flops(self) -> int:
        """Cost of the forward pass of one image as the paper counts it: 1 per MAC and per normalised element."""
        return sum(unit.macs + unit.normalised for unit in self.units)
