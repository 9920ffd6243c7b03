# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Products of float16 whose partial sums are float16."""

import functools

import pytest
import torch
from torch.nn import functional

from tests.backend import needs_core, poptorch, raises

from ..models import Classifier, Function, classifier_batch, trained

GROUP = 16  # products that are added up in float32


def partials(dtype):
    options = poptorch.Options()
    options.Precision.setPartialsType(dtype)
    return options


def in_half(function, *inputs):
    return poptorch.inferenceModel(Function(function), partials(torch.half))(*inputs)


def randoms(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).half()


def summed(left, right):
    """(M, K) @ (K, N), an element at a time."""
    result = torch.empty(len(left), right.shape[1], dtype=torch.float16)
    for row in range(len(left)):
        for column in range(right.shape[1]):
            total = torch.zeros((), dtype=torch.float16)
            for first in range(0, left.shape[1], GROUP):
                group = slice(first, first + GROUP)
                total = total + (left[row, group].double() * right[group, column].double()).sum().half()
            result[row, column] = total
    return result


@needs_core("it has half partials")
def test_a_sum_that_overflows_on_the_way_is_infinite_in_half_alone():
    x = torch.tensor([60.0] * 2 * GROUP + [-60.0] * 2 * GROUP).half().view(1, -1)  # 57600 in a group
    product = Function(lambda x, y: x @ y.t())
    ones = torch.full_like(x, 60.0)
    assert poptorch.inferenceModel(product, partials(torch.float))(x, ones) == 0
    assert poptorch.inferenceModel(product, partials(torch.half))(x, ones) == float("inf")


@needs_core("it has half partials")
def test_float_partials_are_float32_and_the_default():
    x = torch.full((1, 4096), 0.51).half()  # groups of 8.16 added to a sum beyond 2048, where float16 has even numbers
    product = Function(lambda x: x @ torch.ones_like(x).t())
    exact = x.double().sum().half()
    assert poptorch.inferenceModel(product)(x) == exact
    assert poptorch.inferenceModel(product, partials(torch.float))(x) == exact
    assert poptorch.inferenceModel(product, partials(torch.half))(x) != exact


@needs_core("it has half partials")
@pytest.mark.parametrize("terms", [1, 16, 17, 40])
def test_groups_are_rounded_and_added_one_after_the_other(terms):
    left, right = randoms(3, terms), randoms(terms, 2)
    assert torch.equal(in_half(torch.matmul, left, right), summed(left, right))


@needs_core("it has half partials")
@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: torch.bmm(x.unsqueeze(0).expand(2, -1, -1), y.t().unsqueeze(0).expand(2, -1, -1))[1],
        lambda x, y: torch.addmm(torch.zeros_like(x[0, :3]), x, y.t()),
        lambda x, y: functional.linear(x, y),
        lambda x, y: torch.baddbmm(torch.zeros_like(x[:1, :3].unsqueeze(0)), x.unsqueeze(0), y.t().unsqueeze(0))[0],
        lambda x, y: torch.stack([x @ row for row in y.unbind()], 1),
        lambda x, y: torch.stack([torch.addmv(torch.zeros_like(x[:, 0]), x, row) for row in y.unbind()], 1),
        lambda x, y: torch.stack([torch.dot(a, b) for a in x.unbind() for b in y.unbind()]).view(3, 3),
    ],
)
def test_every_kind_of_product_has_them(function):
    left, right = randoms(3, 50), randoms(3, 50)
    assert torch.equal(in_half(function, left, right), summed(left, right.t()))


