# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Which samples of a data set belong to one of several processes."""

from typing import Iterator, Tuple

import torch
from torch.utils.data import Sampler


def share_of(samples: int, process: int, processes: int, combined_batch: int, drop_last: bool) -> Tuple[int, int]:
    """The part of a data set that a process reads: its first sample and how many there are.

    With `drop_last` all processes read the same number of whole combined batches, and the rest of the data set is left
    out. Without, every sample is read, and the first processes read one more where the numbers do not divide.

    Raises:
        ZeroDivisionError: with `drop_last`, for a data set that does not give every process a combined batch.
    """
    if drop_last:
        count = combined_batch * (samples // (combined_batch * processes))
        if count == 0:
            raise ZeroDivisionError(
                f"the data set has {samples} samples, less than a combined batch of "
                f"{combined_batch} for each of {processes} processes"
            )
        return process * count, count
    count, longer = divmod(samples, processes)
    return process * count + min(process, longer), count + (process < longer)


class GlobalShuffle(Sampler):
    """A process's share of a permutation that all processes draw alike: of the whole data set, another one each epoch.

    Where shares leave samples out, these lie at the end of the permutation in every second epoch, and at its beginning
    in the others, the first included.

    Args:
        samples: size of the data set.
        share: first place in the permutation, and how many places, of this process.
        seed: of the permutations; the same in all processes.
        leaves_out: whether the shares of all processes together are smaller than the data set.
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
        # A generator: PyTorch makes iterators that it never starts, and they must not use up a permutation.
        first = self._first + (self._shift if self._shifted else 0)
        self._shifted = not self._shifted
        yield from self._permutation()[first : first + self._count].tolist()

    def _permutation(self) -> torch.Tensor:
        generator = torch.Generator()
        generator.set_state(self._generator_state)
        permutation = torch.randperm(self._samples, generator=generator)
        self._generator_state = generator.get_state()
        return permutation
