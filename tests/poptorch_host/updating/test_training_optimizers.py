# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Optimizers as a program sees them: through trainingModel, setOptimizer and state_dict."""

import collections
import copy
import json
import logging
import pickle

import numpy
import pytest
import torch

from tests.backend import host_only, needs_core, optim, poptorch, raises
from tests.poptorch_host.device import WithLoss, assert_close, make_batches, make_options

HALF = torch.float16
STRATEGIES = poptorch.MeanReductionStrategy


def make_trainer(make_optimizer, options=None, dtype=torch.float32):
    model = WithLoss(dtype)
    optimizer = make_optimizer(model.parameters())
    return poptorch.trainingModel(model, options or make_options(), optimizer), optimizer


def weights_of(trainer):
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def train(trainer, steps=3, dtype=torch.float32, seed=1):
    for inputs, targets in make_batches(steps, seed=seed):
        trainer(inputs.to(dtype), targets.to(dtype))
    return trainer


def set_rate(trainer, optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate
    trainer.setOptimizer(optimizer)


OPTIMIZERS = {
    "sgd": (optim.SGD, dict(momentum=0.9, weight_decay=0.1)),
    "torch sgd": (torch.optim.SGD, dict(nesterov=True, momentum=0.5)),
    "combined": (optim.SGD, dict(momentum=0.9, use_combined_accum=True)),
    "adam": (optim.Adam, dict(weight_decay=0.1)),
    "torch adam": (torch.optim.Adam, dict()),
    "adamw": (optim.AdamW, dict(loss_scaling=16.0)),
    "torch adamw": (torch.optim.AdamW, dict(weight_decay=0.3)),
    "rmsprop": (optim.RMSprop, dict(centered=True)),
    "torch rmsprop": (torch.optim.RMSprop, dict(momentum=0.9)),
    "lamb": (optim.LAMB, dict()),
    "adam, clipped": (optim.Adam, dict(max_grad_norm=0.01)),
}
DEVICE_ONLY = ("use_combined_accum", "loss_scaling", "max_grad_norm")


@pytest.mark.parametrize("cls, arguments", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("accumulation, replicas, iterations", [(1, 1, 1), (2, 2, 1), (2, 1, 2)])
def test_trained_weights_equal_torchs(cls, arguments, accumulation, replicas, iterations):
    options = make_options(accumulation).replicationFactor(replicas).deviceIterations(iterations)
    trainer, _ = make_trainer(lambda p: cls(p, lr=0.02, **arguments), options)
    theirs = WithLoss()
    plain = {name: value for name, value in arguments.items() if name not in DEVICE_ONLY}
    expected = getattr(torch.optim, cls.__name__, cls)(theirs.parameters(), lr=0.02, **plain)
    train(trainer)
    for inputs, targets in make_batches(3):
        for part, target in zip(inputs.chunk(iterations), targets.chunk(iterations)):
            expected.zero_grad()
            theirs(part, target)[1].backward()
            if "max_grad_norm" in arguments:
                torch.nn.utils.clip_grad_norm_(theirs.parameters(), arguments["max_grad_norm"])
            expected.step()
    assert_close(weights_of(trainer), list(theirs.parameters()))


@host_only("which kernels it has")
@pytest.mark.parametrize("name", ["adam", "torch adam", "adamw", "torch adamw"])
def test_adam_without_torchs_fused_kernel_equals_torchs(name, monkeypatch):
    monkeypatch.setattr("poptorch_host.updating.algorithms._has_fused", lambda rule, device: False)
    test_trained_weights_equal_torchs(*OPTIMIZERS[name], accumulation=1, replicas=1, iterations=1)


def test_default_optimizer_is_sgd_with_a_hundredth():
    model, other = WithLoss(), WithLoss()
    trainer = train(poptorch.trainingModel(model))
    expected = poptorch.trainingModel(other, optimizer=optim.SGD(other.parameters(), lr=0.01))
    assert_close(weights_of(trainer), weights_of(train(expected)), 0)


# Setting the optimizer


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW, optim.SGD, optim.Adam, optim.RMSprop, optim.LAMB])
def test_rate_of_zero_changes_nothing_until_another_is_set(cls):
    trainer, optimizer = make_trainer(lambda p: cls(p, lr=0.0))
    start = weights_of(train(trainer))
    assert_close(start, list(WithLoss().parameters()), 0)
    optimizer.param_groups[0]["lr"] = 0.1
    assert_close(weights_of(train(trainer)), start, 0)
    trainer.setOptimizer(optimizer)
    assert not torch.equal(weights_of(train(trainer))[0], start[0])


