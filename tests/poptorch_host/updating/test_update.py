# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Weight updates in float32: every optimizer against torch's, reductions, clipping, and what is left alone."""

import math

import pytest
import torch
from poptorch_host.updating.rule import UpdateRule
from poptorch_host.updating.update import WeightUpdate
from torch._C import _len_torch_dispatch_stack

from tests.backend import host_only, optim, poptorch
from tests.poptorch_host.device import Device, assert_close, make_batches, make_net, make_options, train_on_host
from tests.poptorch_host.models import Classifier, classifier_batch

pytestmark = host_only("its own modules, driven directly")


STRATEGIES = poptorch.MeanReductionStrategy
SUM = poptorch.ReductionType.Sum


def reference_class(cls):
    return getattr(torch.optim, cls.__name__, cls)


OPTIMIZERS = {
    "sgd": (optim.SGD, dict()),
    "sgd weight decay": (optim.SGD, dict(weight_decay=0.1)),
    "sgd momentum": (optim.SGD, dict(momentum=0.9, weight_decay=0.1)),
    "sgd nesterov": (optim.SGD, dict(momentum=0.9, nesterov=True)),
    "sgd combined": (optim.SGD, dict(momentum=0.9, weight_decay=0.1, use_combined_accum=True)),
    "torch sgd": (torch.optim.SGD, dict(momentum=0.9)),
    "adam": (optim.Adam, dict(weight_decay=0.1)),
    "torch adam": (torch.optim.Adam, dict(betas=(0.8, 0.9))),
    "adamw": (optim.AdamW, dict(weight_decay=0.1)),
    "torch adamw": (torch.optim.AdamW, dict()),
    "rmsprop": (optim.RMSprop, dict(weight_decay=0.1)),
    "rmsprop centered": (optim.RMSprop, dict(centered=True, momentum=0.5, eps=1e-4)),
    "torch rmsprop": (torch.optim.RMSprop, dict(momentum=0.5)),
    "lamb": (optim.LAMB, dict()),
    "lamb limited": (optim.LAMB, dict(max_weight_norm=0.5, bias_correction=False)),
}
HOST_ONLY = ("use_combined_accum",)


