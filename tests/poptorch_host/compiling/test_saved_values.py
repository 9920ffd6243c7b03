# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from tests.backend import host_only, poptorch

from ..models import trained

X = torch.linspace(-1, 1, 24).view(4, 6)


class Layers(torch.nn.Module):
    """Linear layers, each followed by a function."""

    def __init__(self, function, count=8):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(6, 6) for _ in range(count)])
        self.function = function

    def forward(self, x):
        for layer in self.layers:
            x = self.function(layer(x))
        return poptorch.identity_loss(x, "mean")


@host_only("the memory of a compilation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiling_for_training_keeps_no_activations(dtype):
    made, alive = [], []

    def function(x):
        alive.append(sum(not memory.expired() for memory in made))
        x = torch.tanh(x)
        made.append(StorageWeakRef(x.untyped_storage()))
        return x

    trained(Layers(function).to(dtype)).compile(X.to(dtype))
    assert len(made) == 8 and max(alive) == 1  # what the layer was called with


def overwritten_through_a_view(x):
    x = torch.sigmoid(x)
    y, view = x * x, x.view(-1)
    del x
    view.mul_(2)
    return y


def overwritten_past_autograd(x):
    x = torch.sigmoid(x)
    y = x * x
    x.data.mul_(2)
    return y


def overwritten_unneeded(x):
    y = torch.sigmoid(x)
    z = y + 1
    z.mul_(2)
    return y


def differentiated_twice(x):
    slope = torch.func.grad(lambda value: (value**3).sum())
    return x + torch.func.grad(lambda value: slope(value).sum())(x)


@host_only("the record of a compilation")
@pytest.mark.parametrize(
    "function, found",
    [
        (overwritten_through_a_view, True),
        (overwritten_past_autograd, False),  # where PyTorch does not look either
        (overwritten_unneeded, False),
        (differentiated_twice, False),
    ],
)
def test_what_forward_overwrites_is_found_without_keeping_it(function, found):
    executor = trained(Layers(function))
    executor(X)
    assert executor.compiled.overwrites_saved is found


def gated_on_ipu(x):
    x = torch.tanh(x)
    return x * torch.sigmoid(x) if poptorch.isRunningOnIpu() else x


@host_only("the backward pass of PyTorch")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_recomputing_what_depends_on_the_device_trains_as_keeping_it(reentrant, dtype):
    results = []
    for function in (gated_on_ipu, lambda x: checkpoint(gated_on_ipu, x, use_reentrant=reentrant)):
        torch.manual_seed(0)
        model = Layers(function, count=2).to(dtype)
        executor = trained(model)
        executor(X.to(dtype))
        executor.copyWeightsToHost()
        results.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(*results)


@host_only("the backward pass of PyTorch")
def test_compiling_does_not_recompute():
    calls = []

    def counted(x):
        calls.append(poptorch.isRunningOnIpu())
        return torch.tanh(x)

    executor = trained(Layers(lambda x: checkpoint(counted, x, use_reentrant=False), count=2))
    executor.compile(X)
    assert calls == [True, True]
    executor(X)
    assert calls == [True] * 6
