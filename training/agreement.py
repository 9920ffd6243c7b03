# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Checks that all processes of a run hold the same weights, since they apply the same updates."""

from typing import List, Sequence

import torch

import accelerator
from common.errors import EXIT_RESOURCE, Refusal
from training.building import Run
from training.progress import Progress

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def bit_sums(run: Run) -> List[int]:
    """The sum of each weight's bits, read as integers; empty if there is nothing to compare.

    Pipeline stages hold different weights, and IPU replicas round independently.
    """
    if run.launch.processes == 1 or run.launch.stages > 1 or accelerator.is_ipu():
        return []
    return [_bit_sum(weight) for weight in run.model.state_dict().values()]


def check_agreement(run: Run, progress: Progress, sums: Sequence[Sequence[int]]) -> None:
    """Compares the `bit_sums` of all processes.

    Raises:
        Refusal: if they differ: memory, a processor or a link has silently corrupted a value.
    """
    for process, theirs in enumerate(sums):
        names = zip(run.model.state_dict(), sums[0], theirs)
        differing = [name for name, expected, found in names if found != expected]
        if differing:
            raise Refusal(
                f"process {process} has other weights than process 0 at update {progress.update} ({differing[0]} and "
                f"{len(differing) - 1} more): the hardware of one of them has corrupted a value; nothing was saved: "
                "check the machines, then run the same command again to resume from the last checkpoint",
                EXIT_RESOURCE,
            )


def _bit_sum(weight: torch.Tensor) -> int:
    bits = weight.detach().contiguous().view(-1).view(INTEGERS[weight.element_size()])
    return int(bits.sum(dtype=torch.int64))