@pytest.mark.parametrize("cls, arguments", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("accumulation", [1, 4])
def test_weights_equal_torchs_over_groups_and_a_schedule(cls, arguments, accumulation):
    """Two groups with rates of their own, which change before every step; six updates."""
    ours, theirs = make_net(), make_net()

    def make(net, kind, values):
        return kind([{"params": net[0].parameters(), "lr": 0.02}, {"params": net[2].parameters()}], lr=0.05, **values)

    device = Device(ours, lambda _: make(ours, cls, arguments), make_options(accumulation))
    plain = {name: value for name, value in arguments.items() if name not in HOST_ONLY}
    expected = make(theirs, reference_class(cls), plain)
    for step, (inputs, targets) in enumerate(make_batches(6)):
        for optimizer in (device.optimizer, expected):
            for group in optimizer.param_groups:
                group["lr"] *= 0.9 if step else 1.0
        device.update.latch(device.optimizer)
        device.train(inputs, targets)
        train_on_host(theirs, expected, inputs, targets)
    assert_close(device.weights, list(theirs.parameters()))
    assert all(weight.grad is None for weight in device.parameters.values())


def test_bias_correction_off_makes_no_difference_to_adamw():
    """PopTorch 3.4 has no update rule without it."""
    devices = [Device(make_net(), lambda p, on=on: optim.AdamW(p, lr=0.1, bias_correction=on)) for on in (True, False)]
    for inputs, targets in make_batches(3):
        for device in devices:
            device.train(inputs, targets)
    assert_close(devices[0].weights, devices[1].weights, 0)


def tensorflow_rmsprop(weight, gradients, lr, alpha, eps, momentum, centered, weight_decay):
    """TensorFlow's rule in float64, one tensor, written from its documentation."""
    weight = weight.double()
    square, mean, buffer = torch.ones_like(weight), torch.zeros_like(weight), torch.zeros_like(weight)
    for gradient in gradients:
        gradient = gradient.double() + weight_decay * weight
        square = alpha * square + (1 - alpha) * gradient**2
        mean = alpha * mean + (1 - alpha) * gradient
        root = (square - mean**2 * centered + eps).sqrt()
        buffer = momentum * buffer + lr * gradient / root
        weight = weight - buffer
    return weight


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_rmsprop_tensorflow_variant_follows_its_rule(centered, momentum):
    settings = dict(lr=0.1, alpha=0.8, eps=1e-3, momentum=momentum, centered=centered, weight_decay=0.1)
    device = Device(make_net(), lambda p: optim.RMSprop(p, use_tf_variant=True, **settings))
    start = {name: weight.detach().clone() for name, weight in device.parameters.items()}
    torch.manual_seed(3)
    steps = [{name: torch.randn_like(weight) for name, weight in start.items()} for _ in range(4)]
    for step in steps:
        device.feed([step])
    for name, weight in device.parameters.items():
        wanted = tensorflow_rmsprop(start[name], [step[name] for step in steps], **settings)
        torch.testing.assert_close(weight.detach().double(), wanted, rtol=1e-5, atol=1e-6)


def test_rmsprop_tensorflow_variant_has_the_rate_of_each_step_in_its_momentum():
    device = Device(make_net(), lambda p: optim.RMSprop(p, lr=1.0, momentum=0.5, use_tf_variant=True))
    start = device.parameters["0.bias"].detach().clone()
    device.feed([{"0.bias": torch.ones(8)}])
    moved = start - device.parameters["0.bias"].detach()
    device.optimizer.param_groups[0]["lr"] = 0.0
    device.update.latch(device.optimizer)
    device.feed([{"0.bias": torch.ones(8)}])
    torch.testing.assert_close(start - device.parameters["0.bias"].detach(), 1.5 * moved)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_dampening_holds_from_the_first_step_with_or_without_momentum(momentum):
    """A device's rule: v <- m v + (1 - d) (g + w decay), from v = 0; w <- w - lr v."""
    device = Device(make_net(), lambda p: optim.SGD(p, lr=0.1, momentum=momentum, dampening=0.4, weight_decay=0.2))
    weight = device.parameters["0.weight"].detach().double()
    velocity = torch.zeros_like(weight)
    for seed in range(3):
        torch.manual_seed(seed)
        gradient = torch.randn(8, 6)
        device.feed([{"0.weight": gradient}])
        velocity = momentum * velocity + 0.6 * (gradient + 0.2 * weight)
        weight = weight - 0.1 * velocity
    torch.testing.assert_close(device.parameters["0.weight"].detach().double(), weight, rtol=1e-5, atol=1e-6)


# Reduction


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("accum_type", [torch.float32, torch.float16])
def test_mean_strategies_give_the_mean_over_accumulation_and_replicas(strategy, accum_type):
    options = make_options(3)
    options.replicationFactor(2)
    options.Training.setMeanAccumulationAndReplicationReductionStrategy(strategy)
    device = Device(make_net(), lambda p: optim.SGD(p, lr=1.0, accum_type=accum_type), options)
    start = device.parameters["0.bias"].detach().clone()
    gradients = torch.arange(48.0).reshape(6, 8)
    device.feed([{"0.bias": gradient} for gradient in gradients])
    tolerance = 1e-5 if accum_type == torch.float32 else 2e-2
    torch.testing.assert_close(
        start - device.parameters["0.bias"].detach(), gradients.mean(0), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("accum_type", [torch.float32, torch.float16])
def test_sum_reduction_gives_the_sum_whatever_the_strategy(strategy, accum_type):
    options = make_options(2)
    options.replicationFactor(2)
    options.Training.accumulationAndReplicationReductionType(SUM)
    options.Training.setMeanAccumulationAndReplicationReductionStrategy(strategy)
    device = Device(make_net(), lambda p: optim.SGD(p, lr=1.0, loss_scaling=4.0, accum_type=accum_type), options)
    start = device.parameters["0.bias"].detach().clone()
    gradients = torch.arange(32.0).reshape(4, 8) / 8
    device.feed([{"0.bias": gradient} for gradient in gradients])
    torch.testing.assert_close(start - device.parameters["0.bias"].detach(), gradients.sum(0), rtol=1e-5, atol=1e-5)


def test_only_postandloss_divides_the_loss():
    def root(strategy, reduction=poptorch.ReductionType.Mean):
        options = make_options(8)
        options.replicationFactor(2)
        options.Training.setMeanAccumulationAndReplicationReductionStrategy(strategy)
        options.Training.accumulationAndReplicationReductionType(reduction)
        return Device(make_net(), lambda p: optim.SGD(p, lr=1.0, loss_scaling=4.0), options).update.root_gradient()

    assert root(STRATEGIES.Post) == root(STRATEGIES.Running) == 4.0
    assert root(STRATEGIES.PostAndLoss) == 0.5
    assert root(STRATEGIES.PostAndLoss, SUM) == 4.0


@pytest.mark.parametrize("accum_type", [torch.float32, torch.float16])
@pytest.mark.parametrize("counts", [[4], [3, 1], [1, 3], [2, 2]])
def test_folded_micro_batches_count_as_many(accum_type, counts):
    """A backward pass that covers k micro-batches leaves their sum; powers of two keep half exact."""
    folded, single = [
        Device(make_net(), lambda p: optim.SGD(p, lr=1.0, accum_type=accum_type), make_options(4)) for _ in range(2)
    ]
    gradients = torch.arange(32.0).reshape(4, 8) * 2
    single.feed([{"0.bias": gradient} for gradient in gradients])
    folded.feed([{"0.bias": part.sum(0)} for part in gradients.split(counts)], counts)
    tolerance = 1e-6 if accum_type == torch.float32 else 2e-3
    assert_close(folded.weights, single.weights, tolerance)


# Clipping


@pytest.mark.parametrize("cls", [optim.SGD, optim.Adam, optim.AdamW])
@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 1e3])
@pytest.mark.parametrize("accumulation, scaling", [(1, 1.0), (4, 16.0)])
def test_clipping_equals_torchs_after_unscaling_and_reduction(cls, max_norm, accumulation, scaling):
    theirs = make_net()
    device = Device(
        make_net(), lambda p: cls(p, lr=0.1, loss_scaling=scaling, max_grad_norm=max_norm), make_options(accumulation)
    )
    expected = reference_class(cls)(theirs.parameters(), lr=0.1)
    for inputs, targets in make_batches(4):
        device.train(inputs, targets)
        train_on_host(theirs, expected, inputs, targets, max_norm)
    assert_close(device.weights, list(theirs.parameters()))


