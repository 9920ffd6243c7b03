# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The state of an optimizer on its way between the device, the user's object and files."""

import copy
import io
import logging
import pickle

import pytest
import torch
from poptorch_host.updating.state_names import LOSS_SCALING

from tests.backend import host_only, optim, poptorch
from tests.poptorch_host.device import Device, assert_close, make_batches, make_net, make_options

pytestmark = host_only("its own modules, driven directly")


NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]
OPTIMIZERS = {
    "sgd momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd combined": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, use_combined_accum=True, velocity_scaling=4.0),
    "adam": lambda p: optim.Adam(p, lr=0.1),
    "adamw": lambda p: optim.AdamW(p, lr=0.1, weight_decay=0.3),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "rmsprop tf": lambda p: optim.RMSprop(p, lr=0.1, momentum=0.9, use_tf_variant=True),
    "lamb": lambda p: optim.LAMB(p, lr=0.1),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def train(device, steps, seed=1):
    for inputs, targets in make_batches(steps, seed=seed):
        device.train(inputs, targets)
    return device


def trained(make, steps=3, **arguments):
    return train(Device(make_net(**arguments), make), steps)


def with_weights_of(device, make):
    """A new device that has the weights of another, and a state of its own."""
    net = make_net()
    net.load_state_dict(device.module.state_dict())
    return Device(net, make)


def assert_same_state(left, right):
    for part in ("ipu_state", "ipu_param"):
        assert left[part].keys() == right[part].keys()
        assert all(torch.equal(left[part][name], right[part][name]) for name in left[part])


# Reading