@needs_core("it has half partials")
@pytest.mark.parametrize("groups, transposed", [(1, False), (2, False), (1, True), (2, True)])
def test_convolutions_have_them(groups, transposed):
    """Channels of a 1 x 1 convolution are the terms of a product; those of larger kernels come near."""
    x, bias = randoms(2, 40, 3, 3), randoms(4)
    shape = (40, 4 // groups) if transposed else (4, 40 // groups)
    convolve = functional.conv_transpose2d if transposed else functional.conv2d
    weight = randoms(*shape, 1, 1)
    output = in_half(lambda *inputs: convolve(*inputs, groups=groups), x, weight, bias)
    for group in range(groups):
        rows = x[:, group * 40 // groups : (group + 1) * 40 // groups].permute(0, 2, 3, 1).reshape(18, -1)
        outs = slice(group * 4 // groups, (group + 1) * 4 // groups)
        columns = (
            weight[group * 40 // groups : (group + 1) * 40 // groups, :, 0, 0]
            if transposed
            else weight[outs, :, 0, 0].t()
        )
        expected = (summed(rows, columns) + bias[outs]).view(2, 3, 3, -1).permute(0, 3, 1, 2)
        assert torch.equal(output[:, outs], expected)
    wide = randoms(*shape, 3, 3)
    exact = convolve(x.float(), wide.float(), bias.float(), padding=1, groups=groups)
    rounded = in_half(lambda *inputs: convolve(*inputs, padding=1, groups=groups), x, wide, bias)
    assert not torch.equal(rounded, exact.half())
    torch.testing.assert_close(rounded.float(), exact, rtol=1e-2, atol=1e-2)


@needs_core("it has half partials")
def test_zeros_between_inputs_of_a_transposed_convolution_are_no_terms():
    """With a stride of the kernel's size, one tap contributes to an output: its channels are the terms."""
    x, weight = randoms(2, 40, 3, 2), randoms(40, 3, 2, 2)
    output = in_half(lambda *inputs: functional.conv_transpose2d(*inputs, stride=2), x, weight)
    for row in range(2):
        for column in range(2):
            expected = summed(in_rows(x), weight[:, :, row, column]).view(2, 3, 2, 3).permute(0, 3, 1, 2)
            assert torch.equal(output[:, :, row::2, column::2], expected)


@needs_core("it has half partials")
def test_gradients_of_products_have_them():
    class Product(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(randoms(2, 3))

        def forward(self, x):
            return poptorch.identity_loss((x @ self.weight).sum(), "none")

    model, x = Product(), randoms(50, 2)
    before = model.weight.detach().clone()
    trainer = poptorch.trainingModel(model, partials(torch.half), torch.optim.SGD(model.parameters(), lr=1.0))
    trainer(x)
    trainer.copyWeightsToHost()
    gradient = summed(x.t(), torch.ones(50, 3).half())
    assert torch.equal(model.weight.detach(), (before.float() - gradient.float()).half())
    assert not torch.equal(gradient, (x.t().double() @ torch.ones(50, 3).double()).half())


class Convolution(torch.nn.Module):
    """A convolution of a parameter, `convolve`; the gradient of its output is the model's input."""

    def __init__(self, convolve, data, weight, channels=4):
        super().__init__()
        self.convolve = convolve
        self.data, self.weight = torch.nn.Parameter(data), torch.nn.Parameter(weight)
        self.bias = torch.nn.Parameter(torch.zeros(channels, dtype=data.dtype))

    def forward(self, gradient):
        return poptorch.identity_loss((self.convolve(self.data, self.weight, self.bias) * gradient).sum(), "none")


def convolution_gradients(model, gradient):
    """Of data, weight and bias: what an update with a learning rate of 1 took from zeros."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = poptorch.optim.SGD(model.parameters(), lr=1.0)
    trainer = poptorch.trainingModel(model, partials(torch.half), optimizer)
    trainer(gradient)
    trainer.copyWeightsToHost()
    return [before[name].float() - parameter.detach().float() for name, parameter in model.named_parameters()]


def in_rows(images):
    return images.permute(0, 2, 3, 1).flatten(0, 2)


@needs_core("it has half partials")
def test_gradients_of_convolutions_have_them():
    """Output channels are the terms of the data's gradient, positions of the batch those of the weight's."""
    kernel, gradient = randoms(40, 2, 1, 1), randoms(3, 40, 5, 5)
    model = Convolution(functional.conv2d, torch.zeros(3, 2, 5, 5).half(), kernel, channels=40)
    for_data = convolution_gradients(model, gradient)[0]
    assert torch.equal(in_rows(for_data), summed(in_rows(gradient), kernel[:, :, 0, 0]).float())

    data, gradient = randoms(3, 2, 5, 5), randoms(3, 4, 5, 5)
    model = Convolution(functional.conv2d, data, torch.zeros(4, 2, 1, 1).half())
    _, for_weight, for_bias = convolution_gradients(model, gradient)
    assert torch.equal(for_weight.view(4, 2), summed(in_rows(gradient).t(), in_rows(data)).float())
    assert not torch.equal(for_weight.view(4, 2), (in_rows(gradient).t().double() @ in_rows(data).double()).half())
    torch.testing.assert_close(for_bias, gradient.float().sum((0, 2, 3)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "convolve",
    [
        functional.conv1d,
        functional.conv_transpose1d,
        functional.conv2d,
        functional.conv_transpose2d,
        functional.conv3d,
        functional.conv_transpose3d,
    ],
)
@pytest.mark.parametrize(
    "settings", [dict(), dict(padding=1, groups=2), dict(stride=2, padding=1), dict(dilation=2, stride=2)]
)
def test_gradients_of_every_convolution_come_near_the_exact_ones(convolve, settings):
    sizes = (7, 6, 5)[: int(convolve.__name__[-2])]
    convolve = functools.partial(convolve, **settings)
    shapes = {"data": (2, 4, *sizes), "weight": (4, 4 // settings.get("groups", 1), *[3] * len(sizes))}
    gradient = randoms(*convolve(*map(torch.zeros, shapes.values())).shape)
    for index, name in enumerate(shapes):
        half = [torch.zeros(shape).half() if other == name else randoms(*shape) for other, shape in shapes.items()]
        exact = Convolution(convolve, *[tensor.double() for tensor in half])
        exact(gradient.double()).backward()
        found = convolution_gradients(Convolution(convolve, *half), gradient)[index]
        torch.testing.assert_close(found.double(), getattr(exact, name).grad, rtol=2e-2, atol=6e-2)


@needs_core("it has half partials")
def test_float32_models_are_as_with_float_partials():
    results = []
    for dtype in (torch.float, torch.half):
        torch.manual_seed(0)
        executor = trained(Classifier(), partials(dtype))
        results.append(executor(*classifier_batch())[1])
        assert not executor.compiled.half_arithmetic
    assert torch.equal(*results)


def of(*shapes):
    return [torch.ones(shape).half() for shape in shapes]


REFUSED = {
    "linear": (functional.linear, of((2, 48), (3, 768))),
    "linear, larger": (functional.linear, of((2, 1024), (3, 768))),
    "linear, bias": (functional.linear, of((2, 48), (3, 48), (4,))),
    "matmul": (torch.matmul, of((2, 3, 4), (2, 5, 6))),
    "matmul, batches": (torch.matmul, of((2, 3, 4), (3, 4, 5))),
    "einsum": (lambda x, y: torch.einsum("ij,jk->ik", x, y), of((2, 3), (4, 5))),
    "mm": (torch.mm, of((2, 3), (4, 5))),
    "addmm": (torch.addmm, of((4,), (2, 3), (3, 5))),
    "addmm, bias of more dimensions": (torch.addmm, of((6, 2, 5), (2, 3), (3, 5))),
    "bmm": (torch.bmm, of((1, 2, 3), (4, 3, 2))),
    "baddbmm": (torch.baddbmm, of((2, 3, 3), (4, 3, 2), (4, 2, 3))),
    "mv": (torch.mv, of((2, 3), (4,))),
    "addmv": (torch.addmv, of((3,), (2, 3), (3,))),
    "dot": (torch.dot, of((1,), (3,))),
    "conv1d": (functional.conv1d, of((1, 4, 8), (2, 3, 3))),
    "conv2d": (functional.conv2d, of((1, 4, 8, 8), (2, 3, 3, 3))),
    "conv2d, bias": (functional.conv2d, of((1, 3, 8, 8), (2, 3, 3, 3), (5,))),
    "conv2d, kernel": (functional.conv2d, of((1, 3, 2, 2), (2, 3, 3, 3))),
    "conv2d, groups": (lambda x, y: functional.conv2d(x, y, groups=2), of((1, 4, 8, 8), (3, 2, 3, 3))),
    "conv2d, stride": (lambda x, y: functional.conv2d(x, y, stride=0), of((1, 3, 8, 8), (2, 3, 3, 3))),
    "conv2d, padding": (lambda x, y: functional.conv2d(x, y, padding=-1), of((1, 3, 8, 8), (2, 3, 3, 3))),
    "conv3d": (functional.conv3d, of((1, 4, 4, 4, 4), (2, 3, 3, 3, 3))),
    "conv_transpose2d": (functional.conv_transpose2d, of((1, 4, 8, 8), (3, 2, 3, 3))),
    "conv_transpose2d, output_padding": (
        lambda x, y: functional.conv_transpose2d(x, y, output_padding=3),
        of((1, 3, 8, 8), (3, 2, 3, 3)),
    ),
}


@needs_core("it has half partials")
@pytest.mark.parametrize("function, operands", REFUSED.values(), ids=REFUSED)
def test_what_pytorch_refuses_is_refused(function, operands):
    with raises(RuntimeError) as expected:
        function(*[operand.float() for operand in operands])
    with raises(RuntimeError) as raised:
        in_half(lambda *weights: function(*weights), *operands)
    assert str(raised.value) == str(expected.value)


def test_a_factor_of_zero_leaves_a_bias_out_that_is_not_finite():
    bias, left, right = torch.full((2, 2), float("nan")).half(), *of((2, 3), (3, 2))
    assert in_half(lambda *inputs: torch.addmm(*inputs, beta=0), bias, left, right).tolist() == [[3, 3], [3, 3]]