def test_clipping_takes_the_norm_over_all_groups():
    device = Device(make_net(), lambda p: optim.SGD([{"params": [weight]} for weight in p], lr=1.0, max_grad_norm=1.0))
    start = [weight.clone() for weight in device.weights]
    device.feed([{name: torch.full_like(weight, 3.0) for name, weight in device.parameters.items()}])
    moved = torch.cat([(before - after).reshape(-1) for before, after in zip(start, device.weights)])
    assert moved.norm().item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("cls", [optim.SGD, optim.Adam])
def test_clipping_by_an_infinite_norm_takes_every_finite_gradient_to_zero(cls):
    device = Device(make_net(), lambda p: cls(p, lr=1.0, max_grad_norm=1.0))
    start = device.parameters["2.bias"].detach().clone()
    device.feed([{"0.bias": torch.full((8,), math.inf), "2.bias": torch.ones(3)}])
    assert torch.equal(device.parameters["2.bias"], start)
    assert device.parameters["0.bias"].isnan().all()


def test_max_grad_norm_nan_refused_at_compilation():
    with pytest.raises(poptorch.Error, match="max_grad_norm"):
        Device(make_net(), lambda p: optim.SGD(p, lr=0.1, max_grad_norm=math.nan))


def test_infinite_max_grad_norm_leaves_other_weights_of_an_overflow_alone():
    device = Device(make_net(), lambda p: optim.SGD(p, lr=1.0, loss_scaling=2.0))
    device.feed([{"0.bias": torch.full((8,), math.inf), "2.bias": torch.ones(3)}])
    assert device.parameters["2.bias"].isfinite().all() and not device.parameters["0.bias"].isfinite().any()


