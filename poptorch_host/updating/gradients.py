# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The weights of an update, and the accumulation of the gradients of its micro-batches."""

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

import torch

from .._logging import logger
from ..enums import MeanReductionStrategy, ReductionType
from ..options import Options
from ..precision.rounding import store
from .latch import Latched

GRADIENT_PREFIX = "Gradient___"

# (name in named_parameters(), parameter of the user's model, tensor on the device)
Parameters = Sequence[Tuple[str, torch.nn.Parameter, torch.Tensor]]


@dataclass
class Slot:
    """A weight that is updated.

    Attributes:
        name: the name in the model's named_parameters().
        weight: the tensor on the device, in whose `.grad` the backward pass accumulates the gradient.
        master: the float32 tensor that the update rule works on: the weight itself, or a temporary copy of one in half.
        group: the index of its parameter group; that after the last one if it is in none.
        accumulator_type: the dtype of the gradient accumulator; None if `.grad` is the accumulator.
        accumulator: the sum or mean of the gradients so far; None between updates.
    """

    name: str
    weight: torch.Tensor
    master: torch.Tensor
    group: int
    accumulator_type: Optional[torch.dtype]
    accumulator: Optional[torch.Tensor] = None


def make_slots(latched: Latched, parameters: Parameters, micro_batches: int) -> List[Slot]:
    """Returns the weights to update, in the order of `parameters`, and disables gradients of all others.

    Args:
        latched: the latched optimizer.
        parameters: the parameters of the model.
        micro_batches: the number of micro-batches per update in this process.
    """
    group_of = {id(member): index for index, members in enumerate(latched.members) for member in members}
    slots, left_out = [], []
    for name, parameter, weight in parameters:
        weight.requires_grad_(parameter.requires_grad)
        if parameter.requires_grad and id(parameter) not in group_of:
            left_out.append(name)
        if parameter.requires_grad:
            slots.append(
                Slot(
                    name,
                    weight,
                    _master(weight),
                    group_of.get(id(parameter), len(latched.groups)),
                    _accumulator_type(latched, weight, micro_batches),
                )
            )
    if left_out:
        logger.warning(
            "%d parameters require gradients and are in no group of the optimizer, such as %s: they are updated with "
            "the optimizer's defaults, as on a device. Set requires_grad to False on what is not to be trained",
            len(left_out),
            left_out[0],
        )
    if not slots:
        logger.warning("No parameter of the model requires a gradient: nothing will be trained")
    return slots


def check_members(latched: Latched, parameters: Parameters) -> None:
    """Raises KeyError, as PopTorch does, if a group has a parameter that the model does not have."""
    known = {id(parameter) for _, parameter, _ in parameters}
    for index, members in enumerate(latched.members):
        for member in members:
            if id(member) not in known:
                raise KeyError(
                    f"group {index} of the optimizer has a parameter of shape {tuple(member.shape)} that the model "
                    "does not have: make the optimizer of model.parameters()"
                )


def _master(weight: torch.Tensor) -> torch.Tensor:
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return weight
    return torch.nn.Parameter(torch.empty(0, dtype=torch.float32, device=weight.device))


def _accumulator_type(latched: Latched, weight: torch.Tensor, micro_batches: int) -> Optional[torch.dtype]:
    """Returns None if `.grad` can be the accumulator: for one micro-batch, float32 throughout, or combined SGD."""
    dtype: Optional[torch.dtype] = latched.structure["accum_type"]
    if micro_batches == 1 or dtype is None or (dtype == torch.float32 and weight.dtype != torch.float16):
        return None
    return dtype


class Reduction:
    """How the gradients of micro-batches and replicas are combined.

    For a mean, the strategy PostAndLoss divides the loss by the accumulation factor, Running keeps typed accumulators
    at the mean so far, and the remaining division is made at the end.

    Attributes:
        micro_batches: the number of micro-batches per update in this process.
        running: whether typed accumulators hold running means.
        root_factor: the factor of every loss gradient.
    """

    def __init__(self, options: Options) -> None:
        training, strategy = options.Training, options.Training.meanAccumulationAndReplicationReductionStrategy
        accumulation, replicas = training.gradient_accumulation, options.replication_factor
        self.micro_batches = accumulation * replicas
        self._processes = options.Distributed.numProcesses
        self._mean = training.accumulation_and_replication_reduction_type == ReductionType.Mean
        self.running = self._mean and strategy == MeanReductionStrategy.Running
        before = accumulation if self._mean and strategy == MeanReductionStrategy.PostAndLoss else 1
        self.root_factor: float = 1 / before

    def factor(self, slot: Slot) -> float:
        """Returns the remaining factor of a weight's gradient after the sum over processes."""
        if not self._mean:
            return 1.0
        if self.running and slot.accumulator_type is not None:
            return 1 / self._processes
        return float(1 / (self.micro_batches * self._processes * self.root_factor))


@torch.no_grad()
def accumulate(
    slots: Sequence[Slot], covered: int, count: int, running: bool, generator: Optional[torch.Generator]
) -> None:
    """Adds `.grad` of typed slots, the sum over `count` micro-batches, to their accumulators.

    The running mean m over n micro-batches becomes m * n / (n + k) + (sum of k gradients) / (n + k) over n + k. Values
    are rounded to the type of the accumulators after each step, as on a device.

    Args:
        slots: the weights.
        covered: the number of micro-batches in the accumulators.
        count: the number of micro-batches to add.
        running: whether accumulators hold the mean rather than the sum.
        generator: the generator for stochastic rounding; None to round to nearest.
    """
    slots = [slot for slot in slots if slot.weight.grad is not None or slot.accumulator is not None]
    if not slots:
        return
    gradients = [_take_gradient(slot) for slot in slots]
    if covered == 0:
        totals = [gradient.float() for gradient in gradients]
        if running and count > 1:
            totals = list(torch._foreach_div(totals, float(count)))
        for slot in slots:
            slot.accumulator = torch.empty_like(slot.weight, dtype=slot.accumulator_type)
    else:
        totals = [_present(slot).float() for slot in slots]
        if running:
            torch._foreach_mul_(totals, covered / (covered + count))
        torch._foreach_add_(totals, gradients, alpha=1 / (covered + count) if running else 1.0)
    accumulators = [_present(slot) for slot in slots]
    moved = [index for index, total in enumerate(totals) if total is not accumulators[index]]
    store([accumulators[index] for index in moved], [totals[index] for index in moved], generator)


def _present(slot: Slot) -> torch.Tensor:
    if slot.accumulator is None:
        slot.accumulator = torch.zeros_like(slot.weight, dtype=slot.accumulator_type)
    return slot.accumulator


def _take_gradient(slot: Slot) -> torch.Tensor:
    gradient, slot.weight.grad = slot.weight.grad, None
    return torch.zeros_like(slot.weight) if gradient is None else gradient
