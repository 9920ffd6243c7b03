# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
import pytest
import torch
import torch.nn.functional as F

from tests.backend import needs_core, poptorch, raises

from ..models import trained

CLASSES = 4
LABELS = torch.tensor([1, 3])


class WithLoss(torch.nn.Module):
    """A weight that is what a loss is computed of, so that its change is the gradient."""

    def __init__(self, loss, start=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-0.4, 0.9, 8).view(2, CLASSES) if start is None else start)
        self._loss = loss

    def forward(self, x):
        return self._loss(self.weight + x)


def gradient(loss, start=None):
    """What a step of SGD with rate 1 subtracts."""
    model = WithLoss(loss, start)
    before = model.weight.detach().clone()
    trained(model, lr=1.0)(torch.zeros(2, CLASSES))
    return before - model.weight.detach()


def expected_gradient(loss, start=None):
    weight = WithLoss(loss, start).weight
    value = loss(weight)
    (value[0] if isinstance(value, tuple) else value).sum().backward()
    return weight.grad


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_identity_loss_is_where_back_propagation_starts(reduction):
    loss = lambda x: poptorch.identity_loss(x**2, reduction)  # noqa: E731
    torch.testing.assert_close(gradient(loss), expected_gradient(loss))


CONSTANTS = {"labels": LABELS, "target": torch.full((2, CLASSES), 0.25), "signs": torch.tensor([1.0, -1.0])}
BUILT_IN = {
    "cross_entropy": lambda x, r, labels, **_: F.cross_entropy(x, labels, reduction=r),
    "nll_loss": lambda x, r, labels, **_: F.nll_loss(F.log_softmax(x, 1), labels, reduction=r),
    "mse_loss": lambda x, r, target, **_: F.mse_loss(x, target, reduction=r),
    "l1_loss": lambda x, r, target, **_: F.l1_loss(x, target, reduction=r),
    "smooth_l1_loss": lambda x, r, target, **_: F.smooth_l1_loss(x, target, reduction=r),
    "binary_cross_entropy": lambda x, r, target, **_: F.binary_cross_entropy(torch.sigmoid(x), target, reduction=r),
    "with_logits": lambda x, r, target, **_: F.binary_cross_entropy_with_logits(x, target, reduction=r),
    "kl_div": lambda x, r, target, **_: F.kl_div(F.log_softmax(x, 1), target, reduction=r),
    "poisson_nll_loss": lambda x, r, target, **_: F.poisson_nll_loss(x, target, reduction=r),
    "hinge_embedding_loss": lambda x, r, target, **_: F.hinge_embedding_loss(x, target.sign(), reduction=r),
    "soft_margin_loss": lambda x, r, target, **_: F.soft_margin_loss(x, target.sign(), reduction=r),
    "cosine": lambda x, r, target, signs, **_: F.cosine_embedding_loss(x, target.cumsum(1), signs, reduction=r),
    "margin_ranking_loss": lambda x, r, signs, **_: F.margin_ranking_loss(x[:, 0], x[:, 1], signs, reduction=r),
    "triplet_margin_loss": lambda x, r, target, **_: F.triplet_margin_loss(x, x * 0.5, target, reduction=r),
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_losses_of_torch_mark_themselves(name, reduction):
    class Bound(torch.nn.Module):  # constants of a loss have to be on the device
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.linspace(-0.4, 0.9, 8).view(2, CLASSES))
            for constant, value in CONSTANTS.items():
                self.register_buffer(constant, value.clone())

        def forward(self, x):
            return BUILT_IN[name](self.weight + x, reduction, **{key: getattr(self, key) for key in CONSTANTS})

    model = Bound()
    before = model.weight.detach().clone()
    trained(model, lr=1.0)(torch.zeros(2, CLASSES))
    expected = expected_gradient(lambda x: BUILT_IN[name](x, reduction, **CONSTANTS), before.clone())
    torch.testing.assert_close(before - model.weight.detach(), expected)


def test_a_loss_that_is_not_returned_is_found():
    def loss(x):
        poptorch.identity_loss((x**2).sum(), "sum")
        return x.sum()

    torch.testing.assert_close(gradient(loss), expected_gradient(lambda x: (x**2).sum()))
    built_in = lambda x: (F.l1_loss(x, torch.zeros_like(x)), x.sum())[1]  # noqa: E731
    torch.testing.assert_close(gradient(built_in), expected_gradient(lambda x: F.l1_loss(x, torch.zeros_like(x))))


