# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The device's random numbers: a generator state of its own, so that what the host draws in between changes nothing."""

import contextlib
import secrets
from typing import Iterator, List, Optional

import torch

from ..errors import createPoptorchError

_WORD = torch.int64
_WORD_BYTES = 8
_LARGEST_SEED = 2**63 - 1


class DeviceRandomness:
    """The state of a device's generator. As a context: inside, PyTorch draws on behalf of the device.

    Args:
        device: whose default generator draws while a program runs.
        seed: None for one that nobody knows.
    """

    def __init__(self, device: torch.device, seed: Optional[int]) -> None:
        self.seed = secrets.randbelow(_LARGEST_SEED) if seed is None else seed
        self._generator = _default_generator(device)
        self._state = torch.Generator(device).manual_seed(self.seed).get_state()

    def __enter__(self) -> None:
        """From here on PyTorch draws on behalf of the device."""
        self._host_state = self._generator.get_state()
        self._generator.set_state(self._state)

    def __exit__(self, *exception: object) -> None:
        """And from here on for the host, which goes on where it was."""
        self._state = self._generator.get_state()
        self._generator.set_state(self._host_state)

    @contextlib.contextmanager
    def rehearsing(self) -> Iterator[None]:
        """A context like this one, but what is drawn inside will be drawn again."""
        before = self._state
        try:
            with self:
                yield
        finally:
            self._state = before

    @property
    def state(self) -> List[int]:
        """The seed, then the words of the generator's state."""
        padding = -self._state.numel() % _WORD_BYTES
        padded = torch.cat([self._state, torch.zeros(padding, dtype=torch.uint8)])
        return [self.seed] + padded.view(_WORD).tolist()

    @state.setter
    def state(self, words: List[int]) -> None:
        expected = len(self.state)
        if len(words) != expected:
            raise createPoptorchError(f"rng_state must have {expected} numbers on this device, not {len(words)}")
        self.seed = words[0]
        self._state = torch.tensor(words[1:], dtype=_WORD).view(torch.uint8)[: self._state.numel()].clone()


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        torch.cuda.init()
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator
