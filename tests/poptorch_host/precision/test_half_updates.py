# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Weights, accumulators and states in float16: types, rounding, and the numbers against float64."""

import math

import pytest
import torch
from poptorch_host.precision.rounding import stochastic_half
from torch.utils._python_dispatch import TorchDispatchMode

from tests.backend import host_only, optim, poptorch
from tests.poptorch_host.device import Device, assert_close, make_batches, make_net, make_options

pytestmark = host_only("its own modules, driven directly")


HALF, FLOAT = torch.float16, torch.float32
ROUND = {"enableStochasticRounding": True}
HALF_MOMENTS = dict(first_order_momentum_accum_type=HALF, second_order_momentum_accum_type=HALF)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spacing_of_half(value):
    """The distance of float16 numbers around `value`."""
    return max(2.0 ** (math.floor(math.log2(abs(value))) - 10), 2.0**-24)


class Weight(torch.nn.Module):
    """A single parameter."""

    def __init__(self, values):
        super().__init__()
        self.weight = torch.nn.Parameter(values)


def weight_device(values, make_optimizer, options=None, seed=0):
    return Device(Weight(values), make_optimizer, options, seed)


def feed(device, *gradients):
    device.feed([{"weight": gradient} for gradient in gradients])
    return device.parameters["weight"].detach()


# Stochastic rounding


def test_rounding_leaves_every_half_number_as_it_is():
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(HALF)
    numbers = every[~every.isnan()]
    rounded = stochastic_half(numbers.float(), generator())
    assert torch.equal(rounded, numbers)
    assert stochastic_half(every[every.isnan()].float(), generator()).isnan().all()


def test_rounding_takes_one_of_the_two_neighbours():
    torch.manual_seed(0)
    values = torch.cat([torch.randn(5000) * scale for scale in (1e-8, 1e-6, 1e-4, 1.0, 1e4)])
    rounded = stochastic_half(values, generator()).float()
    spacing = torch.exp2((torch.frexp(values.abs())[1].float() - 1).clamp(min=-14) - 10)
    assert ((rounded - values).abs() < spacing).all()
    assert (rounded * values >= 0).all()


@pytest.mark.parametrize("value", [1.0003, -1.0003, 0.1, 3.14e-3, 1000.3, 40000.7, 7e-5, 6.1e-5, 3e-5, 5.1e-8, -1e-8])
def test_rounding_is_unbiased_within_five_standard_errors(value):
    """n = 200,000 draws: the mean is within 5 sigma / sqrt(n) of the value, sigma from the cut fraction's variance."""
    count = 200_000
    exact = torch.tensor(value, dtype=FLOAT).double().item()
    rounded = stochastic_half(torch.full((count,), value), generator(7)).double()
    spacing = spacing_of_half(exact)
    fraction = abs(exact) / spacing % 1
    bound = 5 * spacing * math.sqrt(fraction * (1 - fraction) / count) + 2.0**-37
    assert abs(rounded.mean().item() - exact) < bound
    assert len(rounded.unique()) == 2


def test_rounding_draws_are_independent_between_neighbouring_elements():
    """Correlation over 100,000 pairs, four draws of 16 bits from each of 64: below 5 / sqrt(n)."""
    up = (stochastic_half(torch.full((400_000,), 1 + 2.0**-11), generator(3)) > 1).double()
    for distance in (1, 2, 3, 4):
        pairs = torch.stack([up[:-distance], up[distance:]])
        assert abs(torch.corrcoef(pairs)[0, 1].item()) < 5 / math.sqrt(up.numel())


def test_rounding_keeps_what_is_not_finite():
    values = torch.tensor([math.inf, -math.inf, math.nan, 1e30, 0.5])
    rounded = stochastic_half(values, generator())
    assert rounded.tolist()[:2] == [math.inf, -math.inf] and rounded[2].isnan()
    assert rounded.tolist()[3:] == [math.inf, 0.5]


def test_rounding_of_any_shape_keeps_it():
    assert stochastic_half(torch.zeros(2, 3, 4).transpose(0, 2), generator()).shape == (4, 3, 2)
    assert stochastic_half(torch.zeros(0), generator()).shape == (0,)
    assert stochastic_half(torch.zeros(()), generator()).shape == ()


# Weights


