# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
import collections
import logging

import numpy
import pytest
import torch
from poptorch_host.inputs import arguments

from tests.backend import needs_core, poptorch, raises

from ..models import Function

Pair = collections.namedtuple("Pair", "first second")


class Optional(torch.nn.Module):
    def forward(self, x, y=None, scale=2.0):
        return x * scale if y is None else x * scale + y


def infer(function, options=None):
    return poptorch.inferenceModel(Function(function), options)


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2),
        (torch.ones(2), torch.zeros(2)),
        [torch.ones(2), (torch.zeros(2),)],
        {"a": torch.ones(2), "b": torch.zeros(2)},
        Pair(torch.ones(2), [torch.zeros(2)]),
    ],
)
def test_nested_inputs_reach_forward_in_their_containers(value):
    seen = []

    def forward(argument):
        seen.append(argument)
        return torch.zeros(1) + 1

    infer(forward)(value)
    assert type(seen[-1]) is type(value)
    poptorch.inferenceModel(Function(forward)).compile(value)


def test_keywords_and_defaults_fill_parameters_in_any_order():
    x, y = torch.ones(2), torch.full((2,), 5.0)
    assert poptorch.inferenceModel(Optional())(x).tolist() == [2, 2]
    assert poptorch.inferenceModel(Optional())(x, y).tolist() == [7, 7]
    assert poptorch.inferenceModel(Optional())(y=y, x=x).tolist() == [7, 7]
    assert poptorch.inferenceModel(Optional())(x, scale=3.0).tolist() == [3, 3]


def test_defaults_are_part_of_the_program():
    executor = poptorch.inferenceModel(Optional())
    executor(torch.ones(2))
    executor(torch.ones(2), None, 2.0)
    with raises(poptorch.Error, match="expected 2.0 but got 3.0"):
        executor(torch.ones(2), None, 3.0)
    with raises(poptorch.Error, match="expected .*NoneType.* but got .*Tensor"):
        executor(torch.ones(2), torch.ones(2))


def test_keyword_only_and_free_arguments_are_bound_in_any_order():
    class Free(torch.nn.Module):
        def forward(self, x, *more, factor=2.0, **named):
            return x * factor + sum(more) + named.get("a", 0) - named.get("b", 0)

    executor = poptorch.inferenceModel(Free())
    one, two, three = (torch.full((2,), value) for value in (1.0, 2.0, 3.0))
    assert executor(one, two, b=one, a=three).tolist() == [6, 6]
    assert executor(one, two, a=three, b=one).tolist() == [6, 6]
    with raises(poptorch.Error, match="Missing arguments: b"):
        executor(one, two, a=three)
    with raises(poptorch.Error, match="positional arguments mismatch: expected 2 arguments but got 1"):
        executor(one, a=three, b=one)


@pytest.mark.parametrize("iterations", [1, 8])
def test_dictionaries_are_fed_by_their_keys_in_the_order_that_was_compiled(iterations):
    def first_over_second(named):
        first, second = named["x"].values()
        return first / second, named["z"][0]["w"] - named["z"][0]["v"]

    executor = infer(first_over_second, poptorch.Options().deviceIterations(iterations))
    four, two = torch.full((iterations,), 4.0), torch.full((iterations,), 2.0)
    expected = [[2.0] * iterations] * 2
    inputs = {"x": {"a": four, "b": two}, "z": [{"w": four, "v": two}]}
    assert [part.tolist() for part in executor(inputs)] == expected
    inputs = {"z": [{"v": two, "w": four}], "x": {"b": two, "a": four}}
    assert [part.tolist() for part in executor(inputs)] == expected


@pytest.mark.parametrize("call", [lambda e, x: e(x, scale=x), lambda e, x: e(scale=x, x=x), lambda e, x: e(x)])
def test_keyword_only_parameters_need_free_arguments_before_them(call):
    class KeywordOnly(torch.nn.Module):
        def forward(self, x, *, scale=2.0):
            return x * scale

    class Free(torch.nn.Module):
        def forward(self, x, *more, scale=2.0):
            return x * scale

    x = torch.full((1,), 2.0)
    with raises(TypeError, match="PopTorch passes scale to forward by position"):
        call(poptorch.inferenceModel(KeywordOnly()), x)
    assert call(poptorch.inferenceModel(Free()), x).tolist() == [4]


