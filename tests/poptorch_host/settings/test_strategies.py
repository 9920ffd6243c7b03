# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Execution strategies: which stage, phase and device a block gets."""

import copy

import pytest

from tests.backend import host_only, poptorch, raises

PLACES = "what a strategy tells the compiler of a block is no interface of PopTorch's"


def places(strategy, *blocks):
    strategy.onStartTracing()
    return [tuple(strategy.place(block, ipu)) for block, ipu in blocks]


def test_stage_takes_block_ids_and_a_device():
    stage = poptorch.Stage("a", "b")
    assert stage.blocks == ("a", "b") and stage.ipu(3) is stage
    for wrong in (lambda: poptorch.Stage("a", 1), lambda: poptorch.Stage(["a"]), lambda: stage.ipu("0")):
        with raises(AssertionError):
            wrong()


@host_only(PLACES)
def test_default_strategy_makes_a_stage_of_each_device():
    strategy = poptorch.Options()._execution_strategy
    assert type(strategy) is poptorch.PipelinedExecution
    assert places(strategy, ("a", 0), ("b", 2), ("c", 2)) == [(0, 0, 0), (2, 0, 2), (2, 0, 2)]
    with raises(AssertionError, match="ipu_id"):
        strategy.place("d", None)


@host_only(PLACES)
def test_automatic_increment_makes_a_stage_of_each_block_from_one():
    strategy = poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)
    assert places(strategy, ("a", None), ("b", 5), ("a", None), ("c", 0)) == [
        (1, 0, 1),
        (2, 0, 5),
        (1, 0, 1),
        (3, 0, 0),
    ]
    assert places(strategy, ("c", None), ("a", None)) == [(1, 0, 1), (2, 0, 2)], "a second tracing starts over"


@host_only(PLACES)
@pytest.mark.parametrize("kind", [poptorch.PipelinedExecution, poptorch.ShardedExecution])
def test_named_stages_use_their_device_then_the_blocks_then_their_index(kind):
    strategy = kind(poptorch.Stage("a").ipu(3), "b", ["c", "d"])
    assert places(strategy, ("a", 7), ("b", 7), ("c", None), ("d", 0)) == [(0, 0, 3), (1, 0, 7), (2, 0, 2), (2, 0, 0)]
    strategy.stage("d").ipu(6)
    assert places(strategy, ("c", None)) == [(2, 0, 6)]


def test_unknown_block_is_refused():
    with raises(AssertionError, match="Unknown Block"):
        poptorch.PipelinedExecution("a").stage("b")


@pytest.mark.parametrize(
    "kind, arguments",
    [
        (poptorch.PipelinedExecution, ["a", "a"]),
        (poptorch.PipelinedExecution, [["a", "b"], poptorch.Stage("b")]),
        (poptorch.ShardedExecution, [3]),
        (poptorch.PipelinedExecution, [poptorch.AutoStage.SameAsIpu, "a"]),
        (poptorch.SerialPhasedExecution, []),
        (poptorch.ParallelPhasedExecution, []),
        (poptorch.SerialPhasedExecution, ["a", ["b", "a"]]),
        (poptorch.ParallelPhasedExecution, [1, 2]),
        (poptorch.SerialPhasedExecution, [None]),
    ],
)
def test_stages_that_contradict_each_other_are_refused(kind, arguments):
    with raises((AssertionError, TypeError)):
        kind(*arguments)


def test_phase_of_ids_is_one_stage_and_phase_of_stages_is_several():
    assert [stage.blocks for stage in poptorch.Phase("a", "b").stages] == [("a", "b")]
    phase = poptorch.Phase(poptorch.Stage("a"), poptorch.Stage("b"))
    assert phase.stage(1).blocks == ("b",)
    phase.ipus(4, 6)
    with raises(AssertionError, match="2 stages"):
        phase.ipus(1)


@host_only(PLACES)
def test_phase_places_its_stages():
    phase = poptorch.Phase(poptorch.Stage("a").ipu(4), poptorch.Stage("b").ipu(6))
    assert places(poptorch.SerialPhasedExecution(phase), ("a", None), ("b", None)) == [(0, 0, 4), (1, 0, 6)]


@host_only(PLACES)
def test_serial_phases_share_devices_and_parallel_phases_alternate():
    stages = [[poptorch.Stage("a"), poptorch.Stage("b")], [poptorch.Stage("c"), poptorch.Stage("d")], "e"]
    blocks = [(name, None) for name in "abcde"]
    serial, parallel = poptorch.SerialPhasedExecution(*stages), poptorch.ParallelPhasedExecution(*stages)
    assert places(serial, *blocks) == [(0, 0, 0), (1, 0, 1), (0, 1, 0), (1, 1, 1), (0, 2, 0)]
    assert places(parallel, *blocks) == [(0, 0, 0), (1, 0, 2), (0, 1, 1), (1, 1, 3), (0, 2, 0)]


def test_phased_strategies_give_their_phases_and_take_their_settings():
    strategy = poptorch.SerialPhasedExecution("a", "b")
    assert strategy.phase(1).stage(0) is strategy.stage("b")
    assert strategy.setTensorsLiveness(poptorch.Liveness.OffChipAfterFwd).useSeparateBackwardPhase() is strategy
    assert strategy.backendOptions()["tensors_liveness"] == 1
    parallel = poptorch.ParallelPhasedExecution("a").sendTensorsOffChipAfterFwd()
    assert parallel.backendOptions()["tensors_liveness"] == 1
    for wrong in (
        lambda: strategy.phase(-1),
        lambda: strategy.setTensorsLiveness(1),
        lambda: strategy.useSeparateBackwardPhase("yes"),
        lambda: parallel.sendTensorsOffChipAfterFwd(2),
    ):
        with raises(AssertionError):
            wrong()
    with pytest.raises(IndexError):
        strategy.phase(2)


def test_strategies_tell_the_compiler_which_they_are():
    kinds = [poptorch.PipelinedExecution(), poptorch.ShardedExecution(), poptorch.SerialPhasedExecution("a")]
    assert [kind.backendOptions()["execution_mode"] for kind in kinds] == [0, 1, 2]
    assert isinstance(kinds[1], poptorch.PipelinedExecution)


def test_copied_strategy_keeps_stages_together():
    strategy = copy.deepcopy(poptorch.PipelinedExecution(["a", "b"]))
    assert strategy.stage("a") is strategy.stage("b")