@every_optimizer
def test_state_is_none_before_compilation_and_tensors_by_name_after(make):
    optimizer = make(make_net().parameters())
    before = optimizer.state_dict()
    assert before["ipu_state"] is None and before["ipu_param"] is None
    assert not optimizer.has_state() and before["state"] == {}
    state = trained(make).optimizer.state_dict()
    assert set(state) == {"ipu_state", "ipu_param", "state", "param_groups"} and state["state"] == {}
    tensors = [*state["ipu_state"].values(), *state["ipu_param"].values()]
    assert all(isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" for tensor in tensors)


@pytest.mark.parametrize(
    "make, prefixes",
    [
        (lambda p: optim.SGD(p, lr=0.1), []),
        (lambda p: optim.SGD(p, lr=0.1, momentum=0.0), ["Accl1"]),
        (OPTIMIZERS["sgd momentum"], ["Accl1"]),
        (OPTIMIZERS["adam"], ["Accl1", "Accl2", "Step"]),
        (OPTIMIZERS["lamb"], ["Accl1", "Accl2", "Step"]),
        (OPTIMIZERS["rmsprop"], ["Accl1", "Accl2", "Accl3"]),
    ],
)
def test_states_have_a_prefix_for_each_kind_and_the_weights_name(make, prefixes):
    state = trained(make).optimizer.state_dict()["ipu_state"]
    assert set(state) == {f"{prefix}___{name}" for prefix in prefixes for name in NAMES}


def test_adamw_parameters_are_by_weight():
    groups = [{"params": 0, "lr": 0.25, "weight_decay": 0.5}, {"params": 2}]

    def make(_):
        filled = [{**group, "params": net[group["params"]].parameters()} for group in groups]
        return optim.AdamW(filled, lr=0.125, weight_decay=0.75, betas=(0.5, 0.25), eps=2.0**-10, loss_scaling=8.0)

    net = make_net()
    values = Device(net, make).optimizer.state_dict()["ipu_param"]
    assert values[LOSS_SCALING] == 8.0
    assert values["learningRate___specific___0.weight"] == values["learningRate___specific___0.bias"] == 0.25
    assert values["learningRate___specific___2.weight"] == 0.125
    assert values["weightDecay___specific___0.bias"] == 0.5 and values["weightDecay___specific___2.bias"] == 0.75
    assert all(
        values[f"{name}___specific___2.bias"] == value
        for name, value in (("adamBeta1", 0.5), ("adamBeta2", 0.25), ("adamEps", 2.0**-10))
    )


def test_sgd_parameters_hold_the_products_of_its_update():
    device = Device(make_net(), lambda p: optim.SGD(p, lr=0.5, dampening=0.25, weight_decay=0.125, loss_scaling=4.0))
    values = device.optimizer.state_dict()["ipu_param"]
    for name in NAMES:
        assert values[f"scaledLearningRate0___specific___{name}"] == 0.5 * 0.75 / 4
        assert values[f"weightDecayScaleFactor0___specific___{name}"] == 1 - 0.5 * 0.75 * 0.125


SGD_SCALARS = [
    (dict(momentum=0.5), {"sgdWeightDecay": 0.125, "scaledMomentum2": 0.5, "dampeningScaleFactor2": 0.75 / 4}),
    (
        dict(momentum=0.5, use_combined_accum=True, velocity_scaling=8.0),
        {"scaledWeightDecay1": 0.75 * 0.125 * 8, "scaledMomentum1": 0.5, "dampeningScaleFactor1": 0.75 * 8 / 4},
    ),
]


@pytest.mark.parametrize("settings, factors", SGD_SCALARS, ids=["separate", "combined"])
def test_sgd_with_momentum_has_the_factors_of_its_velocity(settings, factors):
    def make(parameters):
        return optim.SGD(parameters, lr=0.5, dampening=0.25, weight_decay=0.125, loss_scaling=4.0, **settings)

    kind = "1" if "use_combined_accum" in settings else "2"
    expected = {**factors, f"scaledLearningRate{kind}": 0.5 / settings.get("velocity_scaling", 1.0)}
    values = Device(make_net(), make).optimizer.state_dict()["ipu_param"]
    assert values == {
        LOSS_SCALING: 4.0,
        **{f"{key}___specific___{n}": expected[key] for key in expected for n in NAMES},
    }


def test_constant_hyper_parameters_are_part_of_the_program_and_not_of_the_state():
    values = Device(make_net(), OPTIMIZERS["adam"]).optimizer.state_dict()["ipu_param"]
    assert set(values) == {f"learningRate___specific___{name}" for name in NAMES}


@every_optimizer
def test_state_starts_at_its_initial_value_and_changes_by_training_only(make):
    device = Device(make_net(), make)
    start = device.optimizer.state_dict()
    average_starts_at = 1.0 if make is OPTIMIZERS["rmsprop tf"] else 0.0
    for name, tensor in start["ipu_state"].items():
        assert (tensor == (average_starts_at if name.startswith("Accl1") else 0.0)).all()
    train(device, 1)
    after = device.optimizer.state_dict()
    assert all(not torch.equal(after["ipu_state"][name], tensor) for name, tensor in start["ipu_state"].items())
    assert all(torch.equal(after["ipu_param"][name], tensor) for name, tensor in start["ipu_param"].items())


def test_new_learning_rate_shows_in_the_parameters_at_once():
    device = trained(OPTIMIZERS["adam"])
    before = device.optimizer.state_dict()
    device.optimizer.param_groups[0]["lr"] = 0.5
    assert_same_state(device.optimizer.state_dict(), before)
    device.update.latch(device.optimizer)
    after = device.optimizer.state_dict()
    assert after["ipu_param"]["learningRate___specific___0.weight"] == 0.5
    assert all(torch.equal(after["ipu_state"][name], tensor) for name, tensor in before["ipu_state"].items())


def test_state_is_fetched_once_until_the_next_run(monkeypatch):
    device = trained(OPTIMIZERS["adam"])
    reads = []
    read = device.optimizer._device_state
    monkeypatch.setattr(device.optimizer, "_device_state", lambda: reads.append(1) or read())
    for _ in range(3):
        device.optimizer.state_dict()
    assert len(reads) == 1
    train(device, 1)
    assert device.optimizer.ipu_state_is_dirty
    device.optimizer.get_state_dict()
    assert len(reads) == 2 and not device.optimizer.ipu_state_is_dirty


def test_state_that_was_read_is_not_changed_by_training():
    device = trained(OPTIMIZERS["adamw"])
    state = device.optimizer.state_dict()
    kept = copy.deepcopy(state)
    train(device, 2)
    assert_same_state(state, kept)


# Loading


@every_optimizer
def test_loaded_state_goes_on_exactly(make):
    """Three steps, a new device with the state, two more: as five steps in one go."""
    whole, first = trained(make, 3), trained(make, 3)
    second = with_weights_of(first, make)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    for device in (whole, second):
        train(device, 2, seed=5)
    assert_close(second.weights, whole.weights, 0)
    assert_same_state(second.optimizer.state_dict(), whole.optimizer.state_dict())


@every_optimizer
def test_state_loaded_before_compilation_is_on_the_device_after(make):
    first = trained(make)

    def make_loaded(parameters):
        optimizer = make(parameters)
        optimizer.load_state_dict(first.optimizer.state_dict())
        return optimizer

    second = with_weights_of(first, make_loaded)
    assert not second.optimizer.host_state_is_dirty
    assert_same_state(second.optimizer.state_dict(), first.optimizer.state_dict())


def test_state_dict_survives_a_file_that_is_loaded_safely():
    device = trained(OPTIMIZERS["adamw"])
    file = io.BytesIO()
    torch.save(device.optimizer.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    other = Device(make_net(), OPTIMIZERS["adamw"])
    other.optimizer.load_state_dict(loaded)
    other.update.upload()
    assert_same_state(other.optimizer.state_dict(), device.optimizer.state_dict())


def test_loaded_state_is_read_back_before_it_is_sent_and_sent_at_the_next_run():
    first, second = trained(OPTIMIZERS["adam"]), trained(OPTIMIZERS["adam"], 1)
    state = first.optimizer.state_dict()
    second.optimizer.load_state_dict(state)
    assert second.optimizer.host_state_is_dirty
    assert_same_state(second.optimizer.state_dict(), state)
    assert second.update.read_state()[0]["Step___0.weight"] == 1
    second.update.upload()
    assert second.update.read_state()[0]["Step___0.weight"] == 3 and not second.optimizer.host_state_is_dirty


def test_loaded_state_is_read_back_after_the_optimizer_is_set_again():
    first, second = trained(OPTIMIZERS["adam"]), trained(OPTIMIZERS["adam"], 1)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.optimizer.param_groups[0]["lr"] = 0.5
    second.update.latch(second.optimizer)
    second.update.mark_run()
    assert_same_state(second.optimizer.state_dict(), first.optimizer.state_dict())


def test_loading_brings_the_learning_rate_to_groups_and_device():
    first = Device(make_net(), lambda p: optim.SGD(p, lr=0.75))
    second = Device(make_net(), lambda p: optim.SGD(p, lr=0.5))
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.update.upload()
    on_device = second.optimizer.state_dict()["ipu_param"]["scaledLearningRate0___specific___0.weight"]
    assert second.optimizer.param_groups[0]["lr"] == on_device == 0.75


VARIABLE = {  # nothing is constant, so that everything can be loaded
    "sgd": lambda p, k: optim.SGD(p, lr=0.1 * k, weight_decay=0.1 * k, dampening=0.2 * k, loss_scaling=2.0),
    "sgd momentum": lambda p, k: optim.SGD(
        p, lr=0.1 * k, weight_decay=0.1 * k, dampening=0.2 * k, momentum=0.3 * k, loss_scaling=2.0
    ),
    "sgd combined": lambda p, k: optim.SGD(
        p,
        lr=0.1 * k,
        weight_decay=0.1 * k,
        dampening=0.2 * k,
        momentum=0.3 * k,
        use_combined_accum=True,
        velocity_scaling=4.0,
        loss_scaling=2.0,
    ),
    "adam": lambda p, k: optim.Adam(p, lr=0.1 * k, betas=(0.3 * k, 0.4 * k), eps=1e-3 * k, weight_decay=0.1 * k),
    "adamw": lambda p, k: optim.AdamW(p, lr=0.1 * k, betas=(0.3 * k, 0.4 * k), eps=1e-3 * k, weight_decay=0.1 * k),
    "rmsprop": lambda p, k: optim.RMSprop(p, lr=0.1 * k, alpha=0.4 * k, eps=1e-3 * k, momentum=0.4 * k),
    "lamb": lambda p, k: optim.LAMB(p, lr=0.1 * k, betas=(0.3 * k, 0.4 * k), eps=1e-3 * k, max_weight_norm=0.5 * k),
}


@pytest.mark.parametrize("make", VARIABLE.values(), ids=VARIABLE)
def test_a_weight_is_updated_with_the_hyper_parameters_that_were_loaded_for_it(make):
    first, second, mixed = (Device(make_net(), lambda p, k=k: make(p, k)) for k in (1, 2, 1))
    state = mixed.optimizer.state_dict()
    other = second.optimizer.state_dict()["ipu_param"]
    state["ipu_param"].update({name: value for name, value in other.items() if name.endswith("0.bias")})
    mixed.optimizer.load_state_dict(state)
    mixed.update.upload()
    for device in (first, second, mixed):  # gradients are the same in the first step only
        train(device, 1)
    for name in NAMES:
        assert_close(mixed.parameters[name], (second if name == "0.bias" else first).parameters[name])
    after = mixed.optimizer.state_dict()["ipu_param"]
    assert all(torch.equal(after[name], value) for name, value in state["ipu_param"].items())
    mixed.update.latch(mixed.optimizer)
    again, plain = (device.optimizer.state_dict()["ipu_param"] for device in (mixed, first))
    assert all(torch.equal(again[name], value) for name, value in plain.items())


@pytest.mark.parametrize("make", VARIABLE.values(), ids=VARIABLE)
def test_any_numbers_can_be_loaded_and_states_move_on_with_them(make):
    device = Device(make_net(), lambda p: make(p, 1))
    state, generator = device.optimizer.state_dict(), torch.Generator().manual_seed(1)
    for part in ("ipu_state", "ipu_param"):
        for name, tensor in state[part].items():
            state[part][name] = torch.randn(tensor.shape, generator=generator)
    device.optimizer.load_state_dict(state)
    device.update.upload()
    train(device, 1)
    after = device.optimizer.state_dict()
    assert all(torch.equal(after["ipu_param"][name], value) for name, value in state["ipu_param"].items())
    assert not any(torch.equal(after["ipu_state"][name], value) for name, value in state["ipu_state"].items())


def test_learning_rate_set_after_loading_counts_more_than_the_loaded_one():
    first, second = [Device(make_net(), lambda p: optim.Adam(p, lr=0.5)) for _ in range(2)]
    state = first.optimizer.state_dict()
    second.optimizer.load_state_dict(state)
    second.optimizer.param_groups[0]["lr"] = 0.25
    second.update.latch(second.optimizer)
    second.update.upload()
    assert second.latch.latched.groups[0]["lr"].value == 0.25


def test_loading_keeps_values_equal_to_float32_precision_unrounded():
    first, second = [Device(make_net(), lambda p: optim.Adam(p, lr=0.1)) for _ in range(2)]
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.update.upload()
    assert second.latch.latched.groups[0]["lr"].value == 0.1
    assert second.latch.latched.groups[0]["betas"].value == (0.9, 0.999)


def test_constant_values_of_a_loaded_state_are_not_taken_over():
    first = Device(make_net(), lambda p: optim.AdamW(p, lr=0.1, weight_decay=0.5))
    second = Device(make_net(), lambda p: optim.AdamW(p, lr=0.1))
    second.optimizer.set_state_dict(first.optimizer.state_dict())
    second.update.upload()
    assert second.latch.latched.groups[0]["weight_decay"].value == 0.01


def test_missing_entries_keep_the_values_of_the_device_with_a_warning(caplog):
    first, second = trained(OPTIMIZERS["adam"]), trained(OPTIMIZERS["adam"], 1)
    state = first.optimizer.state_dict()
    kept = second.update.read_state()[0]["Accl2___0.bias"]
    state["ipu_state"] = {name: tensor for name, tensor in state["ipu_state"].items() if name != "Accl2___0.bias"}
    second.optimizer.load_state_dict(state)
    second.update.upload()
    assert "Accl2___0.bias" in caplog.text
    found = second.update.read_state()[0]
    assert torch.equal(found["Accl2___0.bias"], kept)
    assert torch.equal(found["Accl1___0.bias"], state["ipu_state"]["Accl1___0.bias"])


def test_state_of_another_shape_refused():
    device = trained(OPTIMIZERS["adam"])
    state = device.optimizer.state_dict()
    state["ipu_state"]["Accl1___0.weight"] = torch.zeros(3)
    device.optimizer.load_state_dict(state)
    with pytest.raises(poptorch.Error, match="Accl1___0.weight"):
        device.update.upload()


@pytest.mark.parametrize("state", [{}, None])
def test_empty_state_refused(state):
    with pytest.raises(RuntimeError, match="empty"):
        optim.SGD(make_net().parameters(), lr=0.1).load_state_dict(state)


@pytest.mark.parametrize("missing", ["ipu_state", "ipu_param"])
def test_state_without_ipu_entries_refused(missing):
    optimizer = optim.Adam(make_net().parameters(), lr=0.1)
    state = {name: value for name, value in optimizer.state_dict().items() if name != missing}
    with pytest.raises(RuntimeError, match="Only IPU optimizer states"):
        optimizer.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Only IPU optimizer states"):
        optimizer.load_state_dict(torch.optim.Adam(make_net().parameters()).state_dict())


def test_state_from_before_compilation_loads_hyper_parameters_only():
    source, target = [optim.Adam(make_net().parameters(), lr=lr) for lr in (0.3, 0.1)]
    target.load_state_dict(source.state_dict())
    assert target.param_groups[0]["lr"] == 0.3
    assert not target.host_state_is_dirty and not target.has_state()


# The life of the object


def test_replaced_optimizer_keeps_its_state_and_hears_no_more():
    device = trained(OPTIMIZERS["adam"])
    old, new = device.optimizer, optim.Adam(device.model.parameters(), lr=0.1)
    device.update.latch(new)
    train(device, 1)
    assert old.state_dict()["ipu_state"]["Step___0.weight"] == 3
    assert new.state_dict()["ipu_state"]["Step___0.weight"] == 4


def test_replacing_optimizer_with_a_loaded_state_brings_it_to_the_device():
    device, other = trained(OPTIMIZERS["adam"]), trained(OPTIMIZERS["adam"], 1)
    new = optim.Adam(device.model.parameters(), lr=0.1)
    new.load_state_dict(other.optimizer.state_dict())
    device.update.latch(new)
    device.update.upload()
    assert_same_state(new.state_dict(), other.optimizer.state_dict())


def test_released_optimizer_keeps_the_last_state_and_a_new_device_goes_on_with_it():
    device = trained(OPTIMIZERS["adam"])
    device.update.release()
    state = device.optimizer.state_dict()
    assert state["ipu_state"]["Step___0.weight"] == 3 and device.optimizer._device_state is None
    again = Device(device.model, lambda _: device.optimizer)
    assert_same_state(again.optimizer.state_dict(), state)


def test_learning_rate_changed_between_two_programs_is_kept():
    device = trained(OPTIMIZERS["adam"])
    device.update.release()
    device.optimizer.param_groups[0]["lr"] = 0.25
    again = Device(device.model, lambda _: device.optimizer)
    assert again.optimizer.state_dict()["ipu_param"]["learningRate___specific___0.weight"] == 0.25


@pytest.mark.parametrize(
    "duplicate", [copy.copy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))], ids=["copy", "pickle"]
)
def test_copy_of_an_optimizer_in_use_has_its_state_but_not_its_device(duplicate):
    device = trained(OPTIMIZERS["adam"])
    copied = duplicate(device.optimizer)
    assert_same_state(copied.state_dict(), device.optimizer.state_dict())
    train(device, 1)
    assert copied.state_dict()["ipu_state"]["Step___0.weight"] == 3