def test_small_updates_are_lost_to_the_nearest_and_kept_by_stochastic_rounding():
    """30 updates of 2^-15 on 20,000 weights at 1: a mean of 1 - 30 x 2^-15, within 5 standard errors."""
    count, steps, step = 20_000, 30, 2.0**-15
    nearest, stochastic = [
        weight_device(torch.ones(count, dtype=HALF), lambda p: optim.SGD(p, lr=1.0), options)
        for options in (make_options(), make_options(**ROUND))
    ]
    for _ in range(steps):
        feed(nearest, torch.full((count,), step))
        feed(stochastic, torch.full((count,), step))
    assert (nearest.weights[0] == 1.0).all()
    error = stochastic.weights[0].double().mean().item() - (1 - steps * step)
    assert abs(error) < 5 * (2.0**-11 / 2) * math.sqrt(steps / count)


@pytest.mark.parametrize("cls", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.LAMB])
def test_stochastic_rounding_changes_nothing_in_float32(cls):
    devices = [
        Device(make_net(), lambda p: cls(p, lr=0.1), options) for options in (make_options(), make_options(**ROUND))
    ]
    for inputs, targets in make_batches(3):
        for device in devices:
            device.train(inputs, targets)
    assert_close(devices[0].weights, devices[1].weights, 0)


def test_rounding_of_successive_updates_is_independent():
    """Half a spacing each time: whether a weight goes down in one update says nothing about the next."""
    count = 20_000
    device = weight_device(torch.full((count,), 1.5, dtype=HALF), lambda p: optim.SGD(p, lr=1.0), make_options(**ROUND))
    positions = [feed(device, torch.full((count,), 2.0**-11)).clone().double() for _ in range(2)]
    steps = torch.stack([1.5 - positions[0], positions[0] - positions[1]])
    assert abs(torch.corrcoef(steps)[0, 1].item()) < 5 / math.sqrt(count)


def run_rounded(seed, steps=4, options=None):
    device = weight_device(
        torch.linspace(-1, 1, 300).to(HALF),
        lambda p: optim.AdamW(p, lr=1e-4, **HALF_MOMENTS),
        options or make_options(**ROUND),
        seed,
    )
    for step in range(steps):
        feed(device, torch.linspace(-1, 2, 300) * (step + 1))
    return device


def test_rounding_is_reproducible_from_the_seed():
    first, same, other = run_rounded(3), run_rounded(3), run_rounded(4)
    assert_close(first.weights, same.weights, 0)
    assert not torch.equal(first.weights[0], other.weights[0])


def test_rounding_does_not_use_the_hosts_generator():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = run_rounded(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert_close(first.weights, run_rounded(3).weights, 0)


def test_rounding_state_brings_back_the_same_draws():
    whole, first = run_rounded(3, 6), run_rounded(3, 3)
    second = Device(first.module, lambda p: optim.AdamW(p, lr=1e-4, **HALF_MOMENTS), make_options(**ROUND), seed=9)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.update.rounding_state = first.update.rounding_state
    for step in range(3, 6):
        feed(second, torch.linspace(-1, 2, 300) * (step + 1))
    assert_close(second.weights, whole.weights, 0)
    assert second.update.rounding_state == whole.update.rounding_state


# Against float64


def half(values):
    return values.to(HALF).double()


def adamw_by_hand(weight, gradients, first_type, second_type, lr, decay, betas=(0.9, 0.999), eps=1e-8):
    """AdamW in float64, with weight and moments rounded to the nearest of their types after each step."""
    weight = weight.double()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    for step, gradient in enumerate(gradients, 1):
        gradient = gradient.double()
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        root = (second / (1 - betas[1] ** step)).sqrt() + eps
        weight = half(weight * (1 - lr * decay) - lr * first / (1 - betas[0] ** step) / root)
        first = half(first) if first_type == HALF else first
        second = half(second) if second_type == HALF else second
    return weight


@pytest.mark.parametrize("first_type", [HALF, FLOAT])
@pytest.mark.parametrize("second_type", [HALF, FLOAT])
def test_half_adamw_equals_float64_with_half_storage_to_a_spacing(first_type, second_type):
    torch.manual_seed(0)
    weight = torch.randn(500).to(HALF)
    gradients = [torch.randn(500).to(HALF) for _ in range(5)]
    device = weight_device(
        weight.clone(),
        lambda p: optim.AdamW(
            p,
            lr=0.01,
            weight_decay=0.1,
            first_order_momentum_accum_type=first_type,
            second_order_momentum_accum_type=second_type,
        ),
    )
    for gradient in gradients:
        feed(device, gradient)
    wanted = adamw_by_hand(weight, gradients, first_type, second_type, lr=0.01, decay=0.1)
    torch.testing.assert_close(device.weights[0].double(), wanted, rtol=2.0**-10, atol=2.0**-16)
    state = device.optimizer.state_dict()["ipu_state"]
    assert (state["Accl1___weight"].dtype, state["Accl2___weight"].dtype) == (first_type, second_type)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, velocity_accum_type=HALF),
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, use_combined_accum=True, velocity_scaling=8.0),
        lambda p: optim.Adam(p, lr=0.01, **HALF_MOMENTS),
        lambda p: optim.LAMB(p, lr=0.01, **HALF_MOMENTS),
        lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True, eps=1e-3, **HALF_MOMENTS),
        lambda p: optim.RMSprop(p, lr=0.01, use_tf_variant=True, **HALF_MOMENTS),
        lambda p: torch.optim.Adam(p, lr=0.01),
    ],
    ids=["sgd", "combined", "adam", "lamb", "rmsprop", "tf", "torch"],
)
@pytest.mark.parametrize("options", [make_options(), make_options(**ROUND)], ids=["nearest", "stochastic"])
def test_half_weights_follow_float32_ones(make, options):
    """Ten steps of the same gradients: apart by a few spacings of numbers around 1."""
    torch.manual_seed(0)
    weight = torch.rand(200) + 0.5
    lowered, full = weight_device(weight.to(HALF), make, options), weight_device(weight.to(HALF).float(), make)
    for _ in range(10):
        gradient = torch.randn(200).to(HALF)
        feed(lowered, gradient)
        feed(full, gradient)
    assert lowered.weights[0].dtype == HALF
    assert (lowered.weights[0].float() - full.weights[0]).abs().max() < 20 * 2.0**-10
    assert (lowered.weights[0].float() - weight).abs().max() > 20 * 2.0**-10


