# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""torch.ops.poptorch: the operations that programs call by the names under which PopTorch registers them."""

import pytest
import torch

from tests.backend import host_only, needs_core, poptorch

from .models import Classifier, Function, accumulating, classifier_batch, trained
from .recorder import recording

names = torch.ops.poptorch
REGISTERED = """
begin_ipu_block begin_multi_conv call_cpu_op clear_attribute ctc_beam_search_decoder custom_operation dynamic_slice
dynamic_update end_cpu_op end_for_loop end_if_block end_ipu_block end_multi_conv fps identity_loss internal_cast
ipu_print_tensor nearest nearest_batch_list nop optimizer_group pop_name_scope push_name_scope recomputation_checkpoint
set_attribute set_available_memory set_matmul_serialization set_overlap_for_input set_overlap_for_output
start_else_block start_for_loop start_if_block
""".split()


class Scoped(Classifier):
    """Names its layers as programs do, from hooks, and computes its activation in float32."""

    def __init__(self):
        super().__init__()
        for name, part in self.named_modules():
            part.register_forward_pre_hook(lambda *_, name=name: names.push_name_scope(name))
            part.register_forward_hook(lambda *_: names.pop_name_scope())

    def forward(self, x, *labels):
        return super().forward(names.internal_cast(names.internal_cast(x, "FLOAT16"), "FLOAT"), *labels)


def test_a_model_that_names_its_parts_and_casts_inside_trains():
    x, labels = classifier_batch(4)
    executor = trained(Scoped(), accumulating(2).outputMode(poptorch.OutputMode.All))
    losses = [executor(x, labels)[1].mean().item() for _ in range(4)]
    assert losses[-1] < losses[0]


@host_only("what operations tell its executions")
def test_scopes_and_casts_are_told_to_the_compiler():
    with recording() as events:
        names.push_name_scope("attention")
        cast = names.internal_cast(torch.tensor([1 + 2**-12]), "FLOAT16")
        names.pop_name_scope()
        with pytest.raises(poptorch.Error, match="'HALF'"):
            names.internal_cast(cast, "HALF")
    assert [event[0] for event in events] == ["name_scope", "name_scope_end"]
    assert cast.dtype == torch.half and cast.item() == 1


@needs_core("it registers the operations")
def test_casts_outside_a_compiled_model_keep_halves_in_float32():
    assert names.internal_cast(torch.ones(1).half(), "FLOAT16").dtype == torch.float32
    assert names.internal_cast(torch.ones(1), "INT8").dtype == torch.float32


@host_only("what operations tell its executions")
def test_operations_do_what_the_public_functions_do():
    x = torch.tensor([[1.0, 3.0]])
    with recording() as events:
        assert names.identity_loss(x, 1).item() == 2 and torch.equal(names.recomputation_checkpoint(x), x)
        for hint in (
            names.nop(x),
            names.set_available_memory(x, 0.5),
            names.set_matmul_serialization(x, "input_channels", 2, True),
            names.ipu_print_tensor(x, "x", 0, 1000, 3, 80, 4, 1, ", ", "(", ")"),
            names.set_overlap_for_input(x, poptorch.OverlapMode.NoOverlap.value),
            names.dynamic_slice(x, 0, torch.tensor([0]), 1, 1),
        ):
            assert torch.equal(hint, x)
    assert {"loss", "checkpoint", "set_overlap_for_input", "dynamic_slice"} <= {event[0] for event in events}
    assert names.nearest_batch_list(torch.zeros(1, 1), torch.ones(2, 1), [0], [0, 0]).tolist() in ([0], [0, 0])


def infer(function, *inputs, options=None):
    return poptorch.inferenceModel(Function(function), options)(*inputs)


@pytest.mark.parametrize("name", REGISTERED)
def test_every_operation_that_poptorch_registers_is_there(name):
    assert getattr(names, name).default._schema.name == f"poptorch::{name}"


@host_only("the record of a compilation")
def test_name_scopes_name_what_runs_inside():
    def scoped(x):
        names.push_name_scope("outer")
        x = x + 1
        names.pop_name_scope()
        return x * 2

    executor = poptorch.inferenceModel(Function(scoped))
    assert executor(torch.ones(2)).tolist() == [4, 4]
    run = [name for stage in executor.compiled.stages for name in stage.run]
    assert "outer/aten::add" in run and "aten::mul" in run


