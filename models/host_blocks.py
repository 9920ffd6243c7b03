# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The blocks of Swin V1 as a CPU runs them fastest: same numbers, parameters and names, other order of operations.

Each residual branch is one differentiable function with a backward pass written by hand:

- It runs for a few samples at a time, so that all that lies between two products stays in the caches.
- It runs for the samples only that stochastic depth keeps.
- Rolling and cutting into windows is one gather of rows, before the projection, and one after it.
- The backward pass computes all again but the first product, and with `recompute` that, too; never the last one.
- Without a backward pass, weights are packed once for all parts, and GELU belongs to the product before it.
- What lies between products takes one pass each; see kernels.py.

Whoever watches the operations or the parts of a block (PopTorch's compiler, exports, hooks) sees the ordinary block.
"""

import functools
from typing import Any, List, NamedTuple, Optional, Sequence, Tuple, Union, cast

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _len_torch_dispatch_stack
from torch.autograd.function import once_differentiable
from torch.nn import functional

from planning.geometry import LayerShape, Pair

from . import kernels
from .swin_transformer import BasicLayer, BlockStyle, SwinTransformerBlock

CHUNK_BYTES = 5 << 18  # of the samples that a branch runs for at a time; what is made of them is some times larger
DTYPES = (torch.float32, torch.bfloat16)

Weights = Sequence[Any]  # tensors; None for a bias that a layer does not have
Samples = Union[slice, Tensor]  # of a batch: a range, or indices


@functools.lru_cache(maxsize=None)
def window_order(grid: Pair, window: Pair, shift: Pair) -> Tuple[Tensor, Tensor]:
    """The token at each place of the windows of a shifted map, window by window, and the inverse: (tokens,), int64."""
    tokens = torch.arange(grid[0] * grid[1]).view(grid).roll((-shift[0], -shift[1]), (0, 1))
    parts = tokens.view(grid[0] // window[0], window[0], grid[1] // window[1], window[1])
    order = parts.transpose(1, 2).reshape(-1)
    return order, order.argsort()


@functools.lru_cache(maxsize=None)
def packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies by packed weights of a dtype here."""
    zeros = torch.zeros(1, 1, dtype=dtype)
    try:
        return linear(zeros, packed(zeros, 1), None).shape == zeros.shape
    except (AttributeError, RuntimeError):  # of a PyTorch or a processor that lacks the operation
        return False


def packed(weight: Tensor, rows: int) -> Tensor:
    """A matrix (out, in) as oneDNN multiplies by it, which it would else make of it in each product of `rows` rows."""
    return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows))


def linear(rows: Tensor, weight: Tensor, bias: Any, then: str = "none", out: Optional[Tensor] = None) -> Tensor:
    """A linear layer; with packed weights also the operation that follows it, "gelu", else to `out`."""
    if weight.is_mkldnn:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(rows, weight, bias, then, [], "none"))
    return functional.linear(rows, weight, bias, out=out)  # type: ignore[call-arg]


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

    def rows(self, index: int, gradient: Tensor) -> None:
        """Adds to a vector: (rows, out) -> (out,)."""
        if self._wanted[index]:
            self.add(index, gradient.sum(0))

    def add(self, index: int, gradient: Tensor) -> None:
        """Adds a gradient of the weight's own shape."""
        total = self._totals[index]
        if total is not None:
            total.add_(gradient)
        elif self._wanted[index]:
            self._totals[index] = gradient.float()

    def total(self, index: int, weight: Tensor) -> Tensor:
        """The sum for a weight, to be added to."""
        total = self._totals[index]
        if total is None:
            total = self._totals[index] = torch.zeros_like(weight, dtype=torch.float32)
        return total

    def norm_and_linear(self, gradient: Tensor, rows: Tensor, weights: Weights, eps: float) -> Tensor:
        """The gradient of rows (rows, C), given that of their norm's product with the first linear layer."""
        normed, *statistics = kernels.norm(rows, weights[0], weights[1], eps)
        self.product(2, gradient, normed)
        self.rows(3, gradient)
        inner, *others = kernels.norm_back(gradient @ weights[2], rows, statistics, weights[0], weights[1])
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

    def inner(self, x: Tensor, weights: Weights, out: Optional[Tensor] = None) -> Tensor:
        """Samples (B, H, W, C) -> what the backward pass needs of them, written to `out`, if any."""
        normed = kernels.norm(x.view(-1, x.shape[-1]), weights[0], weights[1], self.eps)[0]
        return linear(normed, weights[2], weights[3], "gelu", out)

    def outer(self, hidden: Tensor, x: Tensor, weights: Weights) -> Tensor:
        """The branch of the samples, from the result of `inner`."""
        active = hidden if weights[2].is_mkldnn else functional.gelu(hidden)
        return linear(active, weights[4], weights[5]).view(x.shape)

    def back(self, gradient: Tensor, hidden: Tensor, x: Tensor, weights: Weights, sums: Sums) -> Tensor:
        """The gradient of the samples, given that of their branch."""
        rows, outer = x.view(-1, x.shape[-1]), gradient.view(-1, x.shape[-1])
        inner, active = kernels.gelu_back(outer @ weights[4], hidden)
        sums.product(4, outer, active)
        sums.rows(5, outer)
        return sums.norm_and_linear(inner, rows, weights, self.eps).view(x.shape)