def test_mixed_model_updates_both_kinds_of_weights():
    net = torch.nn.Sequential(torch.nn.Linear(4, 4).half(), torch.nn.LayerNorm(4))
    device = Device(net, lambda p: optim.AdamW(p, lr=0.1), make_options(**ROUND))
    start = [weight.clone() for weight in device.weights]
    device.feed([{name: torch.ones_like(weight) for name, weight in device.parameters.items()}])
    for before, after in zip(start, device.weights):
        assert after.dtype == before.dtype
        torch.testing.assert_close(before - after, torch.full_like(before, 0.1), rtol=0.05, atol=2e-3)


def test_float32_weights_with_half_moments_stay_float32():
    full, lowered = [
        weight_device(torch.linspace(-1, 1, 50), lambda p, kind=kind: optim.Adam(p, lr=0.1, **kind))
        for kind in (dict(), HALF_MOMENTS)
    ]
    for step in range(3):
        for device in (full, lowered):
            feed(device, torch.linspace(1, 2, 50) * (step + 1))
    assert lowered.weights[0].dtype == FLOAT
    torch.testing.assert_close(lowered.weights[0], full.weights[0], rtol=1e-2, atol=1e-2)
    assert not torch.equal(lowered.weights[0], full.weights[0])


# Accumulators


def test_float32_accumulators_keep_what_half_gradients_cannot_add_up():
    """4096 + 1 is no half number: 64 ones after 4096 are lost in half, and kept in float32."""

    def total(accum_type):
        options = make_options(65)
        options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
        device = weight_device(
            torch.zeros(1, dtype=HALF), lambda p: optim.SGD(p, lr=2.0**-6, accum_type=accum_type), options
        )
        return -feed(device, torch.tensor([4096.0]), *[torch.ones(1)] * 64).item()

    assert total(FLOAT) == 65.0 and total(HALF) == 64.0


def test_running_mean_in_half_does_not_overflow_where_a_sum_does():
    def moved(reduction):
        options = make_options(4)
        options.Training.accumulationAndReplicationReductionType(reduction)
        device = weight_device(torch.zeros(3), lambda p: optim.SGD(p, lr=1.0, accum_type=HALF), options)
        return feed(device, *[torch.full((3,), 40000.0)] * 4)

    torch.testing.assert_close(moved(poptorch.ReductionType.Mean), torch.full((3,), -40000.0), rtol=1e-3, atol=0)
    assert moved(poptorch.ReductionType.Sum).isinf().all()


