# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
import collections
import copy
import io
import pickle

import pytest
import torch
from poptorch_host import host

from tests.backend import host_only, needs_core, poptorch, raises

from ..models import Classifier, Function, accumulating, classifier_batch, trained

Pair = collections.namedtuple("Pair", "first second")


def infer(function, options=None):
    return poptorch.inferenceModel(Function(function), options)


@pytest.mark.parametrize(
    "structure",
    [
        lambda x: x + 1,
        lambda x: (x + 1, x * 2),
        lambda x: [x + 1],
        lambda x: {"a": x + 1, "b": (x, [x * 3])},
        lambda x: collections.OrderedDict(a=x),
        lambda x: Pair(x + 1, (x, None)),
        lambda x: (x + 1, None, "text", 3),
        lambda x: None,
        lambda x: (x, (x, (x + 2,))),
    ],
)
def test_outputs_keep_their_containers(structure):
    x = torch.arange(3.0)
    native, actual = structure(x), infer(structure)(x)

    def assert_same(one, other):
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)
        elif isinstance(one, dict):
            assert list(one) == list(other)
            [assert_same(one[key], other[key]) for key in one]
        elif isinstance(one, (list, tuple)):
            assert len(one) == len(other)
            [assert_same(*pair) for pair in zip(one, other)]
        else:
            assert one == other

    assert_same(actual, native)


def test_containers_that_their_constructor_does_not_make_of_their_items_are_no_outputs():
    with raises(TypeError, match="defaultdict cannot be made again"):
        infer(lambda x: collections.defaultdict(list, a=x + 1))(torch.ones(2))


def test_values_that_are_no_tensors_stay_as_they_were_when_compiled():
    calls = []

    def forward(x):
        calls.append(None)
        return x, len(calls)

    executor = infer(forward)
    assert [executor(torch.ones(1))[1] for _ in range(3)] == [1, 1, 1]


def test_outputs_have_the_dtypes_of_a_host():
    outputs = infer(lambda x: (x.argmax(), x.double(), x.half(), x > 0, x.int()))(torch.ones(2))
    assert [output.dtype for output in outputs] == [torch.int32, torch.float32, torch.float16, torch.bool, torch.int32]


@pytest.mark.parametrize(
    "mode, period, rows, scalars",
    [("All", 1, 24, 12), ("Final", 1, 4, 2), ("Sum", 1, 4, 2), ("EveryN", 3, 8, 4), ("EveryN", 2, 12, 6)],
)
def test_training_outputs_have_the_shapes_of_their_mode(mode, period, rows, scalars):
    options = accumulating(3).deviceIterations(2).replicationFactor(2)
    options.outputMode(getattr(poptorch.OutputMode, mode), period)
    logits, loss = trained(Classifier(), options)(*classifier_batch(24))
    assert logits.shape == (rows, 3)
    assert loss.shape == (scalars,)


def test_a_single_scalar_stays_without_dimension():
    assert trained(Classifier(), accumulating(4))(*classifier_batch(8))[1].shape == ()
    options = poptorch.Options().deviceIterations(3).outputMode(poptorch.OutputMode.Sum)
    assert infer(lambda x: x.sum(), options)(torch.ones(3)).shape == ()
    assert infer(lambda x: x.sum())(torch.ones(3)).shape == ()


def test_the_default_mode_is_all_for_inference_and_final_for_training():
    options = poptorch.Options().deviceIterations(4)
    assert infer(lambda x: x, options)(torch.ones(8, 2)).shape == (8, 2)
    executor = trained(Classifier(), poptorch.Options().deviceIterations(4))
    assert executor(*classifier_batch(8))[0].shape == (2, 3)
    assert executor.options.output_mode == poptorch.OutputMode.Final
    assert options.defaultOutputMode()


@needs_core("it checks the period")
def test_a_period_beyond_the_call_is_refused():
    options = poptorch.Options().deviceIterations(2).outputMode(poptorch.OutputMode.EveryN, 3)
    with raises(poptorch.Error, match="EveryN with period 3 returns nothing"):
        infer(lambda x: x, options)(torch.ones(2))


@needs_core("it folds constants")
def test_constants_are_returned_once():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.arange(2))

        def forward(self, x):
            return torch.ones(3), self.table + 1, x, torch.zeros(1) + x.sum()

    ones, table, x, mixed = poptorch.inferenceModel(Model(), poptorch.Options().deviceIterations(4))(torch.ones(4))
    assert ones.shape == (3,) and table.tolist() == [1, 2]
    assert x.shape == (4,) and mixed.shape == (4,)


