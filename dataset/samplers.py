# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Which samples a process reads, in which order, as a function of seed, epoch and position alone.

A step of all processes together takes one block of an epoch's order, laid out as PopTorch consumes it: weight updates
(device iterations), then gradient accumulation, then all replicas, then the micro-batch. A process takes the columns of
its own replicas. The order thus depends neither on the number of workers or processes nor on restarts.
"""

import hashlib
import struct
from typing import Any, Iterator, NamedTuple, Tuple

import numpy as np
from torch.utils.data import Sampler

from common.errors import EXIT_USAGE, Refusal

Position = Tuple[int, int]  # (epoch, sample index)
PADDING = -1  # sample index of a row that only fills the last batch


def mix_seed(*numbers: int) -> int:
    """A 64-bit seed hashed from the numbers: similar numbers give unrelated seeds."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


class Layout(NamedTuple):
    """The shape of one step: the factors of its batch sizes, and the position of this process."""

    device_iterations: int
    accumulation: int
    local_replicas: int
    processes: int
    process: int
    micro_batch: int

    @classmethod
    def of(cls, options: Any, micro_batch: int) -> "Layout":
        """The layout that poptorch.Options and a micro-batch imply."""
        return cls(
            options.device_iterations,
            options.Training.gradient_accumulation,
            options.replication_factor,
            options.Distributed.numProcesses,
            options.Distributed.processId,
            micro_batch,
        )

    @property
    def replicas(self) -> int:
        """Replicas of all processes."""
        return self.local_replicas * self.processes

    @property
    def combined_batch(self) -> int:
        """Samples of one step in this process."""
        return self.global_batch // self.processes

    @property
    def global_batch(self) -> int:
        """Samples of one step in all processes together."""
        return self.device_iterations * self.accumulation * self.replicas * self.micro_batch

    def share(self, order: np.ndarray) -> np.ndarray:
        """This process's part of `order` (whole steps of all processes), combined batch after combined batch."""
        blocks = order.reshape(-1, self.replicas, self.micro_batch)
        first = self.process * self.local_replicas
        return blocks[:, first : first + self.local_replicas].reshape(-1)


class TrainingSampler(Sampler[Position]):
    """Yields (epoch, index) in an order shuffled anew each epoch; samples that fill no step are left out of that epoch.

    Each iteration is the next epoch, in whichever process it runs: asynchronous loaders need no communication.

    Args:
        samples: size of the data set.
        start_epoch, start_step: the first iteration begins with this step of this epoch.

    Raises:
        Refusal: if the data set cannot fill a single step.
    """

    def __init__(self, samples: int, layout: Layout, seed: int, start_epoch: int = 0, start_step: int = 0):
        self.steps = samples // layout.global_batch
        if self.steps == 0:
            raise Refusal(
                f"the data set's {samples} samples do not fill one step of {layout.global_batch}: micro-batch "
                f"{layout.micro_batch} x accumulation {layout.accumulation} x replicas {layout.replicas} x device "
                f"iterations {layout.device_iterations}; lower --batch-size, --ga or --replicas",
                EXIT_USAGE,
            )
        self._samples = samples
        self._layout = layout
        self._seed = seed
        self._epoch = start_epoch + start_step // self.steps
        self._skip = start_step % self.steps

    def __len__(self) -> int:
        """Samples of a full epoch in this process, even if the first epoch starts in the middle."""
        return self.steps * self._layout.combined_batch

    def __iter__(self) -> Iterator[Position]:
        # A generator: PyTorch makes iterators that it never starts, and they must not use up an epoch.
        epoch, skip = self._epoch, self._skip
        self._epoch, self._skip = epoch + 1, 0
        step = self._layout.global_batch
        order = epoch_order(self._samples, self._seed, epoch)[skip * step : self.steps * step]
        for index in self._layout.share(order):
            yield epoch, int(index)


class EvaluationSampler(Sampler[Position]):
    """Yields (0, index) of every sample once over all processes, and (0, PADDING) to fill the last step."""

    def __init__(self, samples: int, layout: Layout):
        self._samples = samples
        self._layout = layout

    def __len__(self) -> int:
        return -(-self._samples // self._layout.global_batch) * self._layout.combined_batch

    def order(self) -> np.ndarray:
        """The sample of each row of this process's batches, or PADDING (int64)."""
        order = np.full(len(self) * self._layout.processes, PADDING)
        order[: self._samples] = np.arange(self._samples)
        return self._layout.share(order)

    def __iter__(self) -> Iterator[Position]:
        for index in self.order():
            yield 0, int(index)


def step_samples(samples: int, layout: Layout, seed: int, epoch: int, step: int) -> np.ndarray:
    """Indices of the samples of one training step, in the order of this process's combined batch (int64)."""
    first = step * layout.global_batch
    return layout.share(epoch_order(samples, seed, epoch)[first : first + layout.global_batch])


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of range(samples) that is the order of an epoch (int64)."""
    # RandomState's streams are frozen: every version of numpy gives the same order.
    words = np.frombuffer(struct.pack("<Q", mix_seed(seed, epoch)), dtype=np.uint32)
    return np.random.RandomState(words).permutation(samples)
