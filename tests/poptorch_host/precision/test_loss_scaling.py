# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Loss scaling, static and automatic, and what happens when gradients are not finite."""

import math

import pytest
import torch
from poptorch_host.precision.loss_scale import LARGEST_SCALE, SHRINK_ABOVE, SMALLEST_FACTOR

from tests.backend import host_only, optim, poptorch
from tests.poptorch_host.device import Device, assert_close, make_batches, make_net, make_options

pytestmark = host_only("its own modules, driven directly")


AUTOMATIC = {"automaticLossScalingSettings.enabled": True}
CHECKS = {"enableFloatingPointChecks": True}
HALF = torch.float16


def half_device(options=None, **arguments):
    return Device(make_net(HALF), lambda p: optim.SGD(p, **{"lr": 0.5, **arguments}), options)


def feed(device, value, name="0.bias"):
    """One update whose gradient, scaled already, is `value` everywhere."""
    weight = device.parameters[name]
    weight.grad = torch.full_like(weight, value)
    device.update.before_backward(1)
    device.update.accumulate(1)
    device.update.apply()
    device.update.mark_run()


def factor_of(device):
    return device.optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"].item()


# Static


@pytest.mark.parametrize("cls", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.LAMB])
@pytest.mark.parametrize("scaling", [1.0, 3.0, 1024.0])
def test_loss_scaling_changes_nothing_in_float32(cls, scaling):
    plain = Device(make_net(), lambda p: cls(p, lr=0.1))
    scaled = Device(make_net(), lambda p: cls(p, lr=0.1, loss_scaling=scaling), make_options(2))
    assert scaled.update.root_gradient() == scaling
    for inputs, targets in make_batches(4):
        plain.train(inputs, targets)
        scaled.train(inputs, targets)
    assert_close(scaled.weights, plain.weights)


def test_loss_scaling_saves_small_half_gradients():
    """1e-8 is below half of float16's smallest number."""

    def moved(scaling):
        device = half_device(lr=1e5, loss_scaling=scaling)
        device.parameters["0.bias"].data.zero_()
        device.feed([{"0.bias": torch.full((8,), 1e-8)}])
        return device.parameters["0.bias"].detach().float()

    assert (moved(1.0) == 0).all()
    torch.testing.assert_close(moved(1024.0), torch.full((8,), -1e-3), rtol=1e-2, atol=0)


def test_variable_loss_scaling_can_change_on_the_fly():
    plain = Device(make_net(), lambda p: optim.SGD(p, lr=0.1, momentum=0.9))
    scaled = Device(make_net(), lambda p: optim.SGD(p, lr=0.1, momentum=0.9, loss_scaling=2.0))
    for step, (inputs, targets) in enumerate(make_batches(4)):
        scaled.optimizer.loss_scaling = 2.0**step
        scaled.update.latch(scaled.optimizer)
        assert scaled.update.root_gradient() == 2.0**step
        scaled.train(inputs, targets)
        plain.train(inputs, targets)
    assert_close(scaled.weights, plain.weights)


def test_combined_sgd_follows_a_change_of_loss_and_velocity_scaling():
    def device(**arguments):
        return Device(
            make_net(HALF),
            lambda p: optim.SGD(
                p, lr=0.25, momentum=0.5, use_combined_accum=True, velocity_scaling=1.0, loss_scaling=1.0
            ),
        )

    plain, scaled = device(), device()
    for step in range(3):
        scaled.optimizer.loss_scaling = scaled.optimizer.param_groups[0]["velocity_scaling"] = 4.0**step
        scaled.update.latch(scaled.optimizer)
        for each in (plain, scaled):
            each.feed([{"0.bias": torch.arange(8.0) / 8}])
    assert_close(scaled.weights, plain.weights, 0)


# Overflow


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_overflow_without_automatic_scaling_is_applied_counted_and_reported_once(bad, caplog):
    device = half_device()
    for _ in range(2):
        feed(device, bad)
    assert not device.parameters["0.bias"].isfinite().any()
    assert (device.update.updates, device.update.overflows, device.update.skipped) == (2, 2, 0)
    assert len([record for record in caplog.records if "not finite" in record.getMessage()]) == 1


def test_finite_updates_count_no_overflow():
    device = half_device()
    feed(device, 1.0)
    assert (device.update.updates, device.update.overflows, device.update.skipped) == (1, 0, 0)


