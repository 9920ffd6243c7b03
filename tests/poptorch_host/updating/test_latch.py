# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What a device reads from an optimizer: what is refused, latched, constant, and reported."""

import logging

import pytest
import torch
from poptorch_host.updating.latch import OptimizerLatch, read
from torch.optim import lr_scheduler

from tests.backend import host_only, optim, poptorch
from tests.poptorch_host.device import make_net, make_options
from tests.poptorch_host.logs import warnings_in

pytestmark = host_only("its own modules, driven directly")


CLASSES = [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.LAMB]
TORCH_CLASSES = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop]
HALF = torch.float16


@pytest.fixture
def net():
    return make_net()


# What is read


@pytest.mark.parametrize("cls", CLASSES + TORCH_CLASSES)
def test_supported_classes_are_set_without_a_warning(net, log, cls):
    latch = OptimizerLatch(poptorch.Options())
    latch.set(cls(net.parameters(), lr=0.1))
    assert latch.latched.algorithm == cls.__name__
    assert not warnings_in(log)


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.Adagrad(p), lambda p: torch.optim.NAdam(p), lambda p: "SGD", lambda p: optim.Optimizer()],
)
def test_unsupported_optimizer_refused(net, make):
    with pytest.raises(AssertionError, match="Unsupported optimizer type"):
        read(make(net.parameters()))


@pytest.mark.parametrize("base", [optim.AdamW, torch.optim.AdamW])
def test_subclass_runs_as_its_base_with_one_warning(net, log, base):
    class Mine(base):
        pass

    latch = OptimizerLatch(poptorch.Options())
    for _ in range(2):
        latch.set(Mine(net.parameters(), lr=0.1))
    assert latch.latched.algorithm == "AdamW"
    (warning,) = warnings_in(log)
    assert "Mine derives from AdamW" in warning


@pytest.mark.parametrize("cls", [optim.Adam, optim.AdamW, torch.optim.Adam, torch.optim.AdamW])
def test_amsgrad_refused(net, cls):
    with pytest.raises(ValueError, match="amsgrad"):
        read(cls(net.parameters(), lr=0.1, amsgrad=True))


@pytest.mark.parametrize("betas", [[0.9, 0.999], (0.9, 0.99, 0.999)])
def test_betas_other_than_a_pair_refused(net, betas):
    optimizer = optim.AdamW(net.parameters(), lr=0.1)
    optimizer.param_groups[0]["betas"] = betas
    with pytest.raises(AssertionError, match="betas"):
        read(optimizer)


@pytest.mark.parametrize("cls", [optim.Adam, optim.AdamW, optim.LAMB])
def test_betas_given_as_a_list_refused_on_every_torch(net, cls):
    groups = [{"params": net[0].parameters(), "betas": (0.5, 0.6)}, {"params": net[2].parameters()}]
    optimizer = cls(groups, lr=0.1, betas=[0.9, 0.999])
    assert [group["betas"] for group in optimizer.param_groups] == [(0.5, 0.6), [0.9, 0.999]]
    with pytest.raises(AssertionError, match="betas"):
        read(optimizer)


@pytest.mark.parametrize("name, value", [("lr", "0.1"), ("weight_decay", None), ("betas", ("0.9", 0.1)), ("eps", [])])
def test_value_that_is_no_number_refused(net, name, value):
    optimizer = optim.AdamW(net.parameters(), lr=0.1)
    optimizer.param_groups[0][name] = value
    with pytest.raises(AssertionError, match="Expected a number"):
        read(optimizer)


@pytest.mark.parametrize("scaling", [0.0, -1.0])
def test_loss_scaling_that_is_not_positive_refused(net, scaling):
    with pytest.raises(AssertionError, match="loss_scaling"):
        read(optim.SGD(net.parameters(), lr=0.1, loss_scaling=scaling))


def test_rmsprop_groups_that_differ_in_centered_refused(net):
    groups = [{"params": net[0].parameters(), "centered": True}, {"params": net[2].parameters()}]
    with pytest.raises(AssertionError, match="centered"):
        read(optim.RMSprop(groups, lr=0.1))


def test_maximize_is_reported_once_to_have_no_effect(net, log):
    latch = OptimizerLatch(poptorch.Options())
    for _ in range(2):
        latch.set(optim.SGD(net.parameters(), lr=0.1, maximize=True))
    (warning,) = warnings_in(log)
    assert "maximize" in warning


@pytest.mark.parametrize("attribute", ["loss_scaling", "max_grad_norm", "accum_type"])
def test_extra_attributes_set_on_torch_optimizers_are_read(net, attribute):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    value = HALF if attribute == "accum_type" else 2.0
    setattr(optimizer, attribute, value)
    latched = read(optimizer)
    found = latched.shared[attribute].value if attribute in latched.shared else latched.structure[attribute]
    assert found == value