# What is updated


def test_parameter_without_gradient_is_left_alone_even_by_weight_decay():
    device = Device(make_net(), lambda p: optim.AdamW(p, lr=0.1, weight_decay=0.5))
    start = device.parameters["2.weight"].detach().clone()
    device.feed([{"0.weight": torch.ones(8, 6)}])
    assert torch.equal(device.parameters["2.weight"], start)


def test_frozen_parameters_are_left_alone_and_want_no_gradient_and_ungrouped_ones_have_the_defaults():
    net = make_net()
    net[0].weight.requires_grad_(False)
    grouped = [{"params": [*net[0].parameters(), net[2].weight], "lr": 0.0}]
    device = Device(net, lambda p: optim.SGD(grouped, lr=0.1, weight_decay=0.5))
    start = {name: weight.detach().clone() for name, weight in device.parameters.items()}
    device.train(*make_batches(1)[0])
    changed = {name for name, weight in device.parameters.items() if not torch.equal(weight, start[name])}
    assert changed == {"2.bias"}
    wanting = {name for name, weight in device.parameters.items() if weight.requires_grad}
    assert wanting == {"0.bias", "2.weight", "2.bias"}


def test_model_without_anything_to_train_is_reported(caplog):
    device = Device(make_net().requires_grad_(False), lambda p: optim.SGD(p, lr=0.1))
    assert "nothing will be trained" in caplog.text
    device.update.apply()


def test_tied_parameter_is_updated_once_with_the_sum_of_its_gradients():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(6, 3)
            self.second = torch.nn.Linear(6, 3)
            self.second.weight = self.first.weight

        def forward(self, values):
            return self.first(values) + 2 * self.second(values)

    ours, theirs = Tied(), Tied()
    theirs.load_state_dict(ours.state_dict())
    device = Device(ours, lambda p: optim.SGD(p, lr=0.1, momentum=0.9))
    expected = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for inputs, targets in make_batches(3):
        device.train(inputs, targets)
        train_on_host(theirs, expected, inputs, targets)
    assert device.module.first.weight is device.module.second.weight
    assert_close(device.weights, list(theirs.parameters()))


def test_model_without_parameters_updates_nothing():
    device = Device(make_net(), lambda _: optim.SGD([{"params": []}], lr=0.1))
    update = WeightUpdate(device.latch, [], poptorch.Options())
    update.apply()
    assert update.updates == 1


# The optimizer is latched


def test_learning_rate_reaches_the_device_with_latch_only():
    device = Device(make_net(), lambda p: optim.SGD(p, lr=0.0))
    start = [weight.clone() for weight in device.weights]
    device.optimizer.param_groups[0]["lr"] = 1.0
    device.train(*make_batches(1)[0])
    assert_close(device.weights, start, 0)
    device.update.latch(device.optimizer)
    device.train(*make_batches(1)[0])
    assert not torch.equal(device.weights[0], start[0])


def test_momentum_that_is_variable_can_be_turned_on():
    theirs = make_net()
    device = Device(make_net(), lambda p: optim.SGD(p, lr=0.1, momentum=0.0))
    expected = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.0)
    for step, (inputs, targets) in enumerate(make_batches(4)):
        if step == 1:
            for optimizer in (device.optimizer, expected):
                optimizer.param_groups[0]["momentum"] = 0.9
            device.update.latch(device.optimizer)
        device.train(inputs, targets)
        train_on_host(theirs, expected, inputs, targets)
    assert_close(device.weights, list(theirs.parameters()))


