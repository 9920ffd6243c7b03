# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Buffers that two processes share, in anonymous memory that the system frees when both have ended."""

import mmap
import os
import tempfile
from typing import List, Optional, Sequence

import torch

from ..errors import createPoptorchError
from .element import TensorSpec

_ALIGNMENT = 64  # bytes: a cache line
_MAX_BYTES = 2**62

Slot = List[torch.Tensor]


def allocate(specs: Sequence[TensorSpec], slots: int) -> int:
    """Allocates memory for `slots` copies of the given tensors. Returns its file descriptor.

    Raises:
        Error: if there is not enough memory.
    """
    size = slots * _slot_bytes(specs)
    available = _available_bytes()
    if size > min(_MAX_BYTES, available or _MAX_BYTES):
        raise _too_large(size, slots, f"{_megabytes(available or _MAX_BYTES)} are available")
    descriptor = _anonymous_file()
    try:
        os.ftruncate(descriptor, size)
        if hasattr(os, "posix_fallocate"):  # fails now if memory is missing: later, the process would be killed
            os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.close(descriptor)
        raise _too_large(size, slots, str(error)) from error
    return descriptor


def map_slots(descriptor: int, specs: Sequence[TensorSpec], slots: int) -> List[Slot]:
    """Returns the tensors of every slot in the memory of `descriptor`, which can be closed afterwards."""
    stride = _slot_bytes(specs)
    memory = mmap.mmap(descriptor, slots * stride)
    return [_map_slot(memory, specs, slot * stride) for slot in range(slots)]


def _map_slot(memory: mmap.mmap, specs: Sequence[TensorSpec], offset: int) -> Slot:
    tensors = []
    for spec in specs:
        tensors.append(_tensor_at(memory, spec, offset))
        offset += _padded_bytes(spec)
    return tensors


def _tensor_at(memory: mmap.mmap, spec: TensorSpec, offset: int) -> torch.Tensor:
    elements = _elements(spec)
    if elements == 0:
        return torch.empty(spec.shape, dtype=spec.dtype)
    return torch.frombuffer(memory, dtype=spec.dtype, count=elements, offset=offset).view(spec.shape)


def _elements(spec: TensorSpec) -> int:
    elements = 1
    for size in spec.shape:
        elements *= size
    return elements


def _padded_bytes(spec: TensorSpec) -> int:
    size = _elements(spec) * torch.empty(0, dtype=spec.dtype).element_size()
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _slot_bytes(specs: Sequence[TensorSpec]) -> int:
    return max(sum(map(_padded_bytes, specs)), _ALIGNMENT)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("poptorch_host")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _available_bytes() -> Optional[int]:
    """Returns the memory that is available without swapping, in bytes; None if unknown."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux, or a very old version
        return None


def _too_large(size: int, slots: int, reason: str) -> Exception:
    return createPoptorchError(
        f"no shared memory for {slots} buffers of {_megabytes(size // slots)}: {reason}; lower "
        "buffer_size or the combined batch size"
    )


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