@pytest.mark.parametrize(
    "cls, arguments, variable",
    [
        (torch.optim.SGD, dict(lr=1e-3), {"lr"}),
        (torch.optim.SGD, dict(lr=0.1, momentum=0.9, nesterov=True), {"lr", "momentum"}),
        (torch.optim.Adam, dict(betas=(0.5, 0.6)), {"lr"}),
        (torch.optim.AdamW, dict(weight_decay=1e-2), {"lr"}),
        (torch.optim.AdamW, dict(weight_decay=0.3, eps=1e-6), {"lr", "weight_decay", "eps"}),
        (torch.optim.RMSprop, dict(alpha=0.5, momentum=0.1), {"lr", "momentum"}),
    ],
)
def test_torch_optimizer_has_variable_what_differs_from_torchs_default(net, cls, arguments, variable):
    group = read(cls(net.parameters(), **{"lr": 0.1, **arguments})).groups[0]
    assert {name for name, attribute in group.items() if not attribute.constant} == variable


def test_constantness_of_torch_optimizers_is_that_of_each_group(net):
    groups = [{"params": net[0].parameters(), "weight_decay": 0.5}, {"params": net[2].parameters()}]
    first, second = read(torch.optim.SGD(groups, lr=0.1)).groups
    assert not first["weight_decay"].constant and second["weight_decay"].constant


# Latching


@pytest.fixture
def compiled(net):
    """A latch of a compiled model, and its optimizer with lr and momentum variable."""
    optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    latch = OptimizerLatch(poptorch.Options())
    latch.set(optimizer)
    return latch, optimizer


def test_values_are_latched_not_read_live(compiled):
    latch, optimizer = compiled
    optimizer.param_groups[0]["lr"] = 0.7
    assert latch.latched.groups[0]["lr"].value == 0.1
    assert latch.set(optimizer, compiled=True)
    assert latch.latched.groups[0]["lr"].value == 0.7
    assert not latch.set(optimizer, compiled=True)


@pytest.mark.parametrize("name, value", [("weight_decay", 0.5), ("dampening", 0.1), ("nesterov", True)])
def test_changed_constant_of_a_compiled_model_refused(compiled, name, value):
    latch, optimizer = compiled
    optimizer.param_groups[0][name] = value
    with pytest.raises(poptorch.Error, match=name):
        latch.set(optimizer, compiled=True)
    assert latch.latched.groups[0][name].value != value


def test_changed_constant_before_compilation_accepted(compiled):
    latch, optimizer = compiled
    optimizer.param_groups[0]["weight_decay"] = 0.5
    assert latch.set(optimizer)


def test_lr_marked_constant_cannot_change_after_compilation(net):
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    optimizer.variable_attrs.markAsConstant("lr")
    latch = OptimizerLatch(poptorch.Options())
    latch.set(optimizer)
    optimizer.param_groups[0]["lr"] = 0.2
    with pytest.raises(poptorch.Error, match="lr"):
        latch.set(optimizer, compiled=True)


def test_changed_constness_of_a_compiled_model_refused(compiled):
    latch, optimizer = compiled
    optimizer.variable_attrs.markAsVariable("weight_decay")
    with pytest.raises(poptorch.Error, match="weight_decay of group 0 was compiled as constant"):
        latch.set(optimizer, compiled=True)


def test_changed_loss_scaling_needs_to_be_variable(net):
    for given, accepted in ((dict(), False), (dict(loss_scaling=1.0), True)):
        optimizer = optim.Adam(net.parameters(), lr=0.1, **given)
        latch = OptimizerLatch(poptorch.Options())
        latch.set(optimizer)
        optimizer.loss_scaling = 8.0
        if accepted:
            latch.set(optimizer, compiled=True)
            assert latch.latched.loss_scaling == 8.0
        else:
            with pytest.raises(poptorch.Error, match="loss_scaling"):
                latch.set(optimizer, compiled=True)


def test_automatic_loss_scaling_makes_loss_scaling_variable(net):
    optimizer = optim.Adam(net.parameters(), lr=0.1)
    latch = OptimizerLatch(make_options(**{"automaticLossScalingSettings.enabled": True}))
    latch.set(optimizer)
    optimizer.loss_scaling = 8.0
    assert latch.set(optimizer, compiled=True)


@pytest.mark.parametrize(
    "other",
    [
        lambda net: optim.Adam(net.parameters(), lr=0.1),
        lambda net: optim.SGD(net.parameters(), lr=0.1, momentum=0.9, max_grad_norm=1.0),
        lambda net: optim.SGD(net.parameters(), lr=0.1, momentum=0.9, velocity_accum_type=HALF),
        lambda net: optim.SGD(net.parameters(), lr=0.1, momentum=0.9, use_combined_accum=True),
        lambda net: optim.SGD([{"params": net[0].parameters()}, {"params": net[2].parameters()}], lr=0.1, momentum=0.9),
        lambda net: optim.SGD(net[0].parameters(), lr=0.1, momentum=0.9),
    ],
    ids=["class", "clipping", "velocity type", "combined", "groups", "members"],
)
def test_optimizer_of_another_structure_after_compilation_refused(compiled, net, other):
    latch, present = compiled
    optimizer = other(net)
    with pytest.raises(poptorch.Error):
        latch.set(optimizer, compiled=True)
    assert latch.optimizer is present
    latch.set(optimizer)  # before compilation all of them are fine
    assert latch.optimizer is optimizer


