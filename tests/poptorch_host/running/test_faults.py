# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Precision.enableFloatingPointExceptions: which operations end a run, which values may pass, and what stays whole."""

import math

import pytest
import torch

from tests.backend import needs_core, poptorch, raises

from ..models import Classifier, Function, classifier_batch

INF = math.inf


def inference(function, enabled=True):
    options = poptorch.Options()
    options.Precision.enableFloatingPointExceptions(enabled)
    return poptorch.inferenceModel(Function(function), options)


FAULTS = {
    "overflow": (torch.exp, torch.tensor([1.0, 100.0]), "exp of float32"),
    "cast": (lambda x: x.half(), torch.tensor([1e6]), "gave an infinite value"),
    "product in half": (lambda x: x @ x.t(), torch.full((2, 64), 100.0).half(), "of float16 .* gave an infinite value"),
    "division by zero": (lambda x: x / (x - x), torch.ones(3), "div of float32 .* gave an infinite value"),
    "division by number": (lambda x: x / 0, torch.ones(3), "div"),
    "logarithm of zero": (torch.log, torch.zeros(2), "log"),
    "zero by zero": (lambda x: x / x, torch.zeros(2), "gave NaN"),
    "root of negative": (torch.sqrt, torch.tensor([-1.0]), "sqrt of float32 .* gave NaN"),
    "infinity less itself": (lambda x: x - x, torch.tensor([INF]), "sub of .* gave NaN"),
    "in place": (lambda x: (x + 0).mul_(3e38), torch.full((2,), 10.0), "mul_"),
    "one of several results": (lambda x: torch.var_mean(x)[1], torch.ones(1), "NaN"),
}


@needs_core("it stops at floating-point exceptions")
@pytest.mark.filterwarnings("ignore:var_mean")
@pytest.mark.parametrize("name", sorted(FAULTS))
def test_fault_is_an_error_that_names_the_operation(name):
    function, value, words = FAULTS[name]
    with raises(poptorch.Error, match=words):
        inference(function)(value)
    inference(function, enabled=False)(value)


def alignments(x):
    """A CTC loss of eight steps, which cannot reach every state of the targets at every step."""
    steps, length = x.new_full((1,), 8).long(), x.new_full((1,), 2).long()
    return torch.nn.functional.ctc_loss(x.log_softmax(2), x.new_ones(1, 2).long(), steps, length)


LEGAL = {
    "underflow": (torch.exp, torch.tensor([-1e4])),
    "infinity that came in": (lambda x: x * 2, torch.tensor([INF, 1.0])),
    "NaN that came in": (lambda x: x + 1, torch.tensor([math.nan])),
    "mask": (lambda x: torch.softmax(x.masked_fill(x > 1, -INF), 0), torch.tensor([0.5, 2.0])),
    "attention": (
        lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.0),
        torch.randn(1, 2, 4, 8),
    ),
    "loss over alignments": (alignments, torch.randn(8, 1, 4)),
    "written later": (lambda x: torch.empty_like(x).copy_(x), torch.ones(1000)),
    "norm that is not training": (torch.nn.BatchNorm1d(3).eval(), torch.ones(2, 3)),
    "integers": (lambda x: x.clamp(min=0), torch.tensor([-5, 5])),
    "finite with an infinite sum": (lambda x: x * 2, torch.full((4,), 6e37)),
}


@pytest.mark.parametrize("name", sorted(LEGAL))
def test_values_that_are_no_fault_pass_and_are_the_same(name):
    function, value = LEGAL[name]
    checked, free = inference(function)(value), inference(function, enabled=False)(value)
    assert torch.equal(checked.nan_to_num(), free.nan_to_num())


class Steep(torch.nn.Module):
    """A model with a finite loss, whose gradient is infinite at zero."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return poptorch.identity_loss((self.weight * x).sqrt(), "sum")


def trainer(model, lr=0.1, accumulation=1):
    options = poptorch.Options()
    options.Precision.enableFloatingPointExceptions(True)
    options.Training.gradientAccumulation(accumulation)
    return poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=lr, momentum=0.9))


@needs_core("it stops at floating-point exceptions")
def test_fault_of_a_backward_pass_is_an_error_and_the_next_update_forgets_it():
    model, other = Steep(), Steep()
    step, unharmed = trainer(model, accumulation=2), trainer(other, accumulation=2)
    good = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with raises(poptorch.Error, match="Floating point exception"):
        step(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    assert model.weight.tolist() == [1.0, 1.0]
    step(good), unharmed(good)
    assert torch.equal(model.weight, other.weight) and model.weight.tolist() != [1.0, 1.0]


class Normed(torch.nn.Module):
    """Its loss and the gradient of its input are finite, and the gradient of the norm's weight is too large."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(1))
        self.norm = torch.nn.BatchNorm1d(1).eval()
        torch.nn.init.constant_(self.norm.weight, 1e-3)

    def forward(self, x):
        return poptorch.identity_loss((self.norm(x + self.shift) * 1e38).sum(), "none")


@needs_core("it stops at floating-point exceptions")
def test_fault_among_the_later_gradients_of_a_norm_names_its_backward_pass():
    with raises(poptorch.Error, match="batch_norm_backward of"):
        trainer(Normed())(torch.ones(8, 1))


def test_model_without_faults_trains_to_the_same_weights():
    weights = []
    for enabled in (True, False):
        torch.manual_seed(0)
        model = Classifier()
        options = poptorch.Options()
        options.Precision.enableFloatingPointExceptions(enabled)
        options.Training.gradientAccumulation(4)
        step = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(3):
            step(*classifier_batch(8))
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    for checked, free in zip(*weights):
        torch.testing.assert_close(checked, free)