def test_betas_that_are_variable_can_change():
    theirs = make_net()
    device = Device(make_net(), lambda p: optim.Adam(p, lr=0.1, betas=(0.9, 0.99)))
    expected = torch.optim.Adam(theirs.parameters(), lr=0.1, betas=(0.9, 0.99))
    for step, (inputs, targets) in enumerate(make_batches(4)):
        for optimizer in (device.optimizer, expected):
            optimizer.param_groups[0]["betas"] = (0.9 - 0.1 * step, 0.99)
        device.update.latch(device.optimizer)
        device.train(inputs, targets)
        train_on_host(theirs, expected, inputs, targets)
    assert_close(device.weights, list(theirs.parameters()))


def test_refused_optimizer_leaves_the_device_as_it_was():
    device = Device(make_net(), lambda p: optim.SGD(p, lr=0.1))
    device.optimizer.param_groups[0].update(lr=5.0, momentum=0.5)
    with pytest.raises(poptorch.Error, match="momentum"):
        device.update.latch(device.optimizer)
    assert device.latch.latched.groups[0]["lr"].value == 0.1


def test_new_optimizer_object_goes_on_with_the_momenta_of_the_device():
    theirs = make_net()
    device = Device(make_net(), lambda p: optim.SGD(p, lr=0.1, momentum=0.9))
    expected = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for inputs, targets in make_batches(4):
        device.update.latch(optim.SGD(device.model.parameters(), lr=0.1, momentum=0.9))
        device.train(inputs, targets)
        train_on_host(theirs, expected, inputs, targets)
    assert_close(device.weights, list(theirs.parameters()))


def test_user_optimizer_keeps_no_states_of_torch():
    device = Device(make_net(), lambda p: torch.optim.Adam(p, lr=0.1))
    device.train(*make_batches(1)[0])
    assert not device.optimizer.state and all(parameter.grad is None for parameter in device.model.parameters())


@pytest.mark.parametrize("accum_type", [torch.float32, torch.float16])
def test_gradients_of_a_run_that_failed_are_forgotten(accum_type):
    device = Device(make_net(), lambda p: optim.SGD(p, lr=1.0, accum_type=accum_type), make_options(2))
    start = device.parameters["0.bias"].detach().clone()
    device.update.before_backward(1)
    device.parameters["0.bias"].grad = torch.full((8,), 100.0)
    device.update.accumulate(1)
    device.update.before_backward(1)
    device.parameters["0.bias"].grad = torch.full((8,), 100.0)  # and here the program stops
    device.feed([{"0.bias": torch.full((8,), 2.0)}, {"0.bias": torch.full((8,), 4.0)}])
    assert_close([start - device.parameters["0.bias"].detach()], [torch.full((8,), 3.0)])


@pytest.mark.parametrize("cls", [optim.SGD, optim.AdamW, optim.RMSprop, optim.LAMB])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_in_channels_last_order_are_updated_as_others(cls, dtype):
    def run(memory_format):
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 4, 2, bias=False).to(dtype=dtype, memory_format=memory_format)
        device = Device(net, lambda p: cls(p, lr=0.1, accum_type=dtype), make_options(2))
        for seed in range(3):
            gradients = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
            device.feed([{"weight": gradient.to(memory_format=memory_format)} for gradient in gradients])
        return device.weights

    assert_close(run(torch.channels_last), run(torch.contiguous_format), 1e-5 if dtype == torch.float32 else 2e-3)


def test_an_update_of_a_half_model_is_outside_the_modes_of_its_program(monkeypatch):
    """A mode in Python at each of an update's many small operations took a fifth of a step."""
    enabled = []
    step = UpdateRule.step

    def observed(*args):
        enabled.append((torch._C._is_torch_function_mode_enabled(), _len_torch_dispatch_stack()))
        step(*args)

    monkeypatch.setattr(UpdateRule, "step", observed)
    model = Classifier().half()
    trainer = poptorch.trainingModel(model, make_options(), optim.SGD(model.parameters(), lr=0.1))
    inputs, labels = classifier_batch()
    trainer(inputs.half(), labels)
    assert trainer.compiled.half_arithmetic
    assert enabled == [(False, 0)]
