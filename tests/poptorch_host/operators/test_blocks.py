# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Blocks: when they begin and end, what they leave alone, and how they come off."""

import copy
import io
import pickle

import pytest
import torch

from tests.backend import host_only, poptorch, raises

from ..recorder import recording

told = host_only("what blocks tell its executions")


class TwoLayers(torch.nn.Module):
    def __init__(self, annotate=True):
        super().__init__()
        self.first = torch.nn.Linear(2, 3)
        self.second = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(3, 4))
        if annotate:
            assert poptorch.BeginBlock(self.first, "one", ipu_id=0) is self.first
            poptorch.BeginBlock(self.second, ipu_id=1)

    def forward(self, x):
        return self.second(self.first(x))


def blocks_of(module):
    with recording() as events:
        module(torch.zeros(1, 2))
    return events


@told
def test_block_begins_whenever_its_module_is_called():
    module = TwoLayers()
    assert blocks_of(module) == [("begin", "one", 0), ("begin", "0", 1)]
    assert blocks_of(module) == [("begin", "one", 0), ("begin", "0", 1)], "automatic ids start over in each forward"


def test_block_changes_neither_class_nor_parameters_nor_results_on_the_host():
    annotated, plain = TwoLayers(), TwoLayers(annotate=False)
    plain.load_state_dict(annotated.state_dict())
    x = torch.randn(5, 2)
    assert type(annotated.first) is torch.nn.Linear
    assert [name for name, _ in annotated.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert torch.equal(annotated(x), plain(x)) and not poptorch.isRunningOnIpu()


@told
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_block_survives_copying(duplicate):
    assert blocks_of(duplicate(TwoLayers())) == [("begin", "one", 0), ("begin", "0", 1)]


def test_second_block_on_a_module_is_refused():
    layer = poptorch.BeginBlock(torch.nn.Linear(2, 2), ipu_id=0)
    with raises(poptorch.Error, match="already been assigned"):
        poptorch.BeginBlock(layer, ipu_id=1)


@told
def test_function_becomes_a_module_that_begins_a_block():
    double = poptorch.BeginBlock(lambda x, scale=2: scale * x, "double", 1)
    assert isinstance(double, poptorch.LegacyBeginBlockFn) and isinstance(double, torch.nn.Module)
    assert (double._user_id, double._ipu_id) == ("double", 1)
    with recording() as events:
        assert double(torch.tensor(3), scale=3) == 9
    assert events == [("begin", "double", 1)]
    with raises(poptorch.Error, match="callable"):
        poptorch.BeginBlock(7)


@told
def test_context_manager_leaves_no_block_active():
    with recording() as events:
        with poptorch.Block("outer", ipu_id=0):
            with poptorch.Block("inner", ipu_id=1):
                pass
        poptorch.Block.start("last")
    assert events == [("begin", "outer", 0), ("begin", "inner", 1), ("end",), ("end",), ("begin", "last", None)]


@told
def test_decorated_function_runs_inside_its_block():
    @poptorch.BlockFunction("stage", ipu_id=2)
    def triple(x):
        """Thrice."""
        return 3 * x

    with recording() as events:
        assert triple(2) == 6
    assert events == [("begin", "stage", 2), ("end",)] and triple.__doc__ == "Thrice." and triple(1) == 3


@told
def test_automatic_ids_start_over_when_told():
    with recording() as events:
        for _ in range(2):
            poptorch.Block.useAutoId()
            with poptorch.Block():
                pass
            poptorch.Block.start()
    assert [event[1] for event in events if event[0] == "begin"] == ["0", "1", "0", "1"]


@told
def test_removing_blocks_keeps_other_hooks():
    module, called = TwoLayers(), []
    module.first.register_forward_pre_hook(lambda *_: called.append("mine"))
    poptorch.removeBlocks(module)
    assert blocks_of(module) == [] and called == ["mine"]
    assert poptorch.BeginBlock(module.first, ipu_id=0) is module.first, "the module is free for another block"
    with raises(AssertionError):
        poptorch.removeBlocks([module])


@host_only("PopTorch writes a 2 for the indent of a nested module")
def test_text_of_a_module_shows_its_blocks(capsys):
    text = poptorch.module_repr(TwoLayers())
    assert "(first): BeginBlock(user_id=one, ipu_id=0) Linear(in_features=2" in text
    assert "(second): BeginBlock(user_id=None, ipu_id=1) Sequential(" in text
    poptorch.print(TwoLayers())
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(
            TwoLayers(annotate=False), marks=host_only("PopTorch writes a 2 for the indent of a nested module")
        ),
        *(torch.nn.Linear(1, 2), torch.nn.ReLU(), torch.nn.MultiheadAttention(4, 2)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_text_of_a_module_without_blocks_is_pytorchs(module):
    assert poptorch.module_repr(module) == repr(module)


def test_annotated_module_loads_where_weights_only_are_allowed():
    stream = io.BytesIO()
    torch.save(TwoLayers().state_dict(), stream)
    stream.seek(0)
    assert set(torch.load(stream, weights_only=True)) == set(TwoLayers(annotate=False).state_dict())
