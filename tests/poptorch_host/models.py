# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Small models for the tests of executors."""

from typing import Any, Callable

import torch

from tests.backend import poptorch


class Function(torch.nn.Module):
    """A model whose forward is a function."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self._function = function

    def forward(self, *args: Any) -> Any:
        return self._function(*args)


class Classifier(torch.nn.Module):
    """A linear classifier that returns its logits and, given labels, its loss."""

    def __init__(self, features: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(features, classes)

    def forward(self, x, labels=None):
        logits = self.fc(x)
        return logits if labels is None else (logits, torch.nn.functional.cross_entropy(logits, labels))


def classifier_batch(rows: int = 2, features: int = 4, classes: int = 3):
    """Inputs and labels."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(rows, features, generator=generator), torch.randint(0, classes, (rows,), generator=generator))


def trained(model: torch.nn.Module, options: poptorch.Options = None, lr: float = 0.1) -> poptorch.PoplarExecutor:
    """`model` wrapped for training with plain SGD."""
    return poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=lr))


def accumulating(count: int) -> poptorch.Options:
    """Options with gradient accumulation."""
    options = poptorch.Options()
    options.Training.gradientAccumulation(count)
    return options
