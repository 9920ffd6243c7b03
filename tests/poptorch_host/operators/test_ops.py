# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Operations: their arithmetic, their refusals, and what they tell an execution."""

import collections
import itertools
import math

import pytest
import torch
from poptorch_host import context, custom_ops

from tests.backend import host_only, needs_core, poptorch, raises

from ..models import Function
from ..recorder import recording

Point = collections.namedtuple("Point", "x y")


# Losses and checkpoints.


@host_only("what operations tell its executions")
@pytest.mark.parametrize("reduction, expected", [("sum", 6.0), ("mean", 2.0), ("none", [1.0, 2.0, 3.0])])
def test_identity_loss_reduces_and_marks_the_result(reduction, expected):
    x = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(poptorch.identity_loss(x, reduction), torch.tensor(expected))
    with recording() as events:
        loss = poptorch.identity_loss(x, reduction)
    assert [(event[0], event[2]) for event in events] == [("loss", reduction)] and events[0][1] is loss
    assert poptorch.identity_loss(x, "none") is not x


def test_identity_loss_refuses_an_unknown_reduction():
    with raises(AssertionError, match="Unsupported reduction type! identity_loss"):
        poptorch.identity_loss(torch.ones(2), "max")


@host_only("what operations tell its executions")
def test_recomputation_checkpoint_returns_what_it_got():
    a, b = torch.ones(1), torch.zeros(2)
    with recording() as events:
        assert poptorch.recomputationCheckpoint(a) is a
        assert poptorch.recomputationCheckpoint(a, b) == (a, b)
        assert poptorch.recomputationCheckpoint([a, b]) == [a, b]
        assert poptorch.recomputationCheckpoint((a,)) == (a,)
    assert [len(event[1]) for event in events] == [1, 2, 2, 1]


@pytest.mark.parametrize("arguments", [["text"], [torch.ones(1), 3], [[torch.ones(1), None]], [{"a": torch.ones(1)}]])
def test_recomputation_checkpoint_refuses_what_is_no_tensor(arguments):
    with raises(ValueError, match="recomputationCheckpoint"):
        poptorch.recomputationCheckpoint(*arguments)


def test_recomputation_checkpoint_makes_containers_as_their_constructor_does():
    executor = poptorch.inferenceModel(Function(lambda x: poptorch.recomputationCheckpoint([x])))
    assert [row.tolist() for row in executor(torch.ones(2, 1))] == [[1], [1]]
    with raises(TypeError):
        poptorch.recomputationCheckpoint(Point(torch.ones(1), torch.ones(1)))


# Hints.