def test_outputs_are_fresh_at_every_call():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.plain = torch.ones(2)

        def forward(self, x):
            return x, self.weight, x.view(-1), x * self.weight, self.plain

    x, executor = torch.ones(2), poptorch.inferenceModel(Model())
    first = executor(x)
    for output in first:
        output.fill_(7)
    assert x.tolist() == [1, 1]
    assert all(output.tolist() == [1, 1] for output in executor(x))


def test_outputs_share_no_memory():
    def forward(x):
        y = x + 1
        return y, y, y.view(-1), y[0]

    outputs = infer(forward)(torch.zeros(2, 2))
    for output in outputs:
        output += 1
    assert all(set(output.flatten().tolist()) == {2} for output in outputs)


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("mode, period", [("All", None), ("Final", None), ("EveryN", 2), ("EveryN", 4), ("Sum", None)])
def test_outputs_share_no_memory_with_inputs(mode, period, fold, monkeypatch):
    monkeypatch.setattr(host, "_settings", type(host._settings)())
    host.configure(fold=fold)
    options = poptorch.Options().deviceIterations(4).outputMode(poptorch.OutputMode[mode], period)
    rows = torch.arange(8.0).view(8, 1)
    outputs = infer(lambda x: (x, x, x.view(-1)), options)(rows)
    kept = [output.clone() for output in outputs]
    rows += 100
    assert all(map(torch.equal, outputs, kept))
    outputs[0].zero_()
    assert torch.equal(outputs[1], kept[1])


@pytest.mark.parametrize("mode, period", [("All", None), ("Final", None), ("EveryN", 4), ("Sum", None)])
def test_outputs_keep_nothing_else_in_memory(mode, period):
    options = poptorch.Options().deviceIterations(8).outputMode(poptorch.OutputMode[mode], period)
    output = infer(lambda x: x + 1, options)(torch.ones(16, 3))
    assert output.untyped_storage().nbytes() == output.numel() * output.element_size()


@pytest.mark.parametrize("mode, period", [("All", None), ("Final", None), ("EveryN", 2), ("Sum", None)])
@pytest.mark.parametrize("failing", [KeyboardInterrupt, ValueError])
def test_a_call_that_an_error_ended_leaves_nothing_in_the_outputs_of_the_next(mode, period, failing, monkeypatch):
    monkeypatch.setattr(host, "_settings", type(host._settings)())
    host.configure(fold=False)
    calls = []

    def forward(x):
        calls.append(None)
        if len(calls) == fails_at:
            raise failing
        return x + 1, x.sum()

    fails_at = 0
    executor = infer(forward, poptorch.Options().deviceIterations(4).outputMode(poptorch.OutputMode[mode], period))
    rows = torch.arange(4.0)
    expected = executor(rows)
    fails_at = len(calls) + 4
    with raises(failing):
        executor(rows + 10)
    assert all(map(torch.equal, executor(rows), expected))


@needs_core("it makes the outputs")
@pytest.mark.parametrize("iterations", [1, 8])
def test_outputs_are_dense_and_can_be_written(iterations):
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            row = self.scale[None] * 2
            return x.t(), x.double().t(), self.scale.sum(), row, row.t(), self.scale.expand(2, 3)

    executor = poptorch.inferenceModel(Scaled(), poptorch.Options().deviceIterations(iterations))
    for output in executor(torch.ones(2 * iterations, 3)):
        assert output.is_contiguous()
        output += 1


def test_backward_on_an_output_is_refused():
    _, loss = trained(Classifier())(*classifier_batch())
    assert type(loss) is torch.Tensor and not loss.requires_grad
    with raises(poptorch.Error, match=r"backward\(\) cannot be called explicitly"):
        loss.backward()


@host_only("PopTorch's outputs have a function of the executor in them, and cannot be pickled")
def test_outputs_can_be_formatted_copied_and_saved_as_plain_data():
    _, loss = trained(Classifier())(*classifier_batch())
    assert f"{loss:.2f}" == f"{loss.item():.2f}"
    buffer = io.BytesIO()
    torch.save({"loss": loss}, buffer)
    buffer.seek(0)
    for twin in (torch.load(buffer, weights_only=True)["loss"], copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin, loss)


def test_training_outputs_are_those_before_the_update():
    model = Classifier()
    x, labels = classifier_batch()
    expected = model(x, labels)
    for actual, native in zip(trained(model)(x, labels), expected):
        torch.testing.assert_close(actual, native.detach())
