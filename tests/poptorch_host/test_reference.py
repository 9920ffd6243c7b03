# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Random programs: the executor against the slow reference in reference.py."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tests.backend import NAME, module, poptorch

from . import reference

MODES = ["Final", "All", "Sum", "EveryN"]


class Network(torch.nn.Module):
    """A small network with outputs of every shape; kinds differ in their loss, and one keeps a running buffer."""

    def __init__(self, kind: str, width: int, depth: int):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(depth))
        self.kind = kind
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x, target):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        if self.kind == "buffer":
            self.seen += x.detach().abs().mean()
            x = x + self.seen
        if self.kind == "built-in":
            loss = torch.nn.functional.mse_loss(x, target)
            return x.argmax(-1), x, x[0], loss
        loss = poptorch.identity_loss((x - target) ** 2, reduction="sum" if self.kind == "sum" else "mean")
        return x.argmax(-1), x, x[0], loss


def options_for(plan: reference.Plan, training: bool) -> poptorch.Options:
    options = poptorch.Options().deviceIterations(plan.device_iterations).replicationFactor(plan.replicas)
    options.autoRoundNumIPUs().outputMode(getattr(poptorch.OutputMode, plan.mode), plan.period).broadcastBuffers(False)
    if training:
        options.Training.gradientAccumulation(plan.accumulation)
        options.Training.accumulationAndReplicationReductionType(getattr(poptorch.ReductionType, plan.reduction))
    return options


@st.composite
def plans(draw, training):
    iterations, accumulation = draw(st.integers(1, 3)), draw(st.integers(1, 4)) if training else 1
    return reference.Plan(
        iterations,
        draw(st.integers(1, 3)),
        accumulation,
        draw(st.sampled_from(MODES)),
        draw(st.integers(1, iterations * accumulation)),
        draw(st.sampled_from(["Mean", "Sum"])),
    )


def batch(plan, rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows * plan.micro_batches, width, generator=generator) for _ in range(2))


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


@pytest.fixture(params=["folded", "one by one"], autouse=True)
def folding(request, monkeypatch):
    if NAME == "host":
        monkeypatch.setattr(module("poptorch.host")._settings, "fold", 100 if request.param == "folded" else 1)
    elif request.param == "folded":
        pytest.skip("poptorch_host only: micro-batches that run together")


@settings(max_examples=75, deadline=None, derandomize=True)
@given(
    plan=plans(training=True),
    kind=st.sampled_from(["mean", "sum", "built-in", "buffer"]),
    rows=st.integers(1, 3),
    width=st.integers(2, 5),
    depth=st.integers(1, 2),
    seed=st.integers(0, 10**6),
)
def test_training_of_random_programs_equals_the_reference(plan, kind, rows, width, depth, seed):
    if kind == "buffer":  # the buffers of replicas are apart on a device, which the reference does not know
        plan = plan._replace(replicas=1)
    torch.manual_seed(seed)
    model = Network(kind, width, depth)
    expected = reference.copy_of(model)
    executor = poptorch.trainingModel(model, options_for(plan, True), torch.optim.SGD(model.parameters(), lr=0.1))
    for step in range(2):
        inputs = batch(plan, rows, width, seed + step)
        assert_same(executor(*inputs), reference.train(expected, plan, 0.1, inputs))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=2e-5, atol=2e-6)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(plan=plans(training=False), rows=st.integers(1, 3), width=st.integers(2, 5), seed=st.integers(0, 10**6))
def test_inference_of_random_programs_equals_the_reference(plan, rows, width, seed):
    torch.manual_seed(seed)
    model = Network("mean", width, 1)
    inputs = batch(plan, rows, width, seed)
    assert_same(poptorch.inferenceModel(model, options_for(plan, False))(*inputs), reference.infer(model, plan, inputs))