@host_only("what operations tell its executions")
@pytest.mark.parametrize(
    "hint, arguments",
    [
        (poptorch.nop, []),
        (poptorch.set_available_memory, [0.3]),
        (poptorch.ipu_print_tensor, []),
        (poptorch.set_overlap_for_input, [poptorch.OverlapMode.OverlapAccumulationLoop]),
        (poptorch.set_overlap_for_output, [poptorch.OverlapMode.NoOverlap]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_hint_keeps_values_and_gradient_and_tells_the_execution(hint, arguments):
    x = torch.randn(2, 3, requires_grad=True)
    with recording() as events:
        result = hint(x, *arguments)
    ((name, info),) = events
    assert name == hint.__name__ and info["tensor"] is x and info["result"] is result and result is not x
    result.sum().backward()
    assert torch.equal(result, x) and torch.equal(x.grad, torch.ones(2, 3))


@pytest.mark.parametrize(
    "hint", [poptorch.nop, poptorch.ipu_print_tensor, lambda x: poptorch.set_available_memory(x, 0.5)]
)
def test_hint_refuses_what_is_no_tensor(hint):
    with raises(poptorch.Error, match="tensor"):
        hint([1, 2])


@host_only("what operations tell its executions")
def test_overlap_reaches_into_nested_values():
    a = torch.ones(1)
    value = {"list": [a, None], "point": Point(a, 2)}
    with recording() as events:
        result = poptorch.set_overlap_for_input(value, poptorch.OverlapMode.OverlapDeviceIterationLoop)
    assert len(events) == 2 and isinstance(result["point"], Point) and result["list"][1] is None
    assert torch.equal(result["point"].x, a) and result["point"].x is not a
    with raises(AssertionError, match="OverlapMode"):
        poptorch.set_overlap_for_output(a, "no_overlap")


@needs_core("it prints")
def test_printed_tensor_and_its_gradient_go_to_standard_error(capsys):
    x = torch.tensor([[1.0, 2.5], [3.0, -4.0]], requires_grad=True)
    poptorch.ipu_print_tensor(x, "x").sum().backward()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "x: ((1, 2.5),\n (3, -4))\nx_gradient: ((1, 1),\n (1, 1))\n"
    poptorch.ipu_print_tensor(x, "x", print_gradient=False).sum().backward()
    assert "gradient" not in capsys.readouterr().err


@host_only("what operations tell its executions")
def test_nothing_is_printed_while_a_model_is_compiled(capsys):
    execution = context.Execution()
    execution.compiling = True
    with context.activate(execution):
        poptorch.ipu_print_tensor(torch.ones(2, requires_grad=True)).sum().backward()
    assert capsys.readouterr().err == ""


@needs_core("it prints")
@pytest.mark.parametrize(
    "style, expected",
    [
        ({"digits": 2, "float_format": "fixed"}, "(0.00, 1.00, 2.00, 3.00, 4.00, 5.00)"),
        ({"digits": 1, "float_format": "scientific"}, "(0.0e+00, 1.0e+00, 2.0e+00, 3.0e+00, 4.0e+00, 5.0e+00)"),
        ({"float_format": "none"}, "(0.0, 1.0, 2.0, 3.0, 4.0, 5.0)"),
        ({"summarise_threshold": 4, "edge_items": 2}, "(0, 1, ..., 4, 5)"),
        ({"separator": " ", "open_bracket": "[", "close_bracket": "]"}, "[0 1 2 3 4 5]"),
        ({"max_line_width": 9}, "(0, 1, 2, \n 3, 4, 5)"),
    ],
)
def test_printed_text_follows_its_style(style, expected, capsys):
    poptorch.ipu_print_tensor(torch.arange(6.0), "t", **style)
    assert capsys.readouterr().err == f"t: {expected}\n"


@needs_core("it prints")
def test_printed_text_of_other_kinds(capsys):
    poptorch.ipu_print_tensor(torch.tensor(True))
    poptorch.ipu_print_tensor(torch.tensor([[1], [2]], dtype=torch.int32))
    assert capsys.readouterr().err == "print_tensor: True\nprint_tensor: ((1),\n (2))\n"
    with raises(AssertionError, match="float_format"):
        poptorch.ipu_print_tensor(torch.ones(1), float_format="hex")


@host_only("what operations tell its executions")
def test_scopes_and_attributes_are_told_and_checked():
    with recording() as events:
        with poptorch.NameScope("part"), poptorch.Attribute(__note="x"):
            pass
    assert [event[0] for event in events] == ["name_scope", "attribute", "attribute_end", "name_scope_end"]
    assert events[0][1] == {"scope": "part"} and events[1][1] == {"attributes": {"__note": "x"}}
    with raises(AssertionError, match="string"):
        poptorch.NameScope(3)


@host_only("what operations tell its executions")
def test_multi_convolution_stores_its_settings_and_computes_as_without():
    settings = poptorch.MultiConv().availableMemoryProportions([0.5, 0.25]).partialsTypes(torch.half)
    settings.enableConvDithering([True, False]).planType(poptorch.MultiConvPlanType.Serial)
    settings.perConvReservedTiles(120).cycleBackOff(0.3)
    conv, x = torch.nn.Conv2d(1, 2, 3), torch.randn(1, 1, 5, 5)
    with recording() as events:
        with settings:
            inside = conv(x)
    assert torch.equal(inside, conv(x)) and [event[0] for event in events] == ["multi_conv", "multi_conv_end"]
    assert events[0][1]["options"] == {
        "availableMemoryProportions": [0.5, 0.25],
        "partialsTypes": torch.half,
        "enableConvDithering": [True, False],
        "planType": poptorch.MultiConvPlanType.Serial,
        "perConvReservedTiles": 120,
        "cycleBackOff": 0.3,
    }


@pytest.mark.parametrize(
    "setter, value, error",
    [
        ("availableMemoryProportions", "0.5", AssertionError),
        ("availableMemoryProportions", [0.5, 1], AssertionError),
        ("partialsTypes", torch.int32, ValueError),
        ("partialsTypes", [torch.half, "half"], ValueError),
        ("enableConvDithering", [1], ValueError),
        ("planType", 0, AssertionError),
        ("perConvReservedTiles", 1.5, AssertionError),
        ("perConvReservedTiles", [1, 2], AssertionError),
        ("cycleBackOff", "0.1", AssertionError),
    ],
)
def test_multi_convolution_refuses_settings_of_another_kind(setter, value, error):
    with raises(error):
        getattr(poptorch.MultiConv(), setter)(value)


# Products, slices, loops, branches.


@pytest.mark.parametrize("mode", list(poptorch.MatMulSerializationMode))
def test_serialised_product_is_the_product(mode):
    lhs, rhs = torch.randn(4, 6), torch.randn(6, 2)
    with recording():
        assert torch.equal(poptorch.serializedMatMul(lhs, rhs, mode, 2, keep_precision=True), lhs @ rhs)


@needs_core("it refuses arguments")
def test_serialised_product_refuses_other_types_and_parts_that_do_not_fit():
    lhs, rhs = torch.randn(4, 6), torch.randn(6, 2)
    reducing = poptorch.MatMulSerializationMode.ReducingDim
    for arguments in (
        (lhs.tolist(), rhs, reducing),
        (lhs, rhs, "reducing_dim"),
        (lhs, rhs, reducing, 2.0),
        (lhs, rhs, reducing, 2, 1),
    ):
        with raises(AssertionError):
            poptorch.serializedMatMul(*arguments)
    with recording(), raises(poptorch.Error, match="6 reducing_dim into 4"):
        poptorch.serializedMatMul(lhs, rhs, reducing, 4)


@pytest.mark.parametrize("dim, start, size, step", list(itertools.product([0, 1, -1], [0, 1, 3], [1, 2], [1, 2])))
def test_dynamic_slice_is_a_slice(dim, start, size, step):
    x = torch.randn(5, 6, 7)
    sliced = poptorch.dynamic_slice(x, dim, torch.tensor([start], dtype=torch.int32), size, step)
    index = [slice(None)] * 3
    index[dim] = slice(start, start + size, step)
    assert torch.equal(sliced, x[tuple(index)])


@pytest.mark.parametrize("dim, start", list(itertools.product([0, 1, -2], [0, 2, 3])))
def test_dynamic_update_replaces_a_slice_and_nothing_else(dim, start):
    x = torch.randn(5, 6, requires_grad=True)
    shape = list(x.shape)
    shape[dim] = 2
    src = torch.randn(shape, requires_grad=True)
    before = x.detach().clone()
    updated = poptorch.dynamic_update(x, src, dim, torch.tensor(start), 2)
    updated.sum().backward()
    expected, index = before.clone(), [slice(None)] * 2
    index[dim] = slice(start, start + 2)
    expected[tuple(index)] = src.detach()
    assert torch.equal(updated, expected) and torch.equal(x, before)
    assert torch.equal(src.grad, torch.ones(shape)) and x.grad.sum() == x.numel() - src.numel()


@host_only("what operations tell its executions")
def test_dynamic_operations_run_as_one_operation_of_the_device():
    with recording() as events:
        poptorch.dynamic_slice(torch.ones(4), 0, torch.tensor(1), 2, 1)
        poptorch.dynamic_update(torch.ones(4), torch.ones(2), 0, torch.tensor(1), 2)
    assert [event[0] for event in events] == ["dynamic_slice", "dynamic_update"]


@needs_core("the compiler refuses operations and arguments")
@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1, 2], 0, torch.tensor(0), 1, 1), "expected a tensor"),
        ((torch.ones(3), 0.0, torch.tensor(0), 1, 1), "dim"),
        ((torch.ones(3), 0, 1, 1, 1), "start must be a tensor"),
        ((torch.ones(3), 0, torch.tensor(0.5), 1, 1), "integer"),
        ((torch.ones(3), 0, torch.tensor([0, 1]), 1, 1), "one element"),
        ((torch.ones(3), 0, torch.tensor(0), 0, 1), "size"),
        ((torch.ones(3), 0, torch.tensor(0), 1, None), "step"),
    ],
)
def test_dynamic_slice_refuses_other_arguments(arguments, message):
    with raises(poptorch.Error, match=message):
        poptorch.dynamic_slice(*arguments)


