# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""A model with its weight updates but without an executor, for tests of updates alone."""

import copy
from typing import Any, Callable, Dict, List, Sequence

import torch
from poptorch_host.updating.latch import OptimizerLatch
from poptorch_host.updating.update import WeightUpdate

from tests.backend import poptorch


def make_net(dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.nn.Module:
    """Two linear layers, the same for the same seed."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).to(dtype)


class WithLoss(torch.nn.Module):
    """A net and its mean squared error."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.net = make_net(dtype)

    def forward(self, inputs, targets):
        outputs = self.net(inputs)
        return outputs, torch.nn.functional.mse_loss(outputs, targets)


def make_batches(count: int, rows: int = 8, seed: int = 1) -> List[Any]:
    """(inputs, targets) of `count` steps."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(rows, 6, generator=generator), torch.randn(rows, 3, generator=generator)) for _ in range(count)
    ]


def make_options(accumulation: int = 1, **popart: Any) -> poptorch.Options:
    """Options with an accumulation factor, and PopART options by name."""
    options = poptorch.Options()
    options.Training.gradientAccumulation(accumulation)
    for key, value in popart.items():
        options._Popart.set(key, value)
    return options


class Device:
    """The device's copy of `model` and its updates, driven as the engine does.

    Args:
        make_optimizer: makes the optimizer from the model's parameters.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        make_optimizer: Callable[[Any], torch.optim.Optimizer],
        options: poptorch.Options = None,
        seed: int = 0,
    ):
        self.options = options or poptorch.Options()
        self.model, self.module = model, copy.deepcopy(model)
        self.optimizer = make_optimizer(model.parameters())
        self.latch = OptimizerLatch(self.options)
        self.latch.set(self.optimizer)
        self.parameters = dict(self.module.named_parameters())
        self.update = WeightUpdate(
            self.latch,
            [(name, parameter, self.parameters[name]) for name, parameter in model.named_parameters()],
            self.options,
            seed,
        )

    @property
    def weights(self) -> List[torch.Tensor]:
        return [parameter.detach() for parameter in self.parameters.values()]

    @property
    def micro_batches(self) -> int:
        return self.options.Training.gradient_accumulation * self.options.replication_factor

    def train(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """One update from one combined batch, by mean squared error."""
        self.update.upload()
        for part, target in zip(inputs.chunk(self.micro_batches), targets.chunk(self.micro_batches)):
            self.update.before_backward(1)
            loss = torch.nn.functional.mse_loss(self.module(part), target)
            loss.backward(self.update.scaled(torch.full_like(loss, self.update.root_gradient())))
            self.update.accumulate(1)
        self.update.apply()
        self.update.mark_run()

    def feed(self, micro_batches: Sequence[Dict[str, torch.Tensor]], counts: Sequence[int] = ()) -> None:
        """One update from given gradients, unscaled, by name; each may cover several micro-batches (`counts`)."""
        self.update.upload()
        for gradients, count in zip(micro_batches, counts or [1] * len(micro_batches)):
            self.update.before_backward(count)
            for name, gradient in gradients.items():
                weight = self.parameters[name]
                part = (gradient * self.update.root_gradient()).to(weight.dtype)
                weight.grad = part if weight.grad is None else weight.grad + part
            self.update.accumulate(count)
        self.update.apply()
        self.update.mark_run()


def train_on_host(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    max_norm: float = None,
) -> None:
    """The same update as `Device.train`, in plain PyTorch."""
    optimizer.zero_grad(set_to_none=True)
    torch.nn.functional.mse_loss(model(inputs), targets).backward()
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()


def assert_close(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float = 1e-5) -> None:
    """Every tensor equals its counterpart to `tolerance`, relative and absolute."""
    for left, right in zip(actual, expected):
        torch.testing.assert_close(left.double(), right.detach().double(), rtol=tolerance, atol=tolerance)
