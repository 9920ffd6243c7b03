# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The blocks of Swin V1 as a CPU runs them fastest: same numbers, parameters and names, other order of operations.

Each residual branch is one differentiable function with a backward pass written by hand:

- It runs for a few samples at a time, so that all that lies between two products stays in the caches.
- It runs for the samples only that stochastic depth keeps.
- Rolling and cutting into windows is the order in which the norm reads rows, and the sum at the end writes them.
- The backward pass computes all again but the first product, and with `recompute` that, too; never the last one.
- All that lies between two products, biases included, takes one pass; see kernels.py.

Whoever watches the operations or the parts of a block (PopTorch's compiler, exports, hooks) sees the ordinary block.
"""

import functools
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, cast

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _len_torch_dispatch_stack
from torch.autograd.function import once_differentiable

from planning.geometry import LayerShape, Pair

from . import kernels
from .swin_transformer import BasicLayer, BlockStyle, SwinTransformerBlock

CHUNK_BYTES = 5 << 18  # of the samples that a branch runs for at a time; what is made of them is some times larger
DTYPES = (torch.float32, torch.bfloat16)

Weights = Sequence[Any]  # tensors; None for a bias or a mask that a layer does not have


class Part(NamedTuple):
    """Tokens of a batch (B, H, W, C) that a branch runs for together."""

    samples: slice
    rows: Optional[Tensor]  # of these samples, (samples x H x W, C); None: all, as they are
    size: int  # number of rows

    def of(self, x: Tensor) -> Tensor:
        """The samples, as rows."""
        return x[self.samples].view(-1, x.shape[-1])


@functools.lru_cache(maxsize=None)
def window_order(grid: Pair, window: Pair, shift: Pair) -> Tensor:
    """The token at each place of the windows of a shifted map, window by window: (tokens,), int64."""
    tokens = torch.arange(grid[0] * grid[1]).view(grid).roll((-shift[0], -shift[1]), (0, 1))
    parts = tokens.view(grid[0] // window[0], window[0], grid[1] // window[1], window[1])
    return parts.transpose(1, 2).reshape(-1)


class Sums:
    """The gradients of weights, summed in float32 over the parts of a batch.

    Args:
        wanted: whether the gradient of each weight is needed.
    """

    def __init__(self, wanted: Sequence[bool]):
        self._wanted = wanted
        self._totals: List[Optional[Tensor]] = [None] * len(wanted)

    def product(self, index: int, gradient: Tensor, inputs: Tensor) -> None:
        """Adds to a matrix: gradient of the outputs (rows, out), inputs (rows, in) -> (out, in)."""
        total = self._totals[index]
        if total is not None and gradient.dtype == total.dtype:
            total.addmm_(gradient.t(), inputs)
        elif self._wanted[index]:
            self.add(index, gradient.t() @ inputs)

    def add(self, index: int, gradient: Tensor) -> None:
        """Adds a gradient of the weight's own shape."""
        total = self._totals[index]
        if total is not None:
            total.add_(gradient)
        elif self._wanted[index]:
            self._totals[index] = gradient.float()

    def norm_and_linear(
        self, gradient: Tensor, x: Tensor, rows: Optional[Tensor], weights: Weights, eps: float
    ) -> Tensor:
        """The gradient of rows of `x`, given that of their norm's product with the first linear layer."""
        normed, *statistics = kernels.norm(x, weights[0], weights[1], eps, rows)
        self.product(2, gradient, normed)
        inner, *others = kernels.norm_back(gradient @ weights[2], x, statistics, weights[0], weights[1], rows)
        self.add(0, others[0])
        self.add(1, others[1])
        return inner

    def results(self, weights: Weights) -> List[Optional[Tensor]]:
        """The gradients of the weights; zero if no sample was kept, None where they are not needed."""
        return [
            (torch.zeros_like(weight, dtype=torch.float32) if total is None else total) if wants else None
            for weight, wants, total in zip(weights, self._wanted, self._totals)
        ]


class MlpBranch(NamedTuple):
    """Norm and MLP. Weights: those of the norm, of `fc1` and of `fc2`."""

    eps: float

    def order(self, grid: Pair) -> Optional[Tensor]:
        """The order in which the branch takes the tokens of a sample; None: as they are."""
        return None

    def inner(self, x: Tensor, rows: Optional[Tensor], weights: Weights, out: Optional[Tensor] = None) -> Tensor:
        """Rows of `x` (rows, C) -> what the backward pass needs of them, written to `out`, if any."""
        normed = kernels.norm(x, weights[0], weights[1], self.eps, rows)[0]
        return torch.mm(normed, weights[2].t(), out=out)

    def outer(self, hidden: Tensor, weights: Weights) -> Tensor:
        """The branch of the rows, (rows, C), without the last bias, from the result of `inner`."""
        return kernels.gelu(hidden, weights[3]) @ weights[4].t()

    def back(
        self, gradient: Tensor, hidden: Tensor, x: Tensor, rows: Optional[Tensor], weights: Weights, sums: Sums
    ) -> Tensor:
        """The gradient of the rows, given that of their branch."""
        inner, total, active = kernels.gelu_back(gradient @ weights[4], hidden, weights[3])
        sums.add(3, total)
        sums.product(4, gradient, active)
        return sums.norm_and_linear(inner, x, rows, weights, self.eps)


class AttentionBranch(NamedTuple):
    """Norm and window attention.

    Weights: those of the norm, of `qkv` and of `proj`, the position bias (heads, tokens, tokens), and the mask
    (windows, tokens, tokens) or None.
    """

    eps: float
    window: Pair
    shift: Pair
    scale: float

    def order(self, grid: Pair) -> Optional[Tensor]:
        """As of MlpBranch: window by window."""
        return window_order(grid, self.window, self.shift)

    def inner(self, x: Tensor, rows: Optional[Tensor], weights: Weights, out: Optional[Tensor] = None) -> Tensor:
        """As of MlpBranch: queries, keys and values."""
        normed = kernels.norm(x, weights[0], weights[1], self.eps, rows)[0]
        return torch.mm(normed, weights[2].t(), out=out)

    def outer(self, qkv: Tensor, weights: Weights) -> Tensor:
        """As of MlpBranch."""
        return kernels.attention(qkv, weights[3], weights[6], weights[7], self.scale) @ weights[4].t()

    def back(
        self, gradient: Tensor, qkv: Tensor, x: Tensor, rows: Optional[Tensor], weights: Weights, sums: Sums
    ) -> Tensor:
        """As of MlpBranch."""
        inner = gradient @ weights[4]
        joined, inner, total, bias = kernels.attention_back(inner, qkv, weights[3], weights[6], weights[7], self.scale)
        sums.add(3, total)
        sums.product(4, gradient, joined)
        sums.add(6, bias)
        return sums.norm_and_linear(inner, x, rows, weights, self.eps)


class Residual(torch.autograd.Function):
    """x + scale * branch(x) for the samples that are kept, x for the others."""

    @staticmethod
    def forward(ctx: Any, branch: Any, plan: "Plan", kept: Tensor, x: Tensor, *weights: Any) -> Tensor:
        """See `residual`."""
        scale, differentiable, recompute = plan
        narrow = list(weights)
        narrow[2], narrow[4] = weights[2].to(x.dtype), weights[4].to(x.dtype)
        parts = parts_of(x, kept, branch)
        out, saved = total_of(x, kept), cast(List[Optional[Tensor]], [None] * len(parts))
        if differentiable and not recompute:  # all together, so that what is freed leaves no holes between them
            saved = [x.new_empty(part.size, len(narrow[2])) for part in parts]
        for part, room in zip(parts, saved):
            values = branch.outer(branch.inner(part.of(x), part.rows, narrow, room), narrow)
            kernels.add_rows(part.of(x), part.rows, values, weights[5], scale, part.of(out))
        if differentiable:
            ctx.branch, ctx.scale, ctx.count = branch, scale, len(weights)
            ctx.save_for_backward(kept, x, *narrow, *saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The gradients of `x` and the weights."""
        kept, x, *rest = ctx.saved_tensors
        weights, saved = rest[: ctx.count], rest[ctx.count :]
        sums, gradient, branch = Sums(ctx.needs_input_grad[4:]), gradient.contiguous(), ctx.branch
        out = total_of(gradient, kept)
        for part, needed in zip(parts_of(x, kept, branch), saved):
            needed = branch.inner(part.of(x), part.rows, weights) if needed is None else needed
            outer, total = kernels.take(part.of(gradient), part.rows, ctx.scale)
            sums.add(5, total)
            inner = branch.back(outer, needed, part.of(x), part.rows, weights, sums)
            kernels.add_rows(part.of(gradient), part.rows, inner, None, 1.0, part.of(out))
        return (None, None, None, out, *sums.results(weights))


class Folded(torch.autograd.Function):
    """Residual for several micro-batches at once, under torch.func.vmap."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        """Not called: the rule below replaces it."""
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Required of functions that vmap transforms."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, branch: Any, plan: Any, kept: Tensor, x: Tensor, *weights: Any) -> Any:
        """Runs the micro-batches as one batch; samples do not interact."""
        kept = kept.movedim(in_dims[2], 0) if in_dims[2] is not None else kept.expand(info.batch_size, *kept.shape)
        x = x.movedim(in_dims[3], 0)
        return Residual.apply(branch, plan, kept.flatten(), x.flatten(0, 1), *weights).view(x.shape), 0


class Plan(NamedTuple):
    """How a branch is run: its scale, whether it will be differentiated, and then computed again; see `residual`."""

    scale: float
    differentiable: bool
    recompute: bool


def parts_of(x: Tensor, kept: Tensor, branch: Any) -> List[Part]:
    """The kept samples of a batch (B, H, W, C), in parts whose tensors fit the caches."""
    size = max(CHUNK_BYTES * len(x) // max(x.numel() * x.element_size(), 1), 1)
    order, tokens = branch.order((x.shape[1], x.shape[2])), x.shape[1] * x.shape[2]
    if not kept.all():
        order = torch.arange(tokens) if order is None else order
        chosen = kept.nonzero().split(size) if kept.any() else ()
        return [Part(slice(None), (some * tokens + order).flatten(), len(some) * tokens) for some in chosen]
    parts = []
    for first in range(0, len(x), size):
        count = min(size, len(x) - first)
        rows = None if order is None else (torch.arange(count).unsqueeze(1) * tokens + order).flatten()
        parts.append(Part(slice(first, first + count), rows, count * tokens))
    return parts


def total_of(x: Tensor, kept: Tensor) -> Tensor:
    """Where the sums of the kept samples of a batch are written; the others are in it."""
    return torch.empty_like(x) if kept.all() else x.clone()


def residual(branch: Any, rate: float, recompute: bool, x: Tensor, weights: Weights) -> Tensor:
    """Adds a residual branch, which is dropped for random samples.

    Args:
        branch: what to add, a function of each sample.
        rate: the probability to drop the branch of a sample; the others are scaled by 1 / (1 - rate).
        recompute: whether the backward pass runs the branch again instead of keeping what it needs.
        x: (B, H, W, C).
        weights: of the branch: of its norm, of two linear layers, and others. Matrices are cast to the dtype of `x`.
    """
    kept = x.new_empty((x.shape[0], 1, 1, 1))
    kept = (kept.bernoulli_(1 - rate) if rate else kept.fill_(1)).flatten()
    plan = Plan(1 / (1 - rate), torch.is_grad_enabled(), recompute)
    apply = Folded.apply if _are_functorch_transforms_active() else Residual.apply
    return apply(branch, plan, kept, x.contiguous(), *weights)


class HostBlock(SwinTransformerBlock):
    """A block of Swin V1 that runs fast on a CPU; args as of the base class, without dropout.

    Attributes:
        recompute: whether the backward pass runs the branches again instead of keeping what it needs of them.
    """

    recompute = False

    def __init__(self, layer: LayerShape, shifted: bool, drop_path: float, style: BlockStyle):
        if style.drop or style.attn_drop:
            raise ValueError(f"dropout {style.drop}, of attention {style.attn_drop}: use SwinTransformerBlock")
        super().__init__(layer, shifted, drop_path, style)

    def attend(self, x: Tensor) -> Tensor:
        """The attention half: (B, H, W, C) -> (B, H, W, C)."""
        if not self._runs_whole(x):
            return super().attend(x)
        attention, eps, scale = self.attn, cast(float, self.norm1.eps), cast(float, self.attn.scale)
        branch = AttentionBranch(eps, attention.window, attention.shift, scale)
        added = attention.relative_bias(), attention.attn_mask
        weights = (*affine(self.norm1), *affine(attention.qkv), *affine(attention.proj), *added)
        return residual(branch, self.drop_path.rate * self.training, self.recompute, x, weights)

    def transform(self, x: Tensor) -> Tensor:
        """The MLP half: (B, H, W, C) -> (B, H, W, C)."""
        if not self._runs_whole(x):
            return super().transform(x)
        weights = (*affine(self.norm2), *affine(self.mlp.fc1), *affine(self.mlp.fc2))
        return residual(
            MlpBranch(cast(float, self.norm2.eps)), self.drop_path.rate * self.training, self.recompute, x, weights
        )

    def _runs_whole(self, x: Tensor) -> bool:
        """Whether nobody watches the parts of the block, and its numbers are those of a CPU."""
        return (
            x.device.type == "cpu"
            and x.dtype in DTYPES
            and not _len_torch_dispatch_stack()
            and not torch.jit.is_tracing()  # type: ignore[attr-defined]
            and not any(
                part._forward_hooks or part._forward_pre_hooks or part._backward_hooks
                for part in self.modules()
                if part is not self
            )
        )


def affine(module: Any) -> Tuple[Tensor, Optional[Tensor]]:
    """Weight and bias of a module."""
    return module.weight, module.bias


class HostLayer(BasicLayer):
    """The blocks of one resolution; args as of the base class."""

    block_type = HostBlock

    def __init__(
        self, layer: LayerShape, drop_path: Sequence[float], merge: bool, style: BlockStyle, use_checkpoint: bool
    ):
        super().__init__(layer, drop_path, merge, style, use_checkpoint=False)
        for block in self.blocks:
            cast(HostBlock, block).recompute = use_checkpoint