@needs_core("the compiler refuses operations and arguments")
@pytest.mark.parametrize(
    "src, message",
    [([1.0], "tensor"), (torch.ones(1, 1), "rank"), (torch.ones(1).half(), "float16"), (torch.ones(2), "long")],
)
def test_dynamic_update_refuses_a_source_that_does_not_fit(src, message):
    with raises(poptorch.Error, match=message):
        poptorch.dynamic_update(torch.ones(3), src, 0, torch.tensor(0), 1)


@needs_core("it computes the operation")
def test_loop_feeds_each_round_with_the_last_ones_results():
    def body(x, y):
        x += 1
        return x, y * 2

    x, y = torch.zeros(2), torch.ones(2)
    results = poptorch.for_loop(5, body, [x, y])
    assert [value.tolist() for value in results] == [[5, 5], [32, 32]] and x.tolist() == [0, 0]
    assert poptorch.for_loop(3, lambda x: x + 1, [x])[0].tolist() == [3, 3]


@needs_core("the compiler refuses operations and arguments")
def test_loop_refuses_inputs_and_bodies_that_do_not_fit():
    for inputs in (torch.ones(1), (torch.ones(1),), [torch.ones(1), 1]):
        with raises(ValueError, match="for_loop"):
            poptorch.for_loop(2, lambda x: x, inputs)
    for body in (lambda x: (x, x), lambda x: x.double(), lambda x: torch.cat([x, x])):
        with raises(poptorch.Error, match="for_loop"):
            poptorch.for_loop(2, body, [torch.ones(1)])