def test_running_mean_equals_its_recurrence_in_half():
    torch.manual_seed(0)
    gradients = [torch.randn(100).to(HALF) for _ in range(8)]
    device = weight_device(torch.zeros(100), lambda p: optim.SGD(p, lr=1.0, accum_type=HALF), make_options(8))
    mean = gradients[0].double()
    for count, gradient in enumerate(gradients[1:], 2):
        mean = half(mean + (gradient.double() - mean) / count)
    torch.testing.assert_close(-feed(device, *gradients).double(), mean, rtol=2.0**-10, atol=2.0**-12)


def test_accumulators_start_anew_with_each_update():
    device = weight_device(torch.zeros(4), lambda p: optim.SGD(p, lr=1.0, accum_type=HALF), make_options(2))
    feed(device, *[torch.full((4,), 8.0)] * 2)
    assert (feed(device, torch.full((4,), 2.0), torch.full((4,), 4.0)) == -11.0).all()


def test_single_micro_batch_needs_no_accumulator_so_nothing_is_rounded():
    device = weight_device(torch.zeros(4), lambda p: optim.SGD(p, lr=1.0, accum_type=HALF))
    assert (feed(device, torch.full((4,), 0.1)) == -torch.tensor(0.1)).all()


def test_accumulators_are_rounded_stochastically_without_bias():
    """4,000 elements, 1 + 63 x 2^-14 in half: the mean of the sums is exact to 5 standard errors."""
    count, steps, step = 4000, 63, 2.0**-14
    options = make_options(steps + 1, **ROUND)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
    device = weight_device(torch.zeros(count), lambda p: optim.SGD(p, lr=1.0, accum_type=HALF), options)
    total = -feed(device, torch.ones(count), *[torch.full((count,), step)] * steps).double().mean().item()
    assert abs(total - (1 + steps * step)) < 5 * (2.0**-10 / 2) * math.sqrt(steps / count)


def test_parameter_that_skips_micro_batches_counts_zeros_in_the_running_mean():
    device = Device(make_net(), lambda p: optim.SGD(p, lr=1.0, accum_type=HALF), make_options(4))
    start = {name: weight.detach().clone() for name, weight in device.parameters.items()}
    device.feed([{"0.bias": torch.full((8,), 8.0)}, {"2.bias": torch.full((3,), 8.0)}, {}, {}])
    for name in ("0.bias", "2.bias"):
        torch.testing.assert_close(
            start[name] - device.parameters[name].detach(), torch.full_like(start[name], 2.0), rtol=1e-3, atol=1e-3
        )


class Forbidding(TorchDispatchMode):
    """No operation may be seen by a mode of the program."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} ran under the program's mode")


def test_modes_of_the_program_see_nothing_of_an_update():
    device = run_rounded(1, 0, make_options(2, **ROUND))
    for _ in range(2):
        device.parameters["weight"].grad = torch.ones(300, dtype=HALF)
        with Forbidding():
            device.update.before_backward(1)
            device.update.accumulate(1)
    with Forbidding():
        device.update.apply()
    assert device.update.updates == 1


@pytest.mark.parametrize(
    "dtype, accum_type, accumulation, folds",
    [(FLOAT, FLOAT, 4, True), (HALF, FLOAT, 4, False), (FLOAT, HALF, 4, False), (FLOAT, HALF, 1, True)],
)
def test_micro_batches_are_folded_in_float32_only(dtype, accum_type, accumulation, folds):
    device = weight_device(
        torch.zeros(3, dtype=dtype), lambda p: optim.SGD(p, lr=1.0, accum_type=accum_type), make_options(accumulation)
    )
    assert device.update.can_fold == folds


def test_velocity_scaling_saves_small_velocities_of_combined_sgd():
    """The velocity, 2^-26 at first, is below float16 unless it is scaled."""

    def moved(scaling):
        device = weight_device(
            torch.zeros(4, dtype=HALF),
            lambda p: optim.SGD(
                p, lr=1.0, momentum=0.5, use_combined_accum=True, velocity_scaling=scaling, loss_scaling=1024.0
            ),
        )
        for gradient in (2.0**-26, 0.0):
            feed(device, torch.full((4,), gradient))
        return device.optimizer.state_dict()["ipu_state"]["Accl1___weight"].float() / scaling

    assert (moved(1.0) == 0).all() and torch.equal(moved(1024.0), torch.full((4,), 2.0**-27))
