# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Compares a training step through poptorch_host with the same step written by hand in PyTorch.

Both steps run in one process, interleaved, on copies of the same model, with torch.optim's AdamW on both sides. The
step by hand loops over micro-batches, divides the loss by their number, then calls step() and zero_grad(), with the
fused optimizer where this PyTorch has one. The first ratio is without folding, so that both sides do the same work; the
second is with the defaults of the package. The last case checks every result for floating-point exceptions.

    python -m benchmarks.poptorch_host_overhead [--rounds 60] [--steps 10]
"""

import argparse
import copy
import statistics
import time
from typing import Callable, List, Tuple

import poptorch_host as poptorch
import torch
from poptorch_host import host


class WithLoss(torch.nn.Module):
    """Wraps a classifier; forward returns logits and the cross entropy loss."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Returns the logits and the loss of a batch."""
        logits = self.model(x)
        return logits, torch.nn.functional.cross_entropy(logits, labels)


class Encoder(torch.nn.Module):
    """A small transformer encoder with a classifier on the mean of the tokens."""

    def __init__(self, width: int = 128, layers: int = 2, classes: int = 10) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = torch.nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (batch, tokens, width) to logits (batch, classes)."""
        return self.head(self.layers(x).mean(1))


def mlp(width: int = 256) -> torch.nn.Module:
    """A multilayer perceptron for images of 28 x 28 pixels."""
    return torch.nn.Sequential(
        torch.nn.Linear(784, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, 10),
    )


def fastest_adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Returns AdamW, fused where this PyTorch has a fused CPU kernel."""
    try:
        return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    except RuntimeError:  # this PyTorch fuses on other devices only
        return torch.optim.AdamW(model.parameters(), lr=1e-3)


def by_hand(model: torch.nn.Module, accumulation: int, batch: Tuple[torch.Tensor, torch.Tensor]) -> Callable[[], None]:
    """Returns the step written in plain PyTorch."""
    optimizer = fastest_adamw(model)

    def step() -> None:
        for x, labels in zip(batch[0].chunk(accumulation), batch[1].chunk(accumulation)):
            _, loss = model(x, labels)
            (loss / accumulation if accumulation > 1 else loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def by_executor(
    model: torch.nn.Module, accumulation: int, batch: Tuple[torch.Tensor, torch.Tensor], checked: bool
) -> Callable[[], None]:
    """Returns the step as a call of poptorch.trainingModel, which checks for floating-point exceptions if `checked`."""
    options = poptorch.Options().showCompilationProgressBar(False)
    options.Training.gradientAccumulation(accumulation)
    options.Precision.enableFloatingPointExceptions(checked)
    executor = poptorch.trainingModel(model, options, torch.optim.AdamW(model.parameters(), lr=1e-3))
    return lambda: executor(*batch)


def ratios(one: Callable[[], None], other: Callable[[], None], rounds: int, steps: int) -> List[float]:
    """Returns the CPU time of `one` over that of `other` in each round; the order alternates."""

    def seconds(step: Callable[[], None]) -> float:
        start = time.process_time()
        for _ in range(steps):
            step()
        return time.process_time() - start

    found = []
    for number in range(rounds + 3):
        if number % 2:
            found.append(seconds(one) / seconds(other))
        else:
            denominator = seconds(other)
            found.append(seconds(one) / denominator)
    return found[3:]


def main() -> None:
    """Prints the median and range of the ratios for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [
        ("MLP 784-256-256-10, batch 64", mlp(), torch.randn(64, 784), 1, False),
        ("MLP 784-256-256-10, batch 64 in 4 micro-batches", mlp(), torch.randn(64, 784), 4, False),
        ("MLP 784-512-512-10, batch 64", mlp(512), torch.randn(64, 784), 1, False),
        ("transformer 2 x 128, batch 16 x 32 tokens", Encoder(), torch.randn(16, 32, 128), 1, False),
        ("transformer 2 x 128, batch 16 in 2 micro-batches", Encoder(), torch.randn(16, 32, 128), 2, False),
        ("transformer 2 x 128, batch 16 x 32 tokens, checked", Encoder(), torch.randn(16, 32, 128), 1, True),
    ]
    print(f"torch {torch.__version__}, 1 thread, CPU time of poptorch_host relative to the step by hand")
    for name, model, x, accumulation, checked in cases:
        batch = (x, torch.randint(0, 10, (len(x),)))
        columns = []
        for fold in (1, "auto") if accumulation > 1 else (1,):
            host.configure(fold=fold)
            ours, theirs = WithLoss(copy.deepcopy(model)), WithLoss(copy.deepcopy(model))
            found = ratios(
                by_executor(ours, accumulation, batch, checked),
                by_hand(theirs, accumulation, batch),
                arguments.rounds,
                arguments.steps,
            )
            columns.append(f"{statistics.median(found):.3f} [{min(found):.3f}-{max(found):.3f}]")
        print(f"{name}: {'; by default '.join(columns)}")


if __name__ == "__main__":
    main()