@pytest.mark.parametrize("condition", [True, False])
def test_condition_chooses_between_two_results(condition):
    x, y = torch.tensor([1.0]), torch.tensor([2.0])
    result = poptorch.cond(torch.tensor([condition]), lambda a, b: a + b, [x, y], lambda a: [a * 10], [x])
    assert [value.tolist() for value in result] == [[3.0 if condition else 10.0]]


@needs_core("the compiler refuses operations and arguments")
def test_condition_refuses_inputs_and_branches_that_do_not_fit():
    x = torch.ones(1)
    with raises(ValueError, match="cond"):
        poptorch.cond(torch.tensor(True), lambda a: a, (x,), lambda a: a, [x])
    with raises(poptorch.Error, match="branches"):
        poptorch.cond(torch.tensor(True), lambda a: a, [x], lambda a: (a, a), [x])


@host_only("what operations tell its executions")
def test_host_function_is_called_and_told():
    call = poptorch.CPU(lambda x, y=1: x + y, "adder")
    with recording() as events:
        assert call(torch.tensor(2)) == 3
    assert events == [("cpu", {"id": "adder"})] and call(torch.tensor(2), y=5) == 7
    call.inputs = (torch.tensor(1),)
    call.execute()
    assert call.outputs == 2 and call.registerPersistentData() is None


@needs_core("it computes the operation")
@pytest.mark.parametrize(
    "read",
    [lambda x: x * x.sum().item(), lambda x: torch.tensor(x.tolist()), lambda x: torch.from_numpy(x.numpy() * 2)],
)
def test_host_function_of_a_compiled_model_may_read_values(read):
    call, x = poptorch.CPU(read, "reader"), torch.ones(3)
    assert torch.equal(poptorch.inferenceModel(Function(lambda x: call(x) + 1))(x), read(x) + 1)


