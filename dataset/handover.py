# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Shared memory in which a worker hands batches over, kept and used again as soon as a batch is gone.

Fresh memory for every batch costs more than augmenting it, since the system clears its pages and removes them again. A
worker keeps a few pieces instead. The last byte of each tells whether it is taken: the worker sets it, and the receiver
clears it when the last tensor that uses the memory is gone, however long that takes. While all are taken, batches go in
memory of their own.
"""

import os
import weakref
from typing import Any, Callable, List, NamedTuple, Optional, Tuple

import torch

FLAG_BYTES = 64  # the last of them is the flag


class KeptMemory:
    """The memory that a worker keeps, as a part of its data set.

    Args:
        pieces: how many batches it is for.
    """

    def __init__(self, pieces: int):
        self._pieces = pieces
        self._memory: List[torch.Tensor] = []  # each (size + FLAG_BYTES,) uint8

    def take(self, size: int) -> Optional[torch.Tensor]:
        """A piece for `size` bytes, which come first in it; None while all are taken."""
        self._memory = [memory for memory in self._memory if memory[-1] or len(memory) == size + FLAG_BYTES]
        free = [memory for memory in self._memory if not memory[-1]]
        if not free and len(self._memory) < self._pieces:
            free = [shared_bytes(size + FLAG_BYTES).fill_(0)]
            self._memory += free
        if not free:
            return None
        free[0][-1] = 1
        return free[0]


class HandedOver(NamedTuple):
    """A tensor at the beginning of a piece of kept memory, on its way to the receiver, where it becomes a tensor."""

    memory: torch.Tensor
    shape: Tuple[int, ...]
    dtype: torch.dtype

    def __reduce__(self) -> Tuple[Callable[..., torch.Tensor], Tuple[Any, ...]]:
        return _receive, tuple(self)


def _receive(memory: torch.Tensor, shape: Tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    array = memory.numpy()[:-FLAG_BYTES]
    weakref.finalize(array, _free, memory, os.getpid()).atexit = False
    return torch.from_numpy(array).view(dtype).view(shape)  # keeps the array as long as anything uses its memory


def _free(memory: torch.Tensor, process: int) -> None:
    if os.getpid() == process:  # a process forked from the receiver has no say
        memory[-1] = 0


def shared_bytes(size: int) -> torch.Tensor:
    """New memory that workers share with the process that they work for, (size,) uint8."""
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
