# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The random number generator of a device, which is independent of the host's."""

import contextlib
import math
import secrets
from typing import Iterator, List, Optional

import torch

from .._logging import logger
from ..errors import createPoptorchError

_WORD = torch.int64
_WORD_BYTES = 8
_LARGEST_SEED = 2**63 - 1


class DeviceRandomness:
    """The state of a device's generator. As a context manager, makes it the state of PyTorch's default generator.

    Args:
        device: the PyTorch device that programs run on.
        seed: the seed; None for a random one.
    """

    def __init__(self, device: torch.device, seed: Optional[int]) -> None:
        self.seed = secrets.randbelow(_LARGEST_SEED) if seed is None else seed
        logger.debug("Setting random seed to: %d", self.seed)
        self._generator = _default_generator(device)
        self._state = torch.Generator(device).manual_seed(self.seed).get_state()

    def __enter__(self) -> None:
        """Sets PyTorch's generator to the device's state."""
        self._host_state = self._generator.get_state()
        self._generator.set_state(self._state)

    def __exit__(self, *exception: object) -> None:
        """Sets PyTorch's generator back to the host's state."""
        self._state = self._generator.get_state()
        self._generator.set_state(self._host_state)

    @contextlib.contextmanager
    def rehearsing(self) -> Iterator[None]:
        """A context manager like the object itself, which restores the device's state at exit."""
        before = self._state
        try:
            with self:
                yield
        finally:
            self._state = before

    @property
    def state(self) -> List[int]:
        """The seed followed by the words of the generator's state."""
        logger.debug("Reading random seed")
        logger.debug("Reading RNG state")
        padding = -self._state.numel() % _WORD_BYTES
        padded = torch.cat([self._state, torch.zeros(padding, dtype=torch.uint8)])
        return [self.seed] + padded.view(_WORD).tolist()

    @state.setter
    def state(self, words: List[int]) -> None:
        expected = 1 + math.ceil(self._state.numel() / _WORD_BYTES)
        if len(words) != expected:
            raise createPoptorchError(f"rng_state must have {expected} numbers on this device, but has {len(words)}")
        logger.debug("Setting random seed to: %d", words[0])
        logger.debug("Setting RNG state")
        self.seed = words[0]
        self._state = torch.tensor(words[1:], dtype=_WORD).view(torch.uint8)[: self._state.numel()].clone()


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        torch.cuda.init()
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator
