# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Gradients at the scale of torch.amp.GradScaler, beside a loop that uses it as PyTorch's documentation shows."""

import math

import pytest
import torch
from poptorch_host import host
from poptorch_host.updating import update

from tests.backend import host_only, optim
from tests.poptorch_host.device import Device, assert_close, make_batches, make_net, train_on_host

CPU = hasattr(torch.amp, "GradScaler")
pytestmark = [
    host_only("its own modules, driven directly"),
    pytest.mark.skipif(not CPU, reason="this PyTorch scales gradients of GPUs only"),
]
OPTIMIZERS = {"fused": optim.AdamW, "not fused": optim.SGD}
REFERENCES = {optim.AdamW: torch.optim.AdamW, optim.SGD: torch.optim.SGD}
NORM = 0.3


@pytest.fixture
def scaling():
    host.configure(scale_gradients=True)
    yield
    host.configure(scale_gradients=False)


def device_of(cls):
    return Device(make_net(), lambda p: cls(p, lr=0.1, max_grad_norm=NORM))


def overflowing(batch):
    """A batch whose gradients overflow."""
    return batch[0], torch.full_like(batch[1], math.inf)


def train_with_scaler(model, optimizer, scaler, inputs, targets):
    """The example "Gradient clipping" of PyTorch's documentation of automatic mixed precision."""
    optimizer.zero_grad()
    scaler.scale(torch.nn.functional.mse_loss(model(inputs), targets)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), NORM)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("cls", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_weights_and_scale_are_those_of_a_loop_with_a_scaler(cls, late, scaling, monkeypatch):
    """An overflow halves the scale and leaves the update out; two good updates double it."""
    monkeypatch.setattr(update, "is_apart", lambda _: late)
    device, model = device_of(cls), make_net()
    reference = REFERENCES[cls](model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", growth_interval=2)
    device.update._scaler.set_growth_interval(2)
    batches = make_batches(5)
    for batch in (*batches[:2], overflowing(batches[2]), *batches[3:]):
        device.train(*batch)
        train_with_scaler(model, reference, scaler, *batch)
    assert_close(device.weights, list(model.parameters()))
    assert device.update._scaler.get_scale() == scaler.get_scale() == 2.0**16 * 2 / 2 * 2
    if device.update.is_late:
        device.update.note(device.update.take_findings())
    assert (device.update.overflows, device.update.skipped) == (1, 1)
    assert device.update.is_late == (late and cls is optim.AdamW)


def test_state_of_the_optimizer_holds_scale_and_growth(scaling):
    device, batches = device_of(optim.AdamW), make_batches(3)
    device.train(*overflowing(batches[0]))
    device.train(*batches[1])
    state = device.optimizer.state_dict()
    assert state["ipu_state"]["gradScaler___scale"] == 2.0**15
    assert state["ipu_state"]["gradScaler___growthTracker"] == 1
    resumed = device_of(optim.AdamW)
    resumed.optimizer.load_state_dict(state)
    resumed.update.upload()
    assert resumed.update._scaler.state_dict() == device.update._scaler.state_dict()


def test_device_without_a_scaler_takes_the_state_of_one(scaling, caplog):
    device = device_of(optim.AdamW)
    device.train(*make_batches(1)[0])
    state = device.optimizer.state_dict()
    host.configure(scale_gradients=False)
    plain = device_of(optim.AdamW)
    plain.optimizer.load_state_dict(state)
    plain.train(*make_batches(2)[1])
    assert not caplog.records and "gradScaler___scale" not in plain.optimizer.state_dict()["ipu_state"]


def test_scaling_changes_no_weight_where_nothing_overflows(scaling):
    scaled, plain = device_of(optim.AdamW), make_net()
    reference = torch.optim.AdamW(plain.parameters(), lr=0.1)
    for inputs, targets in make_batches(4):
        scaled.train(inputs, targets)
        train_on_host(plain, reference, inputs, targets, NORM)
    assert_close(scaled.weights, list(plain.parameters()))
