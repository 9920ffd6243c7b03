# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Programs that name the device "ipu" themselves, and operations that only inference may use."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.backend import needs_core, poptorch, raises

from ..models import Function

X = torch.arange(6.0).reshape(2, 3)
ONES = torch.ones(3)
GENERATED = eval("lambda x: x + torch.ones(3, device=x.device)", {"torch": torch})  # in a module without a name


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x + torch.ones(3, device="ipu"),
        lambda x: x + torch.ones(3).to("ipu"),
        lambda x: x + torch.full((3,), 1.0, device=torch.device("ipu", 0)),
        lambda x: x.to("ipu:0", torch.float32) + 1,
        lambda x: x + torch.ones(3, device=x.device),
        lambda x: x + (ONES if ONES.device == x.device else ONES.to(x.device)),
        lambda x: checkpoint(lambda y: y + 1, x, use_reentrant=False),
        GENERATED,
    ],
    ids=[
        *("factory", "to", "device", "input", "device of another", "moved if it is elsewhere", "PyTorch's own"),
        "generated code",
    ],
)
def test_device_called_ipu_is_the_one_that_models_run_on(make):
    model = poptorch.inferenceModel(Function(make), poptorch.Options().deviceIterations(2))
    for _ in range(2):
        assert torch.equal(model(X), X + 1)


def test_training_may_call_its_device_ipu_too():
    model = torch.nn.Linear(3, 1)
    model.register_forward_hook(
        lambda _, inputs, output: poptorch.identity_loss(output - torch.ones(1, device="ipu"), "sum")
    )
    before = model.bias.item()
    poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.5))(X)
    assert model.bias.item() == pytest.approx(before - 0.5 * len(X))


def test_device_called_ipu_is_nothing_outside_a_compiled_model():
    with raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device="ipu")


def test_host_function_is_called_for_each_micro_batch_with_tensors_of_the_host():
    seen = []
    count = poptorch.CPU(lambda x: seen.append((x.device.type, x.tolist())) or x, "count")
    poptorch.inferenceModel(Function(lambda x: count(x) + 1), poptorch.Options().deviceIterations(2))(X)
    assert {device for device, _ in seen} == {"cpu"}
    assert [values for _, values in seen[-2:]] == [[row] for row in X.tolist()]


@needs_core("the compiler refuses operations and arguments")
@pytest.mark.parametrize(
    "name, operation",
    [
        ("poptorch.cond", lambda x: poptorch.cond(torch.ones(1).bool(), lambda y: y, [x], lambda y: -y, [x])[0]),
        ("poptorch.cpu", lambda x: poptorch.CPU(lambda y: 2 * y, "twice")(x)),
    ],
)
def test_operation_without_a_gradient_is_for_inference_only(name, operation):
    assert poptorch.inferenceModel(Function(operation))(X).shape == X.shape
    model = torch.nn.Linear(3, 3)
    model.register_forward_hook(lambda _, inputs, output: poptorch.identity_loss(operation(output), "sum"))
    with raises(poptorch.Error, match=rf"{name}\(\) is only supported in inference"):
        poptorch.trainingModel(model)(X)