@pytest.mark.parametrize("kind", [numpy.float32, numpy.float64, numpy.int64])
def test_rates_may_be_numbers_of_numpy(kind):
    (trainer, optimizer), (other, plain) = (make_trainer(lambda p: optim.SGD(p, lr=0.1)) for _ in range(2))
    set_rate(trainer, optimizer, kind(2) / kind(8))
    set_rate(other, plain, 0.25)
    assert_close(weights_of(train(trainer)), weights_of(train(other)), 0)


@pytest.mark.parametrize("cls", [torch.optim.SGD, optim.SGD, torch.optim.AdamW, optim.AdamW])
def test_groups_have_rates_of_their_own_which_a_new_optimizer_can_change(cls):
    model = WithLoss()

    def make(first, second):
        return cls(
            [{"params": model.net[0].parameters(), "lr": first}, {"params": model.net[2].parameters(), "lr": second}],
            lr=0.5,
        )

    trainer = poptorch.trainingModel(model, optimizer=make(0.1, 0.0))
    start = weights_of(trainer)
    middle = weights_of(train(trainer))
    assert not torch.equal(middle[0], start[0]) and torch.equal(middle[2], start[2])
    trainer.setOptimizer(make(0.0, 0.1))
    end = weights_of(train(trainer))
    assert torch.equal(end[0], middle[0]) and not torch.equal(end[2], middle[2])


@needs_core("it holds the states of the optimizer")
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda optimizer: optimizer.param_groups[0].update(weight_decay=0.5), "weight_decay"),
        (lambda optimizer: setattr(optimizer, "loss_scaling", 2.0), "loss_scaling"),
        (lambda optimizer: setattr(optimizer, "max_grad_norm", 2.0), "max_grad_norm"),
    ],
)
def test_constant_changed_after_compilation_is_an_error_and_training_goes_on(change, message):
    trainer, optimizer = make_trainer(lambda p: optim.SGD(p, lr=0.1))
    train(trainer, 1)
    change(optimizer)
    with raises(poptorch.Error, match=message):
        trainer.setOptimizer(optimizer)
    train(trainer, 1)


def test_constant_can_change_again_after_destroy():
    trainer, optimizer = make_trainer(lambda p: optim.SGD(p, lr=0.1))
    train(trainer, 1).destroy()
    optimizer.param_groups[0]["weight_decay"] = 0.5
    trainer.setOptimizer(optimizer)
    train(trainer, 1)


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda p: torch.optim.Adagrad(p), AssertionError),
        (lambda p: optim.Adam(p, amsgrad=True), ValueError),
        (lambda p: optim.Adam(p, betas=[0.9, 0.99]), AssertionError),
    ],
)
def test_optimizer_is_checked_by_the_wrapper_and_by_setoptimizer(make, error):
    with raises(error):
        make_trainer(make)
    trainer, _ = make_trainer(lambda p: optim.Adam(p, lr=0.1))
    with raises(error):
        trainer.setOptimizer(make(trainer.model.parameters()))


def test_nan_for_max_grad_norm_is_an_error_of_compilation():
    trainer, _ = make_trainer(lambda p: optim.SGD(p, lr=0.1, max_grad_norm=float("nan")))
    with raises(poptorch.Error, match="max_grad_norm"):
        train(trainer, 1)
    assert not trainer.isCompiled()


def test_half_accumulators_switch_the_executors_options_not_the_users():
    options = make_options()
    trainer, _ = make_trainer(lambda p: optim.Adam(p, lr=0.1, accum_type=HALF), options)
    strategy = "meanAccumulationAndReplicationReductionStrategy"
    assert getattr(trainer.options.Training, strategy) == STRATEGIES.Running
    assert getattr(options.Training, strategy) == STRATEGIES.Post


def test_half_accumulators_set_before_compilation_switch_and_after_it_are_refused():
    trainer, _ = make_trainer(lambda p: optim.Adam(p, lr=0.1))
    trainer.setOptimizer(optim.Adam(trainer.model.parameters(), lr=0.1, accum_type=HALF))
    assert trainer.options.Training.meanAccumulationAndReplicationReductionStrategy == STRATEGIES.Running
    trainer, _ = make_trainer(lambda p: optim.Adam(p, lr=0.1))
    train(trainer, 1)
    with raises(ValueError, match="already compiled"):
        trainer.setOptimizer(optim.Adam(trainer.model.parameters(), lr=0.1, accum_type=HALF))


@host_only("PopTorch warns of what a scheduler adds to the optimizer")
def test_scheduler_after_compilation_raises_no_warning(caplog):
    caplog.set_level(logging.WARNING, logger="poptorch::python")
    trainer, optimizer = make_trainer(lambda p: torch.optim.SGD(p, lr=0.1))
    train(trainer, 1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.0)
    optimizer.step()
    scheduler.step()
    trainer.setOptimizer(optimizer)
    before = weights_of(trainer)
    assert_close(weights_of(train(trainer)), before, 0)
    assert not caplog.records


