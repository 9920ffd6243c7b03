# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""One call of a compiled model, written again as plainly as its arithmetic is stated, and as slowly.

It knows plain modules, SGD without momentum, and the options that decide how a batch is cut, reduced and returned. It
shares no code with the package.
"""

import copy
from typing import Any, Dict, List, NamedTuple, Tuple

import torch


class Plan(NamedTuple):
    """How a call is made."""

    device_iterations: int = 1
    replicas: int = 1
    accumulation: int = 1
    mode: str = "Final"  # Final, All, Sum or EveryN
    period: int = 1
    reduction: str = "Mean"

    @property
    def micro_batches(self) -> int:
        return self.device_iterations * self.accumulation * self.replicas


def train(model: torch.nn.Module, plan: Plan, lr: float, inputs: Tuple[torch.Tensor, ...]) -> Tuple[Any, ...]:
    """Runs one call of training: updates `model` in place and returns the outputs. forward returns (..., loss)."""
    results: List[Tuple[torch.Tensor, ...]] = []
    rows = cut(inputs, plan.micro_batches)
    for _ in range(plan.device_iterations):
        total: Dict[str, torch.Tensor] = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for _ in range(plan.accumulation * plan.replicas):
            outputs = model(*rows[len(results)])
            gradients = torch.autograd.grad(outputs[-1], list(model.parameters()), allow_unused=True)
            for (name, _), gradient in zip(model.named_parameters(), gradients):
                total[name] += 0 if gradient is None else gradient
            results.append(tuple(output.detach().clone() for output in outputs))
        divisor = plan.accumulation * plan.replicas if plan.reduction == "Mean" else 1
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter -= lr * total[name] / divisor
    return tuple(gather(plan, list(column)) for column in zip(*results))


def infer(model: torch.nn.Module, plan: Plan, inputs: Tuple[torch.Tensor, ...]) -> Tuple[Any, ...]:
    """Runs one call of inference and returns the outputs."""
    with torch.no_grad():
        results = [tuple(output.clone() for output in model(*row)) for row in cut(inputs, plan.micro_batches)]
    return tuple(gather(plan, list(column)) for column in zip(*results))


def cut(inputs: Tuple[torch.Tensor, ...], pieces: int) -> List[Tuple[torch.Tensor, ...]]:
    """Consecutive rows, in order: device iterations, then accumulation, then replicas, the last fastest."""
    rows = []
    for piece in range(pieces):
        sizes = [len(tensor) // pieces for tensor in inputs]
        rows.append(tuple(tensor[piece * size : (piece + 1) * size] for tensor, size in zip(inputs, sizes)))
    return rows


def gather(plan: Plan, values: List[torch.Tensor]) -> torch.Tensor:
    """What a call returns of one output, given its value for every micro-batch."""
    steps = [values[start : start + plan.replicas] for start in range(0, len(values), plan.replicas)]
    if plan.mode == "All":
        kept = [value for step in steps for value in step]
    elif plan.mode == "Final":
        kept = steps[-1]
    elif plan.mode == "EveryN":
        kept = [value for number, step in enumerate(steps, start=1) if number % plan.period == 0 for value in step]
    else:
        kept = [sum(step[replica] for step in steps) for replica in range(plan.replicas)]
    kept = [value.to(torch.int32) if value.dtype == torch.int64 else value for value in kept]
    if kept[0].dim() > 0:
        return torch.cat(kept)
    return kept[0] if len(kept) == 1 else torch.stack(kept)


def copy_of(model: torch.nn.Module) -> torch.nn.Module:
    """An independent copy to run the reference on."""
    return copy.deepcopy(model)