class AttentionBranch(NamedTuple):
    """Norm and window attention.

    Weights: those of the norm, of `qkv` and of `proj`, and the bias and mask (1 or windows, heads, tokens, tokens).
    """

    eps: float
    window: Pair
    shift: Pair
    heads: int
    scale: float

    def inner(self, x: Tensor, weights: Weights, out: Optional[Tensor] = None) -> Tensor:
        """As of MlpBranch: queries, keys and values (3, windows, heads, tokens, C / heads), as rows (..., 3 C)."""
        rows = x.view(-1, x.shape[-1]).index_select(0, self._rows(x)[0])
        normed = kernels.norm(rows, weights[0], weights[1], self.eps)[0]
        joint = linear(normed, weights[2], weights[3])
        parts = joint.view(-1, self.window[0] * self.window[1], 3, self.heads, x.shape[-1] // self.heads)
        out = torch.empty_like(joint) if out is None else out
        out.view(3, -1, self.heads, *parts.shape[1::3]).copy_(parts.permute(2, 0, 3, 1, 4))
        return out

    def outer(self, kept: Tensor, x: Tensor, weights: Weights) -> Tensor:
        """As of MlpBranch."""
        joined = self._attended(kept, weights[6])[2]
        return linear(joined, weights[4], weights[5]).index_select(0, self._rows(x)[1]).view(x.shape)

    def _attended(self, kept: Tensor, bias: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (3, windows x heads, tokens, C / heads), attention weights, and rows (..., C)."""
        parts = kept.view(3, -1, bias.shape[-1], kept.shape[1] // (3 * self.heads))
        scores = torch.bmm(parts[0], parts[1].transpose(1, 2))
        attention = kernels.softmax(scores, bias, self.scale)
        joined = (attention @ parts[2]).view(-1, self.heads, *parts.shape[2:]).transpose(1, 2)
        return parts, attention, joined.reshape(-1, kept.shape[1] // 3)

    def back(self, gradient: Tensor, kept: Tensor, x: Tensor, weights: Weights, sums: Sums) -> Tensor:
        """As of MlpBranch."""
        order, inverse_order = self._rows(x)
        parts, attention, joined = self._attended(kept, weights[6])
        outer = gradient.view(-1, gradient.shape[-1]).index_select(0, order)
        sums.product(4, outer, joined)
        sums.rows(5, outer)
        tokens, size = parts.shape[2:]
        inner = (outer @ weights[4]).view(-1, tokens, self.heads, size).transpose(1, 2).reshape(-1, tokens, size)
        found = torch.empty_like(parts)
        torch.bmm(attention.transpose(1, 2), inner, out=found[2])
        scores = torch.bmm(inner, parts[2].transpose(1, 2))
        scores = kernels.softmax_back(scores, attention, sums.total(6, weights[6]), self.scale)
        torch.bmm(scores, parts[1], out=found[0])
        torch.bmm(scores.transpose(1, 2), parts[0], out=found[1])
        found = found.view(3, -1, self.heads, tokens, size).permute(1, 3, 0, 2, 4).reshape(len(outer), -1)
        rows = x.view(-1, x.shape[-1]).index_select(0, order)
        inner = sums.norm_and_linear(found, rows, weights, self.eps)
        return inner.index_select(0, inverse_order).view(x.shape)

    def _rows(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """The rows of some samples in the order of their windows, and the inverse."""
        order, inverse = window_order((x.shape[1], x.shape[2]), self.window, self.shift)
        first = torch.arange(len(x)).mul_(len(order)).unsqueeze(1)
        return (first + order).flatten(), (first + inverse).flatten()


class Residual(torch.autograd.Function):
    """x + scale * branch(x) for the samples that are kept, x for the others."""

    @staticmethod
    def forward(ctx: Any, branch: Any, plan: "Plan", kept: Tensor, x: Tensor, *weights: Any) -> Tensor:
        """See `residual`."""
        scale, differentiable, recompute = plan
        linears = [None if weight is None else weight.to(x.dtype) for weight in weights[2:6]]
        narrow = [*weights[:2], *linears, *weights[6:]]
        parts = chunks(x, kept)
        if len(parts) > 1 and not differentiable and packs(x.dtype):
            rows = len(x[parts[0]].flatten(0, 2))
            narrow[2], narrow[4] = packed(narrow[2], rows), packed(narrow[4], rows)
        out, saved = total_of(x, parts), cast(List[Optional[Tensor]], [None] * len(parts))
        if differentiable and not recompute:  # all together, so that what is freed leaves no holes between them
            saved = [x.new_empty(len(kept[samples]) * x.shape[1] * x.shape[2], len(narrow[2])) for samples in parts]
        for samples, room in zip(parts, saved):
            part = taken(x, samples)
            add(out, samples, x, branch.outer(branch.inner(part, narrow, room), part, narrow), scale)
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
        sums, gradient, parts = Sums(ctx.needs_input_grad[4:]), gradient.contiguous(), chunks(x, kept)
        out = total_of(gradient, parts)
        for samples, needed in zip(parts, saved):
            part, outer = taken(x, samples), taken(gradient, samples)
            needed = ctx.branch.inner(part, weights) if needed is None else needed
            outer = outer if ctx.scale == 1 else outer * ctx.scale
            add(out, samples, gradient, ctx.branch.back(outer, needed, part, weights, sums))
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


def chunks(x: Tensor, kept: Tensor) -> List[Samples]:
    """The kept samples, those together that run together."""
    size = max(CHUNK_BYTES * len(x) // max(x.numel() * x.element_size(), 1), 1)
    if kept.all():
        return [slice(first, first + size) for first in range(0, len(x), size)]
    indices = kept.nonzero().flatten()
    return list(indices.split(size)) if len(indices) else []


def taken(x: Tensor, samples: Samples) -> Tensor:
    """Some samples of a batch."""
    return x[samples] if isinstance(samples, slice) else x.index_select(0, samples)


def total_of(x: Tensor, parts: Sequence[Samples]) -> Tensor:
    """Where `add` writes its sums: a batch like `x`, with the values of `x` if not all samples get one."""
    return torch.empty_like(x) if parts and isinstance(parts[0], slice) else x.clone()


def add(total: Tensor, samples: Samples, x: Tensor, values: Tensor, scale: float = 1.0) -> None:
    """Sets some samples of a batch, if they are indices equal to those of `x`, to those of `x` + scale * values."""
    if isinstance(samples, slice):
        torch.add(x[samples], values, alpha=scale, out=total[samples])
    else:
        total.index_add_(0, samples, values, alpha=scale)


def residual(branch: Any, rate: float, recompute: bool, x: Tensor, weights: Weights) -> Tensor:
    """Adds a residual branch, which is dropped for random samples.

    Args:
        branch: what to add, a function of each sample.
        rate: the probability to drop the branch of a sample; the others are scaled by 1 / (1 - rate).
        recompute: whether the backward pass runs the branch again instead of keeping what it needs.
        x: (B, H, W, C).
        weights: of the branch: of its norm, of two linear layers, and others. Those of the linear layers
            are cast to the dtype of `x`.
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
        branch = AttentionBranch(eps, attention.window, attention.shift, attention.heads, scale)
        weights = (*affine(self.norm1), *affine(attention.qkv), *affine(attention.proj), attention.bias())
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