# The program


@host_only("the record of a compilation")
@pytest.mark.parametrize(
    "make, accumulation, per_weight",
    [
        (lambda p: optim.SGD(p, lr=0.1), 1, {"SGD0VarUpdate": 1}),
        (
            lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
            1,
            {"SGD2PartialAcclUpdate": 1, "Accumulate": 1, "SGD2VarUpdate": 1},
        ),
        (
            lambda p: optim.SGD(p, lr=0.1, use_combined_accum=True),
            2,
            {"Accumulate": 1, "SGD1AcclUpdate": 1, "SGD1VarUpdate": 1},
        ),
        (lambda p: torch.optim.Adam(p), 1, {"Accumulate": 2, "AdamUpdater": 1, "AdamVarUpdate": 1}),
        (lambda p: optim.AdamW(p), 2, {"Accumulate": 3, "AdamUpdater": 1, "AdamVarUpdate": 1}),
        (
            lambda p: optim.AdamW(p, accum_type=HALF),
            2,
            {"Accumulate": 3, "Cast": 1, "AdamUpdater": 1, "AdamVarUpdate": 1},
        ),
        (
            lambda p: optim.Adam(p, accum_type=HALF, first_order_momentum_accum_type=HALF),
            2,
            {"Accumulate": 3, "AdamUpdater": 1, "AdamVarUpdate": 1},
        ),
        (lambda p: optim.LAMB(p), 1, {"Accumulate": 2, "AdamUpdater": 1, "LambSquare": 2, "AdamVarUpdate": 1}),
        (lambda p: optim.RMSprop(p), 1, {"Accumulate": 1, "RMSPropUpdater": 1, "ScaledVarUpdate": 1}),
    ],
)
def test_program_lists_the_operations_of_the_update_for_each_weight(make, accumulation, per_weight):
    trainer, _ = make_trainer(make, make_options(accumulation))
    train(trainer, 1)
    operations = json.loads(trainer._debugGetPopartIR())["maingraph"]
    update = collections.Counter(operation["type"] for operation in operations if operation["inputs"])
    assert update == {kind: 4 * count for kind, count in per_weight.items()}


@host_only("the record of a compilation")
def test_program_names_the_types_of_weights_and_states():
    trainer, _ = make_trainer(lambda p: optim.Adam(p, first_order_momentum_accum_type=HALF), dtype=HALF)
    train(trainer, 1, HALF)
    operations = json.loads(trainer._debugGetPopartIR())["maingraph"]
    inputs = next(operation["inputs"] for operation in operations if operation["type"] == "AdamUpdater")
    assert {entry["name"].split("net")[0]: entry["type"] for entry in inputs} == {
        "": "FLOAT16",
        "Gradient___": "FLOAT16",
        "Accl1___": "FLOAT16",
        "Accl2___": "FLOAT",
    }


# The state

STATEFUL = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: optim.Adam(p, lr=0.1),
    "adamw": lambda p: optim.AdamW(p, lr=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.1),
    "lamb": lambda p: optim.LAMB(p, lr=0.1),
}
every_stateful = pytest.mark.parametrize("make", STATEFUL.values(), ids=STATEFUL)


def differing(left, right):
    return {
        name
        for part in ("ipu_state", "ipu_param")
        for name, tensor in left[part].items()
        if not torch.equal(tensor, right[part][name])
    }


@needs_core("it holds the states of the optimizer")
@every_stateful
def test_state_is_none_then_there_from_compilation_and_follows_training(make):
    trainer, optimizer = make_trainer(make)
    assert optimizer.state_dict()["ipu_state"] is None and optimizer.state_dict()["ipu_param"] is None
    trainer.compile(*make_batches(1)[0])
    compiled = optimizer.state_dict()
    train(trainer, 1)
    trained = optimizer.state_dict()
    assert differing(compiled, trained) == set(trained["ipu_state"])
    set_rate(trainer, optimizer, 0.5)
    changed = differing(trained, optimizer.state_dict())
    assert changed and all("earningRate" in name for name in changed)


@every_stateful
def test_training_goes_on_from_weights_and_a_loaded_state(make):
    whole, _ = make_trainer(make)
    train(whole, 3)
    train(whole, 2, seed=5)
    first, optimizer = make_trainer(make)
    train(first, 3)
    model = WithLoss()
    model.load_state_dict(first.model.state_dict())
    fresh = make(model.parameters())
    fresh.load_state_dict(optimizer.state_dict())
    second = poptorch.trainingModel(model, make_options(), fresh)
    train(second, 2, seed=5)
    assert_close(weights_of(second), weights_of(whole), 0)


