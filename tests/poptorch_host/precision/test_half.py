# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
import copy

import pytest
import torch
from poptorch_host.precision.half import HalfArithmetic, _in_float
from poptorch_host.precision.partials import HalfPartials

from tests.backend import host_only, poptorch

from ..models import Classifier, Function, classifier_batch, trained

pytestmark = host_only("its own modules, driven directly")


class Convolutional(torch.nn.Module):
    """One of each kind of layer whose kernels are missing on some hosts, with a loss."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.GELU(),
            torch.nn.GroupNorm(2, 4),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.LayerNorm(36),
            torch.nn.Linear(36, 5),
        )

    def forward(self, x, labels):
        logits = self.body(x)
        return torch.softmax(logits, -1), torch.nn.functional.cross_entropy(logits, labels)


def batch(dtype):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(4, 3, 8, 8, generator=generator).to(dtype), torch.tensor([0, 1, 4, 2])


def after_a_step(model, x, labels):
    outputs = trained(model, lr=0.5)(x, labels)
    return outputs, {name: value.float() for name, value in model.state_dict().items()}


@pytest.fixture()
def single():
    """A model in float32, and what a step makes of it."""
    torch.manual_seed(4)
    model = Convolutional()
    return model, after_a_step(copy.deepcopy(model), *batch(torch.float32))


def test_half_models_train_close_to_single_ones_and_stay_half(single):
    model, (outputs, state) = single
    half = model.half()
    half_outputs, half_state = after_a_step(half, *batch(torch.float16))
    assert all(output.dtype == torch.float16 for output in half_outputs)
    assert all(value.dtype == torch.float16 for value in half.state_dict().values() if value.is_floating_point())
    for one, other in zip(half_outputs, outputs):
        torch.testing.assert_close(one.float(), other, rtol=2e-2, atol=2e-3)
    for name, value in state.items():
        torch.testing.assert_close(half_state[name], value, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize(
    "product, shapes",
    [
        (torch.nn.functional.linear, [(4, 600), (3, 600), (3,)]),
        (torch.bmm, [(2, 3, 600), (2, 600, 4)]),
        (torch.nn.functional.conv2d, [(2, 70, 5, 5), (3, 70, 3, 3)]),
    ],
)
def test_products_of_half_are_computed_in_float32_on_a_cpu_forward_and_backward(product, shapes):
    operands = [torch.randn(shape, generator=torch.Generator().manual_seed(0)).half() for shape in shapes]
    executor = poptorch.inferenceModel(Function(product))
    assert torch.equal(executor(*operands), product(*[tensor.float() for tensor in operands]).half())
    assert executor.compiled.half_arithmetic
    half, single = (
        [tensor.to(dtype, copy=True).requires_grad_() for tensor in operands] for dtype in (torch.half, torch.float)
    )
    with HalfArithmetic(HalfPartials(poptorch.Options())) as arithmetic:
        product(*half).sum().backward()
    assert arithmetic.needed
    product(*single).sum().backward()
    for one, other in zip(half, single):
        assert torch.equal(one.grad, other.grad.half())


def test_half_inputs_make_convolutions_and_norms_half_with_single_weights(single):
    model, (_, state) = single

    class Upcast(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x, labels):
            for layer in self.model.body[:-1]:
                x = layer(x)
                assert x.dtype == torch.float16
            logits = self.model.body[-1](x)
            assert logits.dtype == torch.float32  # matrix products promote
            return torch.nn.functional.cross_entropy(logits, labels)

    _, mixed_state = after_a_step(Upcast(), *batch(torch.float16))
    for name, value in state.items():
        torch.testing.assert_close(mixed_state["model." + name], value, rtol=2e-2, atol=2e-3)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.BatchNorm1d(4),
        torch.nn.GroupNorm(2, 4),
        torch.nn.LayerNorm(4),
        torch.nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_norms_of_a_half_model_return_the_dtype_of_their_input(layer, training):
    layer = copy.deepcopy(layer).train(training)
    x = torch.randn(3, 4, 4)
    expected = copy.deepcopy(layer)(x).detach()
    for dtype in (torch.float32, torch.float16):
        output = poptorch.inferenceModel(copy.deepcopy(layer).half())(x.to(dtype))
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), expected, rtol=1e-2, atol=1e-2)


def test_a_linear_layer_of_one_half_vector_is_half_and_of_several_single():
    layer = torch.nn.Linear(4, 2)
    assert poptorch.inferenceModel(layer)(torch.ones(4).half()).dtype == torch.float16
    assert poptorch.inferenceModel(layer)(torch.ones(1, 4).half()).dtype == torch.float32


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.nn.functional.gelu(x),
        lambda x: torch.softmax(x, -1),
        lambda x: x.cumsum(0),
        lambda x: x @ x.t(),
        lambda x: torch.nn.functional.pad(x, (1, 1)),
        lambda x: torch.einsum("ij,kj->ik", x, x),
        lambda x: x.mean(1),
        lambda x: torch.nn.functional.layer_norm(x, (4,)),
        lambda x: x.exp().log(),
        lambda x: x.clone().mul_(2),
    ],
)
def test_operations_in_half_are_those_in_single_rounded(function):
    x = torch.linspace(-2, 2, 16).view(4, 4).half()
    actual = poptorch.inferenceModel(Function(function))(x)
    assert actual.dtype == torch.float16
    torch.testing.assert_close(actual.float(), function(x.float()), rtol=2e-3, atol=2e-3)


def test_a_sum_asked_for_in_single_stays_single():
    assert (
        poptorch.inferenceModel(Function(lambda x: x.sum(dtype=torch.float32)))(torch.ones(3).half()).dtype
        == torch.float32
    )


def test_single_models_need_no_emulation():
    executor = trained(Classifier())
    executor(*classifier_batch())
    assert not executor.compiled.half_arithmetic


def test_autocast_is_left_to_pytorch():
    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(
                torch.nn.Conv2d(3, 4, 3),
                torch.nn.GroupNorm(2, 4),
                torch.nn.Flatten(),
                torch.nn.LayerNorm(144),
                torch.nn.Linear(144, 5),
            )

        def forward(self, x, labels):
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.body(x)
            return logits, torch.nn.functional.cross_entropy(logits.float(), labels)

    executor = trained(Mixed())
    logits, loss = executor(*batch(torch.float32))
    assert not executor.compiled.half_arithmetic
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32


def test_missing_kernels_are_emulated_forward_and_backward(monkeypatch):
    """A host without half products: the native kernel fails, and results are as if it did not."""
    x, w = torch.randn(3, 4).half(), torch.randn(4, 2).half().requires_grad_()
    native = HalfArithmetic.__dict__["_in_half"]

    def without_products(self, func, name, args, kwargs):
        if name == "mm":
            self._missing.add(func)
        return native(self, func, name, args, kwargs)

    monkeypatch.setattr(HalfArithmetic, "_in_half", without_products)
    with HalfArithmetic(HalfPartials(poptorch.Options())) as arithmetic:
        product = x @ w
        (product * product).sum().backward()
    assert arithmetic.needed and product.dtype == torch.float16 and w.grad.dtype == torch.float16
    exact = w.detach().float().requires_grad_()
    ((x.float() @ exact) ** 2).sum().backward()
    torch.testing.assert_close(product.float(), x.float() @ exact.detach(), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(w.grad.float(), exact.grad, rtol=1e-2, atol=1e-2)


def test_emulated_operations_write_where_the_native_ones_do(monkeypatch):
    monkeypatch.setattr(
        HalfArithmetic, "_in_half", lambda self, func, name, args, kwargs: _in_float(func, name, args, kwargs)
    )
    x, norm = torch.linspace(-1, 1, 12).view(4, 3), torch.nn.BatchNorm1d(3)
    half_x, half_norm = x.half(), copy.deepcopy(norm).half()
    with HalfArithmetic(HalfPartials(poptorch.Options())):
        same = half_x.add_(1)
        half_norm(half_x)
    norm(x + 1)
    assert same is half_x and half_x.dtype == torch.float16
    torch.testing.assert_close(half_x.float(), x + 1, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(half_norm.running_mean.float(), norm.running_mean, rtol=2e-3, atol=2e-3)
    assert half_norm.running_mean.dtype == torch.float16


def test_errors_of_the_program_are_not_taken_for_missing_kernels():
    with HalfArithmetic(HalfPartials(poptorch.Options())), pytest.raises(RuntimeError, match="shape"):
        torch.ones(2, 3).half() @ torch.ones(2, 3).half()


INDEX_USES = {
    "gather": lambda x, i: x.gather(1, i.unsqueeze(1)),
    "scatter_": lambda x, i: (x * 2).scatter_(1, i.unsqueeze(1), 0.0),
    "a list of indices": lambda x, i: x[i],
    "one_hot": lambda x, i: torch.nn.functional.one_hot(i, 4) + x,
    "take_along_dim": lambda x, i: torch.take_along_dim(x, i.unsqueeze(1), 1),
    "embedding": lambda x, i: torch.nn.functional.embedding(i, x),
    "nll_loss": lambda x, i: torch.nn.functional.nll_loss(x, i, reduction="none"),
}


@pytest.mark.parametrize("name", INDEX_USES)
def test_indices_of_32_bits_are_as_good_as_of_64(name):
    x, indices = torch.randn(4, 4), torch.tensor([3, 1, 0, 2])
    output = poptorch.inferenceModel(Function(INDEX_USES[name]))(x, indices.int())
    assert torch.equal(output, INDEX_USES[name](x, indices))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_labels_of_32_bits_train_as_those_of_64(dtype):
    x, labels = batch(dtype)
    states = []
    for labels_as_given in (labels, labels.int()):
        torch.manual_seed(0)
        states.append(after_a_step(Convolutional().to(dtype), x, labels_as_given)[1])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value)


def test_an_integer_error_of_the_program_stays_what_it_is():
    product = poptorch.inferenceModel(Function(lambda x: x @ x))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        product(torch.ones(2, 3, dtype=torch.int32))


@pytest.mark.parametrize(
    "divide", [lambda w, x: w // x, lambda w, x: 3.0 // w + 0 * x, lambda w, x: torch.floor_divide(w, 0.5) + 0 * x]
)
def test_divisions_that_round_down_have_a_gradient_of_zero(divide):
    class Divided(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([1.5, 2.0]))

        def forward(self, x):
            return poptorch.identity_loss(divide(self.weight, x) + self.weight, "sum")

    model, x = Divided(), torch.tensor([[0.5, 0.75]])
    expected = (divide(model.weight.detach(), x) + model.weight.detach()).sum()
    trainer = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=1.0))
    assert trainer(x) == expected and torch.equal(model.weight.detach(), torch.tensor([0.5, 1.0]))
