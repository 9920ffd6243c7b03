# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Shared memory in which workers hand over batches, reused as soon as a batch is freed.

New memory for every batch costs more than augmenting it, since the system clears its pages and removes them again. A
worker keeps a few pieces instead. The last byte of each is a flag: the worker sets it when the piece is used, and the
receiver clears it when the last tensor in this memory is freed. While all pieces are in use, batches get new memory.
"""

import os
import weakref
from typing import Any, Callable, List, NamedTuple, Optional, Tuple

import torch

FLAG_BYTES = 64  # the flag is the last one


class KeptMemory:
    """The memory kept by a worker, as a part of its data set.

    Args:
        pieces: number of batches that it holds.
    """

    def __init__(self, pieces: int):
        self._pieces = pieces
        self._memory: List[torch.Tensor] = []  # each (size + FLAG_BYTES,) uint8

    def take(self, size: int) -> Optional[torch.Tensor]:
        """A piece that starts with `size` bytes; None while all are in use."""
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
    """A tensor at the start of a piece of kept memory, on its way to the receiver."""

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
    """New memory shared by workers with the main process, (size,) uint8."""
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