def test_same_optimizer_of_torch_can_take_over_after_compilation(net):
    latch = OptimizerLatch(poptorch.Options())
    latch.set(optim.SGD(net.parameters(), lr=0.1))
    assert latch.set(torch.optim.SGD(net.parameters(), lr=0.2), compiled=True)


def strategy_of(options):
    return options.Training.meanAccumulationAndReplicationReductionStrategy


STRATEGIES = poptorch.MeanReductionStrategy


@pytest.mark.parametrize("asked", STRATEGIES)
@pytest.mark.parametrize("cls", CLASSES)
def test_half_accumulators_switch_to_the_running_mean(net, cls, asked):
    options = poptorch.Options()
    options.Training.setMeanAccumulationAndReplicationReductionStrategy(asked)
    options._freeze()
    OptimizerLatch(options).set(cls(net.parameters(), lr=0.1))
    assert strategy_of(options) == asked
    OptimizerLatch(options).set(cls(net.parameters(), lr=0.1, accum_type=HALF))
    assert strategy_of(options) == STRATEGIES.Running


def test_combined_sgd_keeps_the_strategy_with_half_accumulators(net):
    options = poptorch.Options()
    OptimizerLatch(options).set(optim.SGD(net.parameters(), lr=0.1, use_combined_accum=True, accum_type=HALF))
    assert strategy_of(options) == STRATEGIES.Post


def test_half_accumulators_after_compilation_refused(compiled, net):
    latch, _ = compiled
    with pytest.raises(ValueError, match="already compiled"):
        latch.set(optim.SGD(net.parameters(), lr=0.1, momentum=0.9, accum_type=HALF), compiled=True)


# Attributes that mean nothing to a device


def test_attributes_that_appear_later_are_reported_once(compiled, log):
    latch, optimizer = compiled
    optimizer.note = 1
    optimizer.param_groups[0]["remark"] = 2
    for _ in range(2):
        latch.set(optimizer, compiled=True)
    first, second = warnings_in(log)
    assert "Ignoring unexpected optimizer attribute" in first and "note" in first
    assert "Ignoring unexpected group 0 attribute" in second and "remark" in second


def test_attributes_there_from_the_start_are_not_reported(net, log):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.note = 1
    optimizer.param_groups[0]["remark"] = 2
    latch = OptimizerLatch(poptorch.Options())
    for _ in range(2):
        latch.set(optimizer)
    assert not warnings_in(log)


def test_relaxed_checks_report_for_debugging_only(net, log):
    options = poptorch.Options().relaxOptimizerAttributesChecks()
    optimizer = optim.AdamW(net.parameters(), lr=0.1)
    latch = OptimizerLatch(options)
    latch.set(optimizer)
    optimizer.note = 1
    latch.set(optimizer)
    assert not warnings_in(log)
    assert any("note" in record.getMessage() for record in log.records if record.levelno == logging.DEBUG)


@pytest.mark.parametrize(
    "first, second", [(torch.optim.AdamW, optim.AdamW), (optim.AdamW, torch.optim.AdamW), (torch.optim.SGD, optim.SGD)]
)
def test_change_between_torchs_and_poptorchs_class_reports_nothing(net, log, first, second):
    latch = OptimizerLatch(poptorch.Options())
    latch.set(first(net.parameters(), lr=0.1))
    latch.set(second(net.parameters(), lr=0.1))
    assert not warnings_in(log)


# Schedulers


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, abs),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "ConstantLR": lr_scheduler.ConstantLR,
    "LinearLR": lr_scheduler.LinearLR,
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.7),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9, cycle_momentum=False),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
}


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")
@pytest.mark.parametrize("make_scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("cls", [optim.SGD, optim.AdamW, optim.LAMB, torch.optim.SGD])
def test_schedulers_change_what_a_compiled_device_accepts(net, log, cls, make_scheduler):
    optimizer = cls(net.parameters(), lr=0.1)
    latch = OptimizerLatch(poptorch.Options())
    latch.set(optimizer)
    scheduler = make_scheduler(optimizer)
    rates = []
    for _ in range(5):
        scheduler.step()
        latch.set(optimizer, compiled=True)
        rates.append(latch.latched.groups[0]["lr"].value)
        assert rates[-1] == optimizer.param_groups[0]["lr"]
    assert len(set(rates)) > 1 and not warnings_in(log)


def test_reduce_on_plateau_changes_what_a_compiled_device_accepts(net):
    optimizer = optim.AdamW(net.parameters(), lr=0.1)
    latch = OptimizerLatch(poptorch.Options())
    latch.set(optimizer)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for loss in (1.0, 1.0, 1.0):
        scheduler.step(loss)
    assert latch.set(optimizer, compiled=True)
    assert latch.latched.groups[0]["lr"].value == pytest.approx(0.001)