@every_stateful
def test_state_loaded_into_a_running_model_takes_effect_at_the_next_run(make):
    trainer, optimizer = make_trainer(make)
    train(trainer, 2)
    weights, state = copy.deepcopy(trainer.model.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(trainer, 2, seed=5)
    expected = weights_of(trainer)
    trainer.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(trainer, 2, seed=5)
    assert_close(weights_of(trainer), expected, 0)


@every_stateful
def test_detaching_and_attaching_keeps_weights_and_state(make):
    whole, _ = make_trainer(make)
    trainer, optimizer = make_trainer(make)
    for each in (whole, trainer):
        train(each, 2)
    trainer.detachFromDevice()
    state = optimizer.state_dict()
    trainer.attachToDevice()
    assert not differing(state, optimizer.state_dict())
    assert_close(weights_of(train(trainer, 2)), weights_of(train(whole, 2)), 0)


def test_destroyed_model_leaves_the_state_with_the_optimizer_and_goes_on_from_it():
    make = STATEFUL["adam"]
    whole, _ = make_trainer(make)
    trainer, optimizer = make_trainer(make)
    for each in (whole, trainer):
        train(each, 2)
    trainer.destroy()
    assert optimizer.state_dict()["ipu_state"]["Step___net.0.weight"] == 2
    assert_close(weights_of(train(trainer, 2)), weights_of(train(whole, 2)), 0)


def test_replaced_optimizer_goes_on_with_the_momenta_on_the_device():
    whole, _ = make_trainer(STATEFUL["adam"])
    trainer, _ = make_trainer(STATEFUL["adam"])
    for each in (whole, trainer):
        train(each, 2)
    trainer.setOptimizer(STATEFUL["adam"](trainer.model.parameters()))
    assert_close(weights_of(train(trainer, 2)), weights_of(train(whole, 2)), 0)


@needs_core("it holds the states of the optimizer")
def test_optimizer_in_use_can_be_pickled_with_its_state():
    trainer, optimizer = make_trainer(STATEFUL["adamw"])
    train(trainer, 2)
    again = pickle.loads(pickle.dumps(optimizer))
    assert not differing(again.state_dict(), optimizer.state_dict())


def test_offline_target_has_no_state():
    options = make_options().useOfflineIpuTarget()
    trainer, optimizer = make_trainer(STATEFUL["adam"], options)
    trainer.compile(*make_batches(1)[0])
    assert optimizer.state_dict()["ipu_state"] is None and optimizer.state_dict()["ipu_param"] is None


# Half


def make_half_trainer(seed, **arguments):
    options = make_options(2)
    options.randomSeed(seed)
    options.Precision.enableStochasticRounding(True)
    options.Training.setAutomaticLossScaling("loss_scaling" in arguments)
    if "loss_scaling" in arguments:
        options.anchorTensor("scale", "finalLossScale")
    return make_trainer(lambda p: optim.AdamW(p, lr=1e-3, accum_type=HALF, **arguments), options, HALF)


@needs_core("it holds the states of the optimizer")
def test_half_training_is_reproducible_from_the_seed():
    first, same, other = [weights_of(train(make_half_trainer(seed)[0], 4, HALF)) for seed in (1, 1, 2)]
    assert all(weight.dtype == HALF for weight in first)
    assert_close(first, same, 0)
    assert not all(torch.equal(left, right) for left, right in zip(first, other))


def test_rng_state_brings_back_the_rounding_of_weights():
    trainer, optimizer = make_half_trainer(1)
    train(trainer, 2, HALF)
    weights = copy.deepcopy(trainer.model.state_dict())
    state, rng_state = copy.deepcopy(optimizer.state_dict()), trainer.rng_state
    expected = weights_of(train(trainer, 3, HALF))
    trainer.load_state_dict(weights)
    optimizer.load_state_dict(state)
    trainer.rng_state = rng_state
    assert_close(weights_of(train(trainer, 3, HALF)), expected, 0)


@needs_core("it holds the states of the optimizer")
def test_automatic_loss_scaling_shows_in_state_and_anchor():
    trainer, optimizer = make_half_trainer(1, loss_scaling=16.0)
    for step in range(1, 4):
        train(trainer, 1, HALF)
        assert optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"] == 2.0**step
        assert trainer.getAnchoredTensor("scale") == 16.0 * 2.0 ** (step - 1)


def test_returned_loss_is_not_scaled():
    plain, scaled = [
        make_trainer(lambda p, scaling=scaling: optim.SGD(p, lr=0.1, loss_scaling=scaling))[0]
        for scaling in (1.0, 64.0)
    ]
    for inputs, targets in make_batches(3):
        torch.testing.assert_close(scaled(inputs, targets)[1], plain(inputs, targets)[1])