@pytest.mark.parametrize("compiled, given", [(torch.Tensor, torch.nn.Parameter), (torch.nn.Parameter, torch.Tensor)])
@pytest.mark.parametrize("container", [lambda x: x, lambda x: (x,), lambda x: {"x": x}], ids=["", "tuple", "dict"])
def test_classes_of_tensors_are_part_of_the_program(compiled, given, container):
    def value(kind):
        x = torch.ones(2)
        return container(x if kind is torch.Tensor else kind(x, requires_grad=False))

    executor = infer(lambda x: torch.zeros(1))
    executor(value(compiled))
    executor(value(compiled))
    with raises(poptorch.Error, match="Type mismatch for .*expected <class 'torch.*> but got <class 'torch"):
        executor(value(given))


def test_compiling_again_has_no_effect_but_checks_the_arguments():
    executor = poptorch.inferenceModel(Optional())
    x = torch.ones(2)
    executor.compile(x)
    executor.compile(torch.ones(3))
    assert executor(x).tolist() == [2, 2]
    with raises(AssertionError, match="Too many arguments provided"):
        executor.compile(x, x, 1.0, 4)
    with raises(poptorch.Error, match="Mandatory parameter x missing"):
        executor.compile()


def test_wrong_arguments_are_refused_like_a_function_call():
    executor = poptorch.inferenceModel(Optional())
    x = torch.ones(2)
    with raises(AssertionError, match="Too many arguments provided"):
        executor(x, x, 1.0, 4)
    with raises(AssertionError, match=r"Invalid parameter z, expected one of \['x', 'y', 'scale'\]"):
        executor(x, z=1)
    with raises(AssertionError, match="Parameter x was passed more than once"):
        executor(x, x=x)
    with raises(poptorch.Error, match="Mandatory parameter x missing"):
        executor(y=x)


@pytest.mark.parametrize(
    "first, second, message",
    [
        (torch.ones(2), torch.ones(3), r"expected torch.Size\(\[2\]\) but got torch.Size\(\[3\]\)"),
        (torch.ones(2), torch.ones(2).half(), "expected torch.float32 but got torch.float16"),
        ((torch.ones(2),), [torch.ones(2)], "expected .*tuple.* but got .*list"),
        ((torch.ones(2),), (torch.ones(2), torch.ones(2)), "Length mismatch for .*expected 1 elements but got 2"),
        ({"a": torch.ones(2)}, {"b": torch.ones(2)}, "Unexpected arguments: b. Missing arguments: a"),
        (numpy.ones(1), numpy.zeros(1), "expected .*1.* but got .*0"),
        (torch.ones(2), 3, "expected .*Tensor.* but got .*int"),
        (torch.ones(2), None, "expected .*Tensor.* but got .*NoneType"),
    ],
)
def test_later_inputs_unlike_the_compiled_ones_are_refused(first, second, message):
    executor = infer(lambda value: torch.zeros(1) + 1)
    executor(first)
    with raises(poptorch.Error, match=message) as refusal:
        executor(second)
    assert "destroy()" in str(refusal.value)
    executor.destroy()
    executor(second)


@pytest.mark.parametrize("rows, iterations, replicas, group", [(3, 2, 1, 1), (4, 1, 3, 1), (5, 2, 4, 2)])
def test_a_batch_that_cannot_be_cut_evenly_is_refused_when_compiling(rows, iterations, replicas, group):
    options = poptorch.Options().deviceIterations(iterations).replicationFactor(replicas)
    options.inputReplicaGrouping(group, poptorch.CommGroupType.Consecutive)
    with raises(AssertionError, match="Invalid batch dimension"):
        infer(lambda x: x + 1, options)(torch.ones(rows, 2))


def test_a_scalar_input_counts_as_one_row():
    assert infer(lambda x: x + 1)(torch.tensor(1.0)).item() == 2
    with raises(AssertionError, match="Invalid batch dimension"):
        infer(lambda x: x + 1, poptorch.Options().deviceIterations(2))(torch.tensor(1.0))


def test_empty_tensors_are_refused():
    with raises(poptorch.Error, match=r"Zero-sized tensors are unsupported \(Got shape \[0, 2\]\)"):
        infer(lambda x: x + 1)(torch.ones(0, 2))