def test_download_reads_the_state_back_and_what_was_read_is_kept(caplog):
    caplog.set_level(logging.DEBUG, logger="poptorch::python")
    device = trained(OPTIMIZERS["adam"])
    device.update.download()
    assert not device.optimizer.ipu_state_is_dirty and device.optimizer.has_state()
    assert caplog.text.count("from IPU to host") == 1
    device.optimizer.state_dict()
    assert "cached" in caplog.text and caplog.text.count("from IPU to host") == 1


def test_torch_optimizer_has_a_state_on_the_device_only():
    device = trained(lambda p: torch.optim.Adam(p, lr=0.1))
    assert set(device.optimizer.state_dict()) == {"state", "param_groups"}
    assert device.update.read_state()[0]["Step___0.weight"] == 3


def test_moments_are_in_the_state_in_the_types_they_are_kept_in():
    half = dict(first_order_momentum_accum_type=torch.float16, second_order_momentum_accum_type=torch.float32)
    state = trained(lambda p: optim.AdamW(p, lr=0.1, **half)).optimizer.state_dict()["ipu_state"]
    assert state["Accl1___0.weight"].dtype == torch.float16 and state["Accl2___0.weight"].dtype == torch.float32


def test_options_of_automatic_loss_scaling_add_its_factor():
    options = make_options(**{"automaticLossScalingSettings.enabled": True})
    state = Device(make_net(), OPTIMIZERS["adam"], options).optimizer.state_dict()["ipu_state"]
    assert state["lossScaleUpdateFactor"] == 1.0
