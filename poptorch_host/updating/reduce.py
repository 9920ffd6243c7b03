# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Sums gradients over processes in buckets, overlapped with the last backward pass of an update.

The method is that of Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training":
gradients are collected in buckets in about the order in which they become ready, and all processes reduce the buckets
in the same order.
"""

import os
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
import torch.distributed as dist

from .. import host
from .._environment import number_in
from ..errors import createPoptorchError
from ..options import Options

BUCKET_BYTES = 25 * 2**20
_BYTES_PER_NUMBER = 4  # sums are float32, whatever the dtype of the gradients


def process_group(options: Options, device: torch.device) -> "Optional[dist.ProcessGroup]":
    """Returns the group of all processes, or None for a single process.

    Initialises torch.distributed from the environment of a launcher such as torchrun, unless it is initialised: with
    nccl between CUDA devices, else gloo.

    Raises:
        Error: if the options and the group differ in the number of processes, or the environment is incomplete
            or has a port that is no number.
    """
    processes = options.Distributed.numProcesses
    if processes == 1:
        return None
    if not dist.is_available():
        raise createPoptorchError(f"Options say {processes} processes, but this PyTorch is built without distributed")
    if not dist.is_initialized():
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise createPoptorchError(
                f"Options say {processes} processes, but {' and '.join(missing)} are not set: "
                "start the program with torchrun, or call torch.distributed.init_process_group"
            )
        number_in("MASTER_PORT", 0)  # PyTorch's error for another word does not name it
        if device.type == "cuda":
            torch.cuda.set_device(device)  # which collectives of objects use, and whatever names no device
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # programs reduce host tensors too
        limit: Dict[str, Any] = {} if host.timeout() is None else {"timeout": host.timeout()}  # torch 2.0 takes no None
        dist.init_process_group(backend, rank=options.Distributed.processId, world_size=processes, **limit)
    if dist.get_world_size() != processes:
        raise createPoptorchError(f"Options say {processes} processes, the process group has {dist.get_world_size()}")
    return dist.group.WORLD


def agree(number: int, device: torch.device, group: "dist.ProcessGroup") -> int:
    """Returns the `number` of the first process of the group, in all processes."""
    shared = torch.tensor(number, dtype=torch.int64, device=device)
    dist.broadcast(shared, src=dist.get_global_rank(group, 0), group=group)
    return int(shared.item())


def add_up(number: float, device: torch.device, group: "dist.ProcessGroup") -> float:
    """Returns the sum of `number` over the processes of the group, in all processes."""
    shared = torch.tensor(number, dtype=torch.float64, device=device)
    dist.all_reduce(shared, group=group)
    return shared.item()


@dataclass
class _Bucket:
    """A flat buffer with the gradients of some tensors, followed by a flag for each: whether it has a gradient."""

    members: List[int]
    buffer: torch.Tensor
    views: List[torch.Tensor]
    waiting: int = 0
    seen: List[bool] = field(default_factory=list)
    is_whole: bool = True
    work: Any = None

    def clear(self) -> None:
        self.waiting = len(self.members)
        self.seen = [False] * len(self.members)
        self.is_whole = True
        self.work = None

    def flags(self) -> torch.Tensor:
        return self.buffer[-len(self.members) :]

    def used(self) -> List[float]:
        """Whether any process has each gradient. The sums are read, for which a GPU waits, only if one is missing."""
        return [1.0] * len(self.members) if self.is_whole else self.flags().tolist()


class GradientReducer:
    """Sums the gradients of `tensors` over the processes of a group.

    All processes must pass the same tensors in the same order. A missing gradient counts as zeros; if it is missing in
    all processes, the sum is None.

    Args:
        tensors: leaves that require gradients.
        group: the process group.
        collect: returns the gradient of the tensor at an index after the backward pass has computed it, or None.
        bucket_bytes: the size of a bucket (default: BUCKET_BYTES).
    """

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        group: "dist.ProcessGroup",
        collect: Callable[[int], Optional[torch.Tensor]],
        bucket_bytes: Optional[int] = None,
    ) -> None:
        self._group = group
        self._collect = collect
        self._buckets = _make_buckets(tensors, bucket_bytes or BUCKET_BYTES)
        self._place = {
            index: (bucket, position) for bucket in self._buckets for position, index in enumerate(bucket.members)
        }
        self._armed = False
        self._next = 0
        # A leaf has no reference to the node that accumulates its gradient, which must stay alive for its hook.
        self._nodes = [_accumulation_node(tensor) for tensor in tensors]
        self._handles = [
            node.register_hook(lambda *_, index=index: self._ready(index)) for index, node in enumerate(self._nodes)
        ]

    def arm(self) -> None:
        """Makes the next backward pass the last of the update: gradients are reduced as soon as they are complete."""
        self._armed = True
        self._next = 0
        for bucket in self._buckets:
            bucket.clear()

    def finish(self) -> List[Optional[torch.Tensor]]:
        """Reduces the remaining gradients and returns all sums: float32 views that are valid until the next `arm`."""
        if not self._armed:
            self.arm()
        self._armed = False
        for bucket in self._buckets[self._next :]:
            for position, index in enumerate(bucket.members):
                self._fill(bucket, position, index)
            self._send(bucket)
        sums: List[Optional[torch.Tensor]] = [None] * len(self._place)
        for bucket in self._buckets:
            bucket.work.wait()
            used = bucket.used()
            for position, index in enumerate(bucket.members):
                sums[index] = bucket.views[position] if used[position] else None
        return sums

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()

    def _ready(self, index: int) -> None:
        """Called after the backward pass has computed the gradient of the tensor at `index`."""
        if not self._armed:
            return
        bucket, position = self._place[index]
        if bucket.seen[position]:
            raise createPoptorchError(
                f"Gradient {index} was completed twice in one backward pass (re-entrant "
                "checkpointing?): it cannot be summed over processes while backward runs"
            )
        self._fill(bucket, position, index)
        while self._next < len(self._buckets) and self._buckets[self._next].waiting == 0:
            self._send(self._buckets[self._next])
            self._next += 1

    def _fill(self, bucket: _Bucket, position: int, index: int) -> None:
        if bucket.seen[position]:
            return
        bucket.seen[position] = True
        bucket.waiting -= 1
        gradient = self._collect(index)
        if gradient is None:
            bucket.is_whole = False
            bucket.views[position].zero_()
        else:
            bucket.views[position].copy_(gradient)
        bucket.flags()[position] = float(gradient is not None)

    def _send(self, bucket: _Bucket) -> None:
        bucket.work = dist.all_reduce(bucket.buffer, group=self._group, async_op=True)


def _make_buckets(tensors: Sequence[torch.Tensor], bucket_bytes: int) -> List[_Bucket]:
    """Returns buckets in reverse order of definition, which is about the order of the backward pass."""
    buckets: List[_Bucket] = []
    members: List[int] = []
    size = 0
    for index in reversed(range(len(tensors))):
        members.append(index)
        size += tensors[index].numel() * _BYTES_PER_NUMBER
        if size >= bucket_bytes or index == 0:
            buckets.append(_make_bucket([tensors[member] for member in members], members))
            members, size = [], 0
    return buckets


def _make_bucket(tensors: List[torch.Tensor], members: List[int]) -> _Bucket:
    sizes = [tensor.numel() for tensor in tensors]
    buffer = torch.empty(sum(sizes) + len(members), dtype=torch.float32, device=tensors[0].device)
    pieces = torch.split(buffer[: sum(sizes)], sizes)
    return _Bucket(members, buffer, [_like(piece, tensor) for piece, tensor in zip(pieces, tensors)])


def _like(piece: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Returns a view of `piece` with the strides of the gradient of `tensor`, which fused updates rely on."""
    layout = torch.empty_like(tensor, device="meta")
    return piece.as_strided(layout.shape, layout.stride())


def _accumulation_node(tensor: torch.Tensor) -> Any:
    """Returns the node that accumulates the gradient of a leaf. Its hooks run after it in every version of torch."""
    with torch.enable_grad():
        view: Any = tensor.expand_as(tensor).grad_fn
        return view.next_functions[0][0]
