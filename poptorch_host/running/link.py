# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Copies between the host and a GPU that neither of them waits for."""

import torch

from ..inputs.arguments import send
from .outputs import HOST_DTYPES


class Link:
    """The way to a GPU and back.

    Inputs are copied by a stream of their own, so that those of a call move while the call before it still computes.
    The copy of an input in pinned memory returns at once; PyTorch keeps the memory until it is done.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor on the device, as `inputs.arguments.send`, which the work that follows there waits for."""
        if tensor.device.type != "cpu":
            return send(tensor, self._device)
        compute = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            copied = send(tensor, self._device)
        compute.wait_stream(self._stream)
        copied.record_stream(compute)  # its memory belongs to the other stream, which must not reuse it earlier
        return copied

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor in pinned memory that has the values of `tensor` once the device reaches the next `mark`."""
        dtype = HOST_DTYPES.get(tensor.dtype, tensor.dtype)
        kept = torch.empty(tensor.shape, dtype=dtype, pin_memory=True)
        return kept.copy_(tensor.detach().to(dtype), non_blocking=True)

    def mark(self) -> torch.cuda.Event:
        """Returns an event that happens when the device has done all that it was given so far."""
        event = torch.cuda.Event(blocking=True)  # who waits leaves its core to others
        event.record(torch.cuda.current_stream(self._device))
        return event