@needs_core("it registers the operations")
@pytest.mark.parametrize(
    "name, dtype", [("FLOAT16", torch.float16), ("FLOAT", torch.float32), ("INT32", torch.int32), ("BOOL", torch.bool)]
)
def test_casts_change_the_type_on_a_device_and_not_outside(name, dtype):
    half = torch.tensor([1.5, 0.0]).half()
    assert torch.equal(infer(lambda x: names.internal_cast(x, name), half), half.to(dtype))
    assert names.internal_cast(torch.ones(2), name).dtype is torch.float32
    with pytest.raises(poptorch.Error, match="unknown type 'FLOAT8'"):
        infer(lambda x: names.internal_cast(x, "FLOAT8"), half)


@needs_core("it registers the operations")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: names.nop(x),
        lambda x: names.set_available_memory(x * 1, 0.3),
        lambda x: names.set_matmul_serialization(x, "output_channels", 2, False),
        lambda x: names.recomputation_checkpoint(x),
        lambda x: names.set_overlap_for_input(x, "no_overlap"),
        lambda x: names.set_overlap_for_output(x, "no_overlap"),
        lambda x: names.identity_loss(x, 2),
        lambda x: names.dynamic_update(x, x[:1], 0, torch.tensor([0]), 1),
    ],
)
def test_hints_leave_values_as_they_are_in_a_model_and_outside(function):
    x = torch.tensor([1.0, -2.0])
    assert torch.equal(infer(function, x), x) and torch.equal(function(x), x)


def test_gradients_flow_through_to_the_marked_loss():
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(model.weight)

    class Marked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.part = model

        def forward(self, x):
            return names.identity_loss(names.nop(self.part(x)), 0)

    optimizer = poptorch.optim.SGD(model.parameters(), lr=1.0)
    assert poptorch.trainingModel(Marked(), optimizer=optimizer)(torch.tensor([[1.0, 2.0]])) == 3
    assert model.weight.tolist() == [[0.0, -1.0]]


@needs_core("it registers the operations")
def test_operations_with_several_results_compute_as_the_functions_do():
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    assert names.fps(points, [0, 4], 0.5, False).tolist() == poptorch.fps(points, [0, 4]).tolist()
    assert names.nearest_batch_list(points, points + 0.1, [0] * 4, [0] * 4).tolist() == [0, 1, 2, 3]
    lengths = torch.tensor([3])
    scores = torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(0)).log_softmax(2)
    found, expected = (
        names.ctc_beam_search_decoder(scores, lengths, 0, 4, 2),
        poptorch.ctc_beam_search_decoder(scores, lengths, 0, 4, 2),
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


@host_only("the record of a compilation")
def test_blocks_place_what_follows():
    def two(x):
        names.begin_ipu_block(0, 0, 0)
        x = x + 1
        names.begin_ipu_block(1, 0, 1)
        return x * 2

    executor = poptorch.inferenceModel(Function(two), poptorch.Options().deviceIterations(2))
    assert executor(torch.ones(2)).tolist() == [4, 4]
    assert [(stage.ipu, stage.ops.get("aten::mul", 0)) for stage in executor.compiled.stages] == [(0, 0), (1, 1)]


@host_only("PopTorch's functions for them are made of these halves")
@pytest.mark.parametrize(
    "call, instead",
    [
        (lambda x: names.call_cpu_op([x], "name"), "CPU"),
        (lambda x: names.start_for_loop([x]), "for_loop"),
        (lambda x: names.end_if_block([x], x), "cond"),
    ],
)
def test_halves_of_constructs_are_refused_with_the_whole(call, instead):
    with pytest.raises(poptorch.Error, match=f"use poptorch.{instead}"):
        infer(call, torch.ones(1))


@host_only("a device has device code")
def test_custom_operations_are_looked_up_like_those_of_the_function():
    with pytest.raises(poptorch.Error, match="device code"):
        infer(lambda x: names.custom_operation([x], "Cube", "nobody", 1, 1, [x], ""), torch.ones(1))