def test_floating_point_exceptions_raise_and_leave_the_weights_alone():
    device = Device(make_net(), lambda p: optim.SGD(p, lr=0.5), make_options(**CHECKS))
    start = device.parameters["0.bias"].detach().clone()
    with pytest.raises(poptorch.Error, match="not finite"):
        feed(device, math.nan)
    assert torch.equal(device.parameters["0.bias"].detach(), start)
    feed(device, 1.0)
    assert torch.equal(device.parameters["0.bias"].detach(), start - 0.5)


# Automatic


def test_automatic_scaling_doubles_while_half_gradients_are_small():
    device = half_device(make_options(**AUTOMATIC), loss_scaling=4.0)
    scales = []
    for _ in range(4):
        scales.append(device.update.root_gradient())
        feed(device, 1.0)
    assert scales == [4.0, 8.0, 16.0, 32.0]
    assert factor_of(device) == 16.0 and device.update.loss_scale == 64.0


@pytest.mark.parametrize("value, factor", [(SHRINK_ABOVE + 8, 0.5), (-SHRINK_ABOVE - 8, 0.5), (SHRINK_ABOVE, 2.0)])
def test_automatic_scaling_halves_beyond_an_eighth_of_the_range(value, factor):
    device = half_device(make_options(**AUTOMATIC), lr=0.0)
    feed(device, value)
    assert factor_of(device) == factor and device.update.skipped == 0


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_automatic_scaling_skips_overflows_and_halves(bad):
    device = half_device(make_options(**AUTOMATIC), momentum=0.9)
    start = [weight.clone() for weight in device.weights]
    feed(device, bad)
    assert_close(device.weights, start, 0)
    assert factor_of(device) == 0.5
    assert (device.optimizer.state_dict()["ipu_state"]["Accl1___0.bias"] == 0).all()
    assert (device.update.overflows, device.update.skipped) == (1, 1)
    feed(device, 1.0)
    assert not torch.equal(device.parameters["0.bias"], start[1]) and device.update.skipped == 1


def feed_all(device, values):
    """One update from micro-batches whose gradients, scaled already, are these values."""
    for value in values:
        device.parameters["0.bias"].grad = torch.full((8,), value, dtype=HALF)
        device.update.before_backward(1)
        device.update.accumulate(1)
    device.update.apply()
    device.update.mark_run()


@pytest.mark.parametrize("value, skipped", [(math.inf, 1), (math.nan, 1), (10000.0, 0)])
def test_automatic_scaling_sees_a_large_gradient_in_any_micro_batch(value, skipped):
    device = half_device(make_options(4, **AUTOMATIC))
    feed_all(device, [1.0, value, 1.0, 1.0])
    assert device.update.skipped == skipped and factor_of(device) == 0.5


def test_automatic_scaling_skips_a_sum_that_overflows_though_no_gradient_is_large():
    options = make_options(10, **AUTOMATIC)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
    device = half_device(options, accum_type=HALF)
    feed_all(device, [8000.0] * 10)
    assert device.update.skipped == 1 and factor_of(device) == 0.5


def test_automatic_scaling_ignores_float32_gradients():
    device = Device(make_net(), lambda p: optim.SGD(p, lr=0.0), make_options(**AUTOMATIC))
    for _ in range(3):
        feed(device, 1e6)
    assert factor_of(device) == 1.0


def test_automatic_scaling_stays_within_its_bounds():
    device = half_device(make_options(**AUTOMATIC), lr=0.0, loss_scaling=LARGEST_SCALE / 2)
    for _ in range(3):
        feed(device, 1.0)
    assert device.update.loss_scale == LARGEST_SCALE
    for _ in range(50):
        feed(device, math.inf)
    assert factor_of(device) == SMALLEST_FACTOR


def test_automatic_scaling_reduces_to_the_unscaled_update():
    plain, scaled = half_device(), half_device(make_options(**AUTOMATIC))
    for _ in range(4):
        for device in (plain, scaled):
            device.feed([{"0.bias": torch.arange(8.0) / 8}])
    assert_close(scaled.weights, plain.weights, 0)


def test_automatic_scaling_factor_is_part_of_the_state():
    first, second = [half_device(make_options(**AUTOMATIC)) for _ in range(2)]
    for _ in range(3):
        feed(first, 1.0)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.update.upload()
    assert factor_of(second) == 8.0 and second.update.root_gradient() == 8.0
