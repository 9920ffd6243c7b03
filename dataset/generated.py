# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Random images, for measuring training without reading files."""

from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch.utils.data import Dataset

from dataset.samplers import mix_seed
from dataset.transforms import Normalise


class GeneratedImages(Dataset[Tuple[torch.Tensor, int]]):
    """`samples` noise images with random labels; sample i is a function of (seed, i) alone.

    Args:
        classes: number of classes.
        shape: (channels, height, width).
        dtype: uint8, or a floating-point type, for which bytes are normalised by `mean` and `std`.
    """

    def __init__(
        self,
        samples: int,
        classes: int,
        shape: Tuple[int, int, int],
        dtype: torch.dtype,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
    ):
        self._samples = samples
        self._shape = shape
        self._dtype = dtype
        self._normalise = Normalise(mean, std)
        self._seed = seed
        self.classes: List[str] = [str(label) for label in range(classes)]

    def __len__(self) -> int:
        return self._samples

    def name(self, index: int) -> str:
        """A name for messages."""
        return f"generated image {index}"

    def path(self, index: int) -> str:
        """As `name`: there is no file."""
        return self.name(index)

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, int]:
        return self.sample(0, index)

    def sample(self, epoch: int, index: int, into: Optional[torch.Tensor] = None) -> Tuple[torch.Tensor, int]:
        """Image and label, the same in every epoch, without augmentation. `into`: as in ImageDataset."""
        if not 0 <= index < self._samples:
            raise IndexError(index)
        generator = np.random.default_rng(mix_seed(self._seed, index))
        label = int(generator.integers(len(self.classes)))
        image = torch.from_numpy(generator.integers(256, size=self._shape, dtype=np.uint8))
        if self._dtype != torch.uint8:
            image = self._normalise(image).to(self._dtype)
        return image if into is None else into.copy_(image), label

    def blank(self) -> torch.Tensor:
        """An image of zeros."""
        return torch.zeros(self._shape, dtype=self._dtype)
