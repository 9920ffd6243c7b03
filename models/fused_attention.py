# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Window attention with PyTorch's fused kernels, for GPUs where it is faster; equal up to rounding, same names."""

import contextlib
import time
from typing import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.logs import logger
from planning.geometry import LayerShape

from .compiling import is_watched
from .swin_transformer import BasicLayer, BlockStyle, SwinTransformerBlock, WindowAttention

ROUNDS = 5  # of a measurement, after a warm-up round


class FusedWindowAttention(WindowAttention):
    """As the base class; windows are treated as heads, which makes bias and mask the same for the whole batch."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As of the base class."""
        if is_watched():
            return super().attend(query, key, value)
        batch, windows, heads, tokens, size = query.shape
        bias = self.bias().to(query.dtype).expand(windows, heads, tokens, tokens).reshape(1, -1, tokens, tokens)
        query = query * (self.scale * size**0.5)  # undoes the scale of the fused operation, fixed before PyTorch 2.1
        query, key, merged = query.flatten(1, 2), key.flatten(1, 2), value.flatten(1, 2)
        mask = bias.expand(batch, -1, -1, -1)
        return functional.scaled_dot_product_attention(query, key, merged, attn_mask=mask).view_as(value)


class FusedBlock(SwinTransformerBlock):
    """A block with fused attention."""

    attention_type = FusedWindowAttention


class FusedLayer(BasicLayer):
    """The blocks of one resolution, with fused attention."""

    block_type = FusedBlock


def fused_is_faster(
    shapes: Sequence[LayerShape], style: BlockStyle, batch: int, dtype: torch.dtype, device: str
) -> bool:
    """Measures the attention of all layers both ways, forward and backward, and logs the times.

    Args:
        shapes: the layers of a model.
        style: the settings of its blocks.
        batch: images in a micro-batch.
        dtype: of products: float32, or the dtype of autocast.
        device: the type of the device.
    """
    with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []):
        plain, fused = (
            sum(_seconds(_step(kind, shape, style, batch, dtype, device), device) for shape in shapes)
            for kind in (WindowAttention, FusedWindowAttention)
        )
    chosen = "fused" if fused < plain else "plain"
    logger.info("attention: %s; forward and backward take %.2g s fused, %.2g s plain", chosen, fused, plain)
    return fused < plain


def _step(
    kind: Callable[..., nn.Module], shape: LayerShape, style: BlockStyle, batch: int, dtype: torch.dtype, device: str
) -> Callable[[], None]:
    attention = kind(shape, shape.shift, style).to(device)
    images = torch.randn(batch, *shape.grid, shape.channels, device=device)

    def step() -> None:
        with torch.autocast(device, dtype) if dtype != torch.float32 else contextlib.nullcontext():
            attention(images).sum().backward()

    return step


def _seconds(step: Callable[[], None], device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    step()
    wait()
    start = time.perf_counter()
    for _ in range(ROUNDS):
        step()
    wait()
    return (time.perf_counter() - start) / ROUNDS
