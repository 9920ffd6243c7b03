# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Optimizers as objects: what they accept, what is variable, how they copy, step on the host, and are scheduled."""

import copy
import inspect
import math
import pickle

import pytest
import torch

from tests.backend import optim, raises
from tests.poptorch_host.api import NAMES, find
from tests.poptorch_host.device import make_net
from tests.poptorch_host.logs import warnings_in

CLASSES = [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.LAMB]
MOMENT_TYPES = ["first_order_momentum_accum_type", "second_order_momentum_accum_type"]
FLOAT, HALF = torch.float32, torch.float16


@pytest.fixture
def net():
    return make_net()


# Construction


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in NAMES
        if name.startswith("poptorch.optim.") and name.endswith(".__init__") or name == "poptorch.optim.LAMB.step"
    ],
)
def test_signature_equals_the_recorded_one(name):
    recorded = [(p["name"], p["kind"], p["default"]) for p in NAMES[name]["params"]]
    actual = [
        (p.name, p.kind.name, None if p.default is p.empty else repr(p.default))
        for p in inspect.signature(find(name)).parameters.values()
    ]
    assert actual == recorded


@pytest.mark.parametrize("cls", CLASSES)
def test_class_derives_from_torchs_of_the_same_name(cls, net):
    optimizer = cls(net.parameters(), lr=0.1)
    assert isinstance(optimizer, optim.Optimizer)
    assert isinstance(optimizer, getattr(torch.optim, cls.__name__, torch.optim.Optimizer))


@pytest.mark.parametrize("cls", CLASSES[:-1])
def test_arguments_not_given_take_torchs_defaults(cls, net):
    torch_class = getattr(torch.optim, cls.__name__)
    assert cls(net.parameters(), lr=0.25).defaults == torch_class(net.parameters(), lr=0.25).defaults


def test_lamb_defaults(net):
    optimizer = optim.LAMB(net.parameters())
    assert optimizer.defaults == {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 1e-2,
        "max_weight_norm": 65500.0,
    }
    assert optimizer.max_weight_norm == 65500.0 and optimizer.bias_correction is True


@pytest.mark.parametrize("cls", CLASSES)
def test_extra_attributes_default_to_float32_and_no_scaling(cls, net):
    optimizer = cls(net.parameters(), lr=0.1)
    types = ["accum_type"] + (["velocity_accum_type"] if cls is optim.SGD else MOMENT_TYPES)
    assert all(getattr(optimizer, name) is FLOAT for name in types)
    assert optimizer.loss_scaling == 1.0
    if cls in (optim.SGD, optim.Adam, optim.AdamW):
        assert optimizer.max_grad_norm == math.inf


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("bad", [torch.float64, torch.bfloat16, torch.int32])
def test_accumulation_type_other_than_half_or_float_refused(cls, net, bad):
    types = ["accum_type"] + (["velocity_accum_type"] if cls is optim.SGD else MOMENT_TYPES)
    for name in types:
        with raises(AssertionError, match=name):
            cls(net.parameters(), lr=0.1, **{name: bad})


@pytest.mark.parametrize("cls", [optim.RMSprop, optim.LAMB])
def test_max_grad_norm_is_unknown_to_rmsprop_and_lamb(cls, net):
    with raises(TypeError, match="max_grad_norm"):
        cls(net.parameters(), lr=0.1, max_grad_norm=1.0)


def test_sgd_without_lr_refused(net):
    with raises(TypeError, match="lr"):
        optim.SGD(net.parameters())


@pytest.mark.parametrize("cls", [optim.Adam, optim.AdamW])
@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"eps": -1.0}, {"weight_decay": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}]
)
def test_values_out_of_range_are_refused_by_the_constructor(cls, net, wrong):
    with raises(ValueError, match="Invalid"):
        cls(net.parameters(), **wrong)


def test_velocity_scaling_without_combined_accumulator_is_ignored_with_a_warning(net, log):
    optimizer = optim.SGD(net.parameters(), lr=0.1, velocity_scaling=2.0)
    assert "velocity_scaling" in warnings_in(log)[0]
    assert "velocity_scaling" not in optimizer.param_groups[0]


def test_velocity_scaling_of_combined_sgd_is_an_attribute_of_each_group(net):
    groups = [{"params": net[0].parameters(), "velocity_scaling": 3.0}, {"params": net[2].parameters()}]
    optimizer = optim.SGD(groups, lr=0.1, velocity_scaling=2.0, use_combined_accum=True)
    assert [group["velocity_scaling"] for group in optimizer.param_groups] == [3.0, 2.0]
    assert not optimizer.variable_attrs.isConstant("velocity_scaling")


# Variable and constant


@pytest.mark.parametrize("cls", CLASSES)
def test_attribute_is_variable_exactly_when_given(cls, net):
    optimizer = cls(net.parameters(), 0.1, weight_decay=0.2)
    attributes = optimizer.variable_attrs
    variable = {name for name in [*optimizer.defaults, "loss_scaling"] if not attributes.isConstant(name)}
    assert variable == {"lr", "weight_decay"}
    assert not cls(net.parameters(), lr=0.1, loss_scaling=2.0).variable_attrs.isConstant("loss_scaling")