def test_beam_search_runs_in_a_compiled_model():
    model = Function(lambda x, lengths: poptorch.ctc_beam_search_decoder(x, lengths, beam_width=3))
    log_probs, lengths = torch.zeros(4, 2, 3).log_softmax(2), torch.tensor([4, 3], dtype=torch.int32)
    for result, expected in zip(poptorch.inferenceModel(model)(log_probs, lengths), model(log_probs, lengths)):
        assert torch.equal(result, expected)


# Operations in device code.


def test_custom_operation_outside_a_model_gives_zeros():
    example = torch.ones(2, 3, dtype=torch.half)
    (result,) = poptorch.custom_op(
        [torch.ones(1)], "Cube", "test", 1, example_outputs=[example], attributes={"a": [1, 2]}
    )
    assert torch.equal(result, torch.zeros(2, 3, dtype=torch.half))


@host_only("what operations tell its executions")
def test_custom_operation_in_a_model_needs_a_host_function():
    with recording(), raises(poptorch.Error, match=r"test\.Unknown"):
        poptorch.custom_op([torch.ones(1)], "Unknown", "test", 1, example_outputs=[torch.ones(1)])

    @custom_ops.implement("Power", "test")
    def power(inputs, attributes):
        return [inputs[0] ** attributes["exponent"]]

    with recording() as events:
        result = poptorch.custom_op([torch.tensor(2.0)], "Power", "test", 1, [torch.ones(())], {"exponent": 3})
    assert result == [torch.tensor(8.0)] and events == [("custom_op", {"op": "Power", "domain": "test"})]


@host_only("functions that stand for custom operations")
def test_a_file_can_say_what_stands_for_the_operations_of_a_program_that_does_not(tmp_path, monkeypatch):
    file = tmp_path / "operations.py"
    monkeypatch.setenv("POPTORCH_HOST_OPERATIONS", str(file))

    def twice():
        with recording():
            return poptorch.custom_op([torch.tensor(2.0)], "Twice", "test.file", 1, [torch.ones(())])

    with raises(poptorch.Error, match="which does not exist"):
        twice()
    file.write_text(
        "from poptorch_host import custom_ops\n"
        "custom_ops.implement('Twice', 'test.file')(lambda inputs, attributes: [2 * inputs[0]])\n"
    )
    assert twice() == [torch.tensor(4.0)]


@pytest.mark.parametrize(
    "attributes", [{1: 2}, {"naïve": 1}, {"a": "naïve"}, {"a": None}, {"a": [1, "b"]}, {"a": ["ï"]}, {"a": {"b": 1}}]
)
def test_custom_operation_refuses_attributes_of_other_kinds(attributes):
    with raises(ValueError, match="attribute"):
        poptorch.custom_op([], "Cube", "test", 1, example_outputs=[], attributes=attributes)


# Searches.


@needs_core("it computes the operation")
def test_farthest_points_are_taken_in_each_group():
    points = torch.tensor([[0.0], [1.0], [9.0], [10.0], [0.0], [4.0], [5.0]])
    assert poptorch.fps(points, [0, 4, 7], ratio=0.5).tolist() == [0, 3, 4, 6]
    assert poptorch.fps(points, [0, 7], ratio=3 / 7).tolist() == [0, 3, 6]
    begun = {int(poptorch.fps(points, [0, 7], 1 / 7, random_start=True)) for _ in range(100)}
    assert len(begun) > 1
    with raises(poptorch.Error, match="fps"):
        poptorch.fps(points[:, 0], [0, 7])


