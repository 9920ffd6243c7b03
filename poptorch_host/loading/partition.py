# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Partitions a dataset between processes."""

from typing import Iterator, Tuple

import torch
from torch.utils.data import Sampler


def share_of(samples: int, process: int, processes: int, combined_batch: int, drop_last: bool) -> Tuple[int, int]:
    """Returns the first sample and the number of samples that a process reads.

    With `drop_last`, all processes read the same number of full combined batches, and the rest of the dataset is
    dropped. Otherwise, every sample is read, and the first processes may read one more.

    Raises:
        ZeroDivisionError: with `drop_last`, if the dataset has less than one combined batch for each process.
    """
    if drop_last:
        count = combined_batch * (samples // (combined_batch * processes))
        if count == 0:
            raise ZeroDivisionError(
                f"the dataset has {samples} samples, less than a combined batch of "
                f"{combined_batch} for each of {processes} processes"
            )
        return process * count, count
    count, longer = divmod(samples, processes)
    return process * count + min(process, longer), count + (process < longer)


class GlobalShuffle(Sampler[int]):
    """Samples a process's share of a permutation of the whole dataset, which is the same in all processes.

    Each epoch has a new permutation. If the shares do not cover it, they omit its beginning in the first and every
    second epoch after it, and its end in the others.

    Args:
        samples: the size of the dataset.
        share: the first position in the permutation and the number of positions of this process.
        seed: the seed of the permutations, the same in all processes.
        leaves_out: whether the shares of all processes do not cover the dataset.
    """

    def __init__(self, samples: int, share: Tuple[int, int], seed: int, leaves_out: bool) -> None:
        self._samples = samples
        self._first, self._count = share
        self._shift = samples % self._count if leaves_out else 0
        self._shifted = True
        self._generator_state = torch.Generator().manual_seed(seed).get_state()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        # A generator function: PyTorch creates iterators that it never starts, which must not draw a permutation.
        first = self._first + (self._shift if self._shifted else 0)
        self._shifted = not self._shifted
        yield from self._permutation()[first : first + self._count].tolist()

    def _permutation(self) -> torch.Tensor:
        generator = torch.Generator()
        generator.set_state(self._generator_state)
        permutation = torch.randperm(self._samples, generator=generator)
        self._generator_state = generator.get_state()
        return permutation
