# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Selects and orders the samples of each process, as a function of seed, epoch and position alone.

A step of all processes consumes one block of the epoch's order, in PopTorch's layout: weight updates (device
iterations), gradient accumulation, replicas, micro-batch. A process takes the columns of its own replicas. So the order
does not depend on the number of workers or processes, or on restarts.

If an epoch draws a sample repeatedly, each draw has its own random numbers: a position contains the epoch and the draw.
"""

import hashlib
import struct
from typing import Any, Iterator, NamedTuple, Optional, Tuple

import numpy as np
from torch.utils.data import Sampler

from common.errors import EXIT_USAGE, Refusal
from dataset.balance import balanced_order

Position = Tuple[int, int]  # (epoch and draw, sample index); see `positions`
NEXT_DRAW = 1 << 32  # added to the epoch for each earlier draw of the same sample
PADDING = -1  # sample index of rows that only fill the last batch


def mix_seed(*numbers: int) -> int:
    """A 64-bit seed, hashed from the numbers so that similar numbers give unrelated seeds."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


class Drawing(NamedTuple):
    """How an epoch draws its samples, as many as the data set has; by default, every sample once.

    Attributes:
        repeats: number of consecutive draws of a sample, each augmented differently (AUG.REPEATS).
        labels: of all samples (samples,), to draw every class equally often (DATA.BALANCED_SAMPLING).
    """

    repeats: int = 1
    labels: Optional[np.ndarray] = None


ONCE = Drawing()


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
        """The layout of poptorch.Options and a micro-batch size."""
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
        """Replicas over all processes."""
        return self.local_replicas * self.processes

    @property
    def combined_batch(self) -> int:
        """Samples per step in this process."""
        return self.global_batch // self.processes

    @property
    def global_batch(self) -> int:
        """Samples per step over all processes."""
        return self.device_iterations * self.accumulation * self.replicas * self.micro_batch

    def share(self, order: np.ndarray) -> np.ndarray:
        """This process's part of `order` (whole steps of all processes), as consecutive combined batches."""
        blocks = order.reshape(-1, self.replicas, self.micro_batch)
        first = self.process * self.local_replicas
        return blocks[:, first : first + self.local_replicas].reshape(-1)

    def spread(self, order: np.ndarray) -> np.ndarray:
        """`order` with consecutive samples in different replicas; each block of micro-batches keeps its samples."""
        return order.reshape(-1, self.micro_batch, self.replicas).transpose(0, 2, 1).reshape(-1)


class TrainingSampler(Sampler[Position]):
    """Yields (epoch, index), reshuffled each epoch; samples beyond the last full step are skipped in that epoch.

    Each iteration is the next epoch, in whichever process it runs: asynchronous loaders need no communication.

    Args:
        samples: size of the data set.
        start_epoch, start_step: the first iteration starts at this step of this epoch.
        drawing: how an epoch draws samples.

    Raises:
        Refusal: if the data set cannot fill a single step.
    """

    def __init__(
        self,
        samples: int,
        layout: Layout,
        seed: int,
        start_epoch: int = 0,
        start_step: int = 0,
        drawing: Drawing = ONCE,
    ):
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
        self._drawing = drawing
        self._epoch = start_epoch + start_step // self.steps
        self._skip = start_step % self.steps

    def __len__(self) -> int:
        """Samples of a full epoch in this process, even if the first epoch starts in the middle."""
        return self.steps * self._layout.combined_batch

    def __iter__(self) -> Iterator[Position]:
        # A generator, since PyTorch creates iterators without starting them, which must not use up an epoch.
        epoch, skip = self._epoch, self._skip
        self._epoch, self._skip = epoch + 1, 0
        order = epoch_order(self._samples, self._seed, epoch, self._drawing)
        draws, indices = positions(order, epoch, self._layout, slice(skip, self.steps), self._drawing)
        for draw, index in zip(draws, indices):
            yield int(draw), int(index)


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


def step_samples(samples: int, layout: Layout, seed: int, epoch: int, step: int, drawing: Drawing = ONCE) -> np.ndarray:
    """Indices of the samples of one training step, in the order of this process's combined batch (int64)."""
    order = epoch_order(samples, seed, epoch, drawing)
    return positions(order, epoch, layout, slice(step, step + 1), drawing)[1]


def positions(
    order: np.ndarray, epoch: int, layout: Layout, steps: slice, drawing: Drawing
) -> Tuple[np.ndarray, np.ndarray]:
    """The positions of some steps of an epoch in this process: (epoch and draw, sample index), two int64 arrays."""
    part = slice(steps.start * layout.global_batch, steps.stop * layout.global_batch)
    draws = np.full_like(order, epoch)
    if drawing.repeats > 1 or drawing.labels is not None:
        draws += NEXT_DRAW * earlier_draws(order)
    draws, indices = draws[part], order[part]
    if drawing.repeats > 1:
        draws, indices = layout.spread(draws), layout.spread(indices)
    return layout.share(draws), layout.share(indices)


def epoch_order(samples: int, seed: int, epoch: int, drawing: Drawing = ONCE) -> np.ndarray:
    """The samples of an epoch in order (samples,) int64: a permutation, unless `drawing` repeats some."""
    # RandomState's streams are frozen, so every version of numpy gives the same order.
    words = np.frombuffer(struct.pack("<Q", mix_seed(seed, epoch)), dtype=np.uint32)
    generator = np.random.RandomState(words)
    if drawing.labels is not None:
        return balanced_order(drawing.labels, generator)
    return np.repeat(generator.permutation(samples), drawing.repeats)[:samples]


def earlier_draws(order: np.ndarray) -> np.ndarray:
    """How often the sample at each position was drawn before it (int64)."""
    by_sample = np.argsort(order, kind="stable")
    ranks = np.arange(len(order))
    is_first = np.diff(order[by_sample], prepend=-1) != 0
    counts = np.empty_like(ranks)
    counts[by_sample] = ranks - np.maximum.accumulate(np.where(is_first, ranks, 0))
    return counts