def test_lr_not_given_is_constant(net):
    assert optim.AdamW(net.parameters()).variable_attrs.isConstant("lr")


def test_marking_moves_an_attribute_both_ways(net):
    attributes = optim.Adam(net.parameters(), lr=0.1).variable_attrs
    attributes.markAsVariable("betas")
    attributes.markAsConstant("lr")
    assert attributes.isConstant("lr") and not attributes.isConstant("betas")
    attributes.markAsConstant("betas")
    assert attributes.isConstant("betas")


@pytest.mark.parametrize("cls", CLASSES)
def test_marking_an_unknown_attribute_refused(cls, net):
    attributes = cls(net.parameters(), lr=0.1).variable_attrs
    for mark in (attributes.markAsConstant, attributes.markAsVariable):
        with raises(AssertionError, match="not_one"):
            mark("not_one")


def test_variable_attributes_stand_alone():
    attributes = optim.VariableAttributes(["a"], ["a", "b"])
    assert not attributes.isConstant("a") and attributes.isConstant("b")


# Copies


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda original: pickle.loads(pickle.dumps(original))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copy_keeps_every_attribute(cls, net, duplicate):
    optimizer = cls(net.parameters(), lr=0.1, loss_scaling=3.0, accum_type=HALF)
    optimizer.variable_attrs.markAsVariable("weight_decay")
    duplicated = duplicate(optimizer)
    for name in sorted(set(vars(optimizer)) - set(vars(torch.optim.SGD(net.parameters(), lr=0.1)))):
        if name not in ("variable_attrs", "max_weight_norm") and not name.startswith("_"):
            assert getattr(duplicated, name) == getattr(optimizer, name), name
    assert not duplicated.variable_attrs.isConstant("weight_decay")
    assert [{**group, "params": None} for group in duplicated.param_groups] == [
        {**group, "params": None} for group in optimizer.param_groups
    ]
    assert duplicated.state_dict()["ipu_state"] is None


def test_copied_optimizer_can_be_changed_alone(net):
    optimizer = optim.SGD(net.parameters(), lr=0.1, loss_scaling=1.0)
    copied = copy.copy(optimizer)
    copied.loss_scaling = 4.0
    assert optimizer.loss_scaling == 1.0


# On the host


@pytest.mark.parametrize("cls", CLASSES[:-1])
def test_step_on_the_host_is_torchs(cls):
    ours, theirs = make_net(), make_net()
    optimizers = [cls(ours.parameters(), lr=0.05), getattr(torch.optim, cls.__name__)(theirs.parameters(), lr=0.05)]
    for _ in range(3):
        for net, optimizer in zip((ours, theirs), optimizers):
            optimizer.zero_grad()
            net(torch.ones(2, 6)).sum().backward()
            optimizer.step()
    assert all(torch.equal(left, right) for left, right in zip(ours.parameters(), theirs.parameters()))


def lamb_by_hand(weight, gradients, lr, betas, eps, weight_decay, bias_correction=True, max_weight_norm=65500.0):
    """The LAMB algorithm in float64, one tensor, written from the paper's listing."""
    weight = weight.double()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, 1):
        gradient = gradient.double()
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        corrections = [1 - beta**step if bias_correction else 1.0 for beta in betas]
        update = first / corrections[0] / ((second / corrections[1]).sqrt() + eps) + weight_decay * weight
        norms = min(weight.norm().item(), max_weight_norm), update.norm().item()
        weight = weight - lr * (norms[0] / norms[1] if min(norms) > 0 else 1.0) * update
    return weight


@pytest.mark.parametrize(
    "arguments",
    [
        dict(),
        dict(bias_correction=False),
        dict(max_weight_norm=0.3),
        dict(weight_decay=0.0),
        dict(betas=(0.5, 0.8), eps=1e-4),
    ],
)
def test_lamb_step_follows_the_paper(arguments):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(4, 5)), torch.nn.Parameter(torch.zeros(3))]
    gradients = [[torch.randn_like(weight) for weight in weights] for _ in range(4)]
    settings = dict(lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    settings.update(arguments)
    expected = [
        lamb_by_hand(weight.detach(), [step[index] for step in gradients], **settings)
        for index, weight in enumerate(weights)
    ]
    optimizer = optim.LAMB(weights, **settings)
    for step in gradients:
        for weight, gradient in zip(weights, step):
            weight.grad = gradient
        optimizer.step()
    for weight, wanted in zip(weights, expected):
        torch.testing.assert_close(weight.detach().double(), wanted, rtol=1e-5, atol=1e-6)


def test_lamb_step_returns_the_closures_loss(net):
    optimizer = optim.LAMB(net.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(2, 6)).square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first