@pytest.mark.parametrize(
    "sent, seen",
    [
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
        (torch.uint8, torch.uint8),
        (torch.int32, torch.int32),
        (torch.bool, torch.bool),
    ],
)
def test_inputs_arrive_in_the_dtypes_of_a_device(sent, seen):
    dtypes = []

    def forward(x):
        dtypes.append(x.dtype)
        return x.float() + 1

    infer(forward)(torch.ones(2).to(sent))
    assert set(dtypes) == {seen}


def test_integers_beyond_32_bits_wrap():
    assert infer(lambda x: x // 2)(torch.tensor([2**31, -(2**31) - 1, 7])).tolist() == [-(2**30), 2**30 - 1, 3]


def test_unusual_inputs_are_converted_with_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(arguments, "_warned", set())
    strided, wanting = torch.arange(6.0).view(2, 3).t(), torch.ones(2, requires_grad=True)
    with caplog.at_level(logging.WARNING, "poptorch::python"):
        assert torch.equal(infer(lambda x: x.view(-1) + 1)(strided), strided.reshape(-1) + 1)
        for _ in range(2):
            assert not infer(lambda x: x + 1)(wanting).requires_grad
    assert wanting.grad is None
    assert "not contiguous" in caplog.text and caplog.text.count("requires_grad=True") == 2  # at every compilation


def test_an_input_written_in_place_changes_on_the_host():
    data = torch.ones(2)
    infer(lambda x: x.add_(1) * 2).compile(data)
    assert data.tolist() == [1, 1]
    assert infer(lambda x: x.add_(1) * 2)(data).tolist() == [4, 4]
    assert data.tolist() == [2, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_an_input_that_is_converted_and_written_in_place_changes_on_the_host(dtype):
    data = torch.ones(4, dtype=dtype)
    infer(lambda x: x.add_(1), poptorch.Options().deviceIterations(2))(data)
    assert data.dtype == dtype and data.tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("iterations", [1, 3])
def test_an_input_that_training_writes_to_has_no_gradient_on_the_host(iterations):
    class Adding(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            x += self.weight
            return poptorch.identity_loss(x * 1, "sum")

    model, data = Adding(), torch.zeros(2 * iterations)
    executor = poptorch.trainingModel(
        model, poptorch.Options().deviceIterations(iterations), poptorch.optim.SGD(model.parameters(), lr=0.0)
    )
    for count in (1, 2):
        executor(data)
        assert data.tolist() == [count] * 2 * iterations and not data.requires_grad


def test_arrays_of_several_elements_cannot_be_compared_with_the_compiled_ones():
    executor = infer(lambda value: torch.zeros(1) + 1)
    executor.compile(numpy.ones(2))
    with raises(ValueError, match="cannot be compared.*pass a tensor"):
        executor(numpy.ones(2))


def test_registered_types_are_inputs_and_outputs():
    class Boxed:
        def __init__(self, tensor):
            self.tensor = tensor

    class Parser(poptorch.ICustomArgParser):
        def yieldTensors(self, struct):
            yield struct.tensor

        def reconstruct(self, original_structure, tensor_iterator):
            return Boxed(next(tensor_iterator))

    poptorch.registerCustomArgParser(Boxed, Parser())
    try:
        options = poptorch.Options().deviceIterations(2)
        result = infer(lambda box: Boxed(box.tensor + 1), options)(Boxed(torch.zeros(4)))
        assert isinstance(result, Boxed) and result.tensor.tolist() == [1, 1, 1, 1]
    finally:
        poptorch.registerCustomArgParser(Boxed, None)


@needs_core("it shares inputs among replicas")
def test_replicas_of_a_group_share_their_rows():
    options = poptorch.Options().replicationFactor(4)
    options.inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)
    assert infer(lambda x: x + 0, options)(torch.tensor([1.0, 2.0])).tolist() == [1, 1, 2, 2]
    options = poptorch.Options().replicationFactor(4)
    options.inputReplicaGrouping(2, poptorch.CommGroupType.Orthogonal)
    assert infer(lambda x: x + 0, options)(torch.tensor([1.0, 2.0])).tolist() == [1, 2, 1, 2]