@needs_core("it computes the operation")
def test_nearest_points_are_found_in_the_same_group():
    x, y = torch.randn(20, 3), torch.randn(15, 3)
    everywhere = (x[:, None] - y[None]).pow(2).sum(-1).argmin(1)
    assert torch.equal(poptorch.nearest(x, y), everywhere)
    groups_x, groups_y = [0] * 12 + [1] * 8, torch.tensor([0] * 5 + [1] * 10)
    expected = torch.cat([poptorch.nearest(x[:12], y[:5]), poptorch.nearest(x[12:], y[5:]) + 5])
    assert torch.equal(poptorch.nearest(x, y, groups_x, groups_y), expected)
    assert poptorch.nearest(torch.tensor([0.0, 9.0]), torch.tensor([8.0, 1.0])).tolist() == [1, 0]
    for arguments in ((x, y[:, :2]), (x, y, [0], groups_y)):
        with raises(poptorch.Error, match="nearest"):
            poptorch.nearest(*arguments)


def brute_force_texts(log_probs, blank):
    """The log probability of every text that some path of classes spells, by going through all paths."""
    steps, classes = log_probs.shape
    totals = collections.defaultdict(float)
    for path in itertools.product(range(classes), repeat=steps):
        text = tuple(label for label, _ in itertools.groupby(path) if label != blank)
        totals[text] += math.exp(sum(float(log_probs[t, label]) for t, label in enumerate(path)))
    return {text: math.log(total) for text, total in totals.items()}


@needs_core("it computes the operation")
@pytest.mark.parametrize("blank", [0, 2])
def test_beam_search_finds_the_likeliest_texts(blank):
    torch.manual_seed(3)
    log_probs, lengths = torch.randn(4, 2, 3).log_softmax(2), torch.tensor([4, 3])
    scores, sizes, labels = poptorch.ctc_beam_search_decoder(log_probs, lengths, blank, beam_width=50, top_paths=3)
    assert scores.shape == sizes.shape == (2, 3) and labels.shape == (2, 3, 4)
    for sample, length in enumerate(lengths.tolist()):
        texts = brute_force_texts(log_probs[:length, sample], blank)
        best = sorted(texts, key=texts.get, reverse=True)[:3]
        for rank, text in enumerate(best):
            assert tuple(labels[sample, rank, : sizes[sample, rank]].tolist()) == text
            assert scores[sample, rank].item() == pytest.approx(texts[text], abs=1e-5)


@needs_core("the compiler refuses operations and arguments")
def test_beam_search_refuses_shapes_and_widths_that_do_not_fit():
    log_probs, lengths = torch.zeros(4, 2, 3), torch.tensor([4, 4])
    for arguments in (
        (log_probs[0], lengths),
        (log_probs, lengths[:1]),
        (log_probs, lengths, 3),
        (log_probs, lengths, 0, 2, 3),
    ):
        with raises(poptorch.Error, match="ctc_beam_search_decoder"):
            poptorch.ctc_beam_search_decoder(*arguments)


@host_only("what operations tell its executions")
def test_model_runs_on_an_ipu_only_inside_its_own_forward():
    assert not poptorch.isRunningOnIpu()
    with recording():
        assert poptorch.isRunningOnIpu()
    assert not poptorch.isRunningOnIpu()


@needs_core("it counts convolutions")
@pytest.mark.parametrize(
    "settings, convolutions, nested, message",
    [
        (poptorch.MultiConv().availableMemoryProportions([0.5, 0.2]).partialsTypes(torch.half), 2, False, None),
        (poptorch.MultiConv().enableConvDithering([True, False, True]), 2, False, "3 values for 2 convolutions"),
        (poptorch.MultiConv(), 0, False, "no convolution inside"),
        (poptorch.MultiConv(), 1, True, "inside another"),
    ],
)
def test_compiled_multi_convolution_has_as_many_settings_as_convolutions(settings, convolutions, nested, message):
    layers = torch.nn.ModuleList(torch.nn.Conv2d(1, 1, 1) for _ in range(convolutions))

    def forward(x):
        with settings:
            y = sum([layer(x) for layer in layers], x + 1)
            if nested:
                with poptorch.MultiConv():
                    y = layers[0](y)
        return y

    model = Function(forward)
    model.layers = layers
    x = torch.ones(1, 1, 2, 2)
    if message is None:
        assert torch.allclose(poptorch.inferenceModel(model)(x), forward(x))
    else:
        with raises(poptorch.Error, match=message):
            poptorch.inferenceModel(model)(x)