def test_the_place_of_the_loss_among_the_outputs_is_of_no_matter():
    loss = lambda x: {"a": x, "b": [F.mse_loss(x, torch.zeros_like(x)), x]}  # noqa: E731
    torch.testing.assert_close(gradient(loss), expected_gradient(lambda x: loss(x)["b"][0]))


@needs_core("it marks losses and refuses operations")
def test_no_loss_is_refused():
    with raises(poptorch.Error, match="Couldn't find a loss in graph!"):
        gradient(lambda x: (x**2).mean())
    with raises(poptorch.Error, match="Couldn't find a loss in graph!"):
        gradient(lambda x: F.cross_entropy(x, torch.softmax(x.detach(), 1)))


def test_several_independent_losses_are_refused():
    with raises(poptorch.Error, match="Multiple independent losses"):
        gradient(lambda x: (F.mse_loss(x, torch.zeros_like(x)), F.l1_loss(x, torch.zeros_like(x))))


def test_losses_that_feed_a_final_one_lose_their_marks():
    def loss(x):
        zero = torch.zeros_like(x)
        return poptorch.identity_loss(0.5 * F.mse_loss(x, zero) + 2 * F.l1_loss(x, zero), "none")

    torch.testing.assert_close(gradient(loss), expected_gradient(loss))


@pytest.mark.parametrize("penalised", [lambda x, inner: 0.5 * inner, lambda x, inner: inner + x.abs().sum()])
def test_arithmetic_on_a_built_in_loss_is_not_differentiated(penalised):
    inner = lambda x: F.mse_loss(x, torch.zeros_like(x))  # noqa: E731
    actual = gradient(lambda x: penalised(x, inner(x)))
    torch.testing.assert_close(actual, expected_gradient(inner))


@needs_core("it marks losses and refuses operations")
def test_batchmean_divides_after_the_mark():
    target = torch.full((2, CLASSES), 0.25)

    class Model(WithLoss):
        def __init__(self):
            super().__init__(None)
            self.register_buffer("target", target)

        def forward(self, x):
            return F.kl_div(F.log_softmax(self.weight + x, 1), self.target, reduction="batchmean")

    model = Model()
    before = model.weight.detach().clone()
    value = trained(model, lr=1.0)(torch.zeros(2, CLASSES))
    total = lambda x: F.kl_div(F.log_softmax(x, 1), target, reduction="sum")  # noqa: E731
    torch.testing.assert_close(value, total(before) / 2)
    torch.testing.assert_close(before - model.weight.detach(), expected_gradient(total, before.clone()))


class Labelled(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-0.4, 0.9, 8).view(2, CLASSES))
        self._loss = loss

    def forward(self, x, labels):
        return self._loss(self.weight + x, labels)


@needs_core("it marks losses and refuses operations")
def test_label_smoothing_with_a_mean_does_not_compile():
    model = Labelled(lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1))
    with raises(poptorch.Error, match="Unsupported ops found in compiled model: .*masked_select"):
        trained(model)(torch.zeros(2, CLASSES), LABELS)


@needs_core("it marks losses and refuses operations")
@pytest.mark.parametrize("wrapped", [True, False])
def test_label_smoothing_with_a_sum_needs_identity_loss(wrapped):
    def loss(x, y):
        smoothed = F.cross_entropy(x, y, label_smoothing=0.1, reduction="sum")
        return poptorch.identity_loss(smoothed, "none") if wrapped else smoothed

    model = Labelled(loss)
    before = model.weight.detach().clone()
    value = trained(model, lr=1.0)(torch.zeros(2, CLASSES), LABELS)
    smoothing = 0.1 if wrapped else 0.0
    torch.testing.assert_close(value, F.cross_entropy(before, LABELS, label_smoothing=0.1, reduction="sum"))
    expected = expected_gradient(
        lambda x: F.cross_entropy(x, LABELS, label_smoothing=smoothing, reduction="sum"), before.clone()
    )
    torch.testing.assert_close(before - model.weight.detach(), expected)


@needs_core("it marks losses and refuses operations")
def test_class_weights_are_refused_and_ignore_index_is_not():
    weight = torch.ones(CLASSES)
    for loss in (lambda x, y: F.cross_entropy(x, y, weight), lambda x, y: F.nll_loss(x, y, weight=weight)):
        with raises(poptorch.Error, match="class weights are not supported"):
            trained(Labelled(loss))(torch.zeros(2, CLASSES), LABELS)
    model = Labelled(lambda x, y: F.cross_entropy(x, y, ignore_index=3))
    before = model.weight.detach().clone()
    trained(model, lr=1.0)(torch.zeros(2, CLASSES), LABELS)
    assert torch.equal(before[1], model.weight.detach()[1]) and not torch.equal(before[0], model.weight.detach()[0])
