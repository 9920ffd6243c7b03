# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The automatic split: exact against all splits of small models, and never worse than the hand-made ones."""

import itertools
import math
from typing import Iterator, List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import get_config, named_configs
from planning.costs import configured_units, swin_units
from planning.geometry import layer_shapes
from planning.memory import Footprint, configured_footprint, measure, stage_memory
from planning.placement import automatic_stages, pipeline_stages
from planning.plan import make_plan
from planning.split import balanced_split, fewest_ipus_split, minimax_split
from tests.planning.test_memory import FLOAT

UNITS = tuple(swin_units(layer_shapes(64, 4, 64, [1, 2], [2, 4], 4), 4, 3, 3000, 4.0))
STARTS = [0, 2, 4, 5, 6, 7, 8]  # the embedding, and each half block after the first half; the norm
FOOTPRINT = FLOAT._replace(micro_batch=1)


def all_splits(length: int, stages: int) -> Iterator[Tuple[int, ...]]:
    """Where the stages begin, in every way to cut a row."""
    for cuts in itertools.combinations(range(1, length), stages - 1):
        yield (0, *cuts)


def judge(begins: Tuple[int, ...], footprint: Footprint) -> Tuple[float, int]:
    """MACs of the slowest stage, infinite where a stage does not fit its IPU, and bytes of the fullest."""
    edges, stages = [*begins, len(UNITS)], len(begins)
    parts = [measure(UNITS, begin, end) for begin, end in zip(edges, edges[1:])]
    fullest = max(stage_memory(part, stage, stages, stages, footprint).total for stage, part in enumerate(parts))
    return (max(part.macs for part in parts) if fullest <= footprint.usable(0) else math.inf), fullest


@settings(max_examples=150, deadline=None)
@given(length=st.integers(1, 8), stages=st.integers(1, 9), draw=st.randoms(use_true_random=False))
def test_dearest_stage_is_as_cheap_as_in_the_best_of_all_splits(length, stages, draw):
    table = {
        (begin, end, stage): math.inf if draw.random() < 0.25 else draw.randint(1, 20)
        for begin, end in itertools.combinations(range(length + 1), 2)
        for stage in range(stages)
    }

    def dearest(begins: List[int]) -> float:
        edges = [*begins, length]
        return max(table[begin, end, stage] for stage, (begin, end) in enumerate(zip(edges, edges[1:])))

    best = min((dearest(begins) for begins in all_splits(length, stages)), default=math.inf)
    found = minimax_split(length, stages, lambda begin, end, stage: table[begin, end, stage])
    if math.isinf(best):
        assert found is None
    else:
        assert found[0] == 0 and found == sorted(set(found)) and len(found) == stages
        assert dearest(found) == best


def test_stages_may_begin_with_each_half_of_a_block_and_with_the_head():
    names = [UNITS[start].module for start in balanced_split(UNITS, FOOTPRINT, len(STARTS))]
    assert names == [
        "patch_embed",
        "layers.0.blocks.0.norm2",
        "layers.1.blocks.0",
        "layers.1.blocks.0.norm2",
        "layers.1.blocks.1",
        "layers.1.blocks.1.norm2",
        "norm",
    ]


# From room for every split to room for none: by activations, which early stages stash, and by optimizer state.
FOOTPRINTS = [
    FOOTPRINT,
    *[FOOTPRINT._replace(micro_batch=size) for size in (250, 300, 350, 10**6)],
    *[FOOTPRINT._replace(optimizer=size) for size in (900, 1200, 1500)],
]


@pytest.mark.parametrize("stages", range(1, 8))
@pytest.mark.parametrize("footprint", FOOTPRINTS, ids=str)
def test_split_is_the_fastest_that_fits_and_then_the_one_with_most_room(stages, footprint):
    judged = [judge(tuple(STARTS[index] for index in begins), footprint) for begins in all_splits(len(STARTS), stages)]
    found = judge(balanced_split(UNITS, footprint, stages), footprint)
    if math.isfinite(min(judged)[0]):
        assert found == min(judged)
    else:
        assert math.isinf(found[0])


def test_memory_decides_in_some_of_these_cases():
    slowest = {
        tuple(judge(balanced_split(UNITS, footprint, stages), footprint)[0] for stages in range(1, 8))
        for footprint in FOOTPRINTS
    }
    assert len(slowest) == len(FOOTPRINTS)


def test_where_nothing_fits_memory_is_left_out_of_account():
    macs = judge(balanced_split(UNITS, FOOTPRINT, 3), FOOTPRINT)[0]
    begins = balanced_split(UNITS, FOOTPRINT._replace(micro_batch=10**6), 3)
    assert judge(begins, FOOTPRINT)[0] == macs


@pytest.mark.parametrize("optimizer, ipus", [(8, 1), (900, 2), (1200, 2), (1500, 4), (10**6, 1)])
def test_fewest_ipus_are_the_first_power_of_two_that_fits(optimizer, ipus):
    footprint = FOOTPRINT._replace(optimizer=optimizer)
    assert len(fewest_ipus_split(UNITS, footprint, accumulation=64)) == ipus
    if ipus > 1:
        assert math.isinf(judge(balanced_split(UNITS, footprint, ipus // 2), footprint)[0])


@pytest.mark.parametrize("accumulation, ipus", [(7, 4), (6, 1), (1, 1)])
def test_fewest_ipus_respect_the_accumulation_that_a_pipeline_needs(accumulation, ipus):
    assert len(fewest_ipus_split(UNITS, FOOTPRINT._replace(optimizer=1500), accumulation)) == ipus


def test_more_stages_than_places_to_begin_are_refused():
    with pytest.raises(ValueError, match="IPUS_PER_REPLICA 8 .* 3 blocks: it has at most 7 stages"):
        balanced_split(UNITS, FOOTPRINT, 8)


@pytest.mark.parametrize("name", named_configs())
def test_auto_is_at_least_as_good_as_the_split_of_every_named_configuration(name):
    plan, auto = make_plan(get_config(name)), make_plan(get_config(name, ["IPU.LAYERS_PER_IPU", "auto"]))
    assert len(auto.ipus) == len(auto.stages) == len(plan.ipus)
    assert auto.slowest <= plan.slowest and auto.throughput >= plan.throughput
    assert {ipu.verdict for ipu in auto.ipus} == {"fits"}


@pytest.mark.parametrize("name", named_configs())
def test_named_configuration_fits_its_ipus(name):
    assert {ipu.verdict for ipu in make_plan(get_config(name)).ipus} == {"fits"}


def test_head_of_22k_classes_is_why_the_base_models_last_stage_is_small():
    config = get_config("SWIN_BASE_22K_PRETRAIN")
    assert pipeline_stages(config) == automatic_stages(config, 8)
    usual = get_config("SWIN_BASE_22K_PRETRAIN", ["IPU.LAYERS_PER_IPU", "[2, 2, 3, 3, 5, 5, 2, 2]"])
    assert make_plan(usual).ipus[-1].verdict == "tight"


def test_auto_is_deterministic_and_cheap_to_ask_again():
    config = get_config("SWIN_LARGE_22K_PRETRAIN")
    units, footprint = configured_units(config), configured_footprint(config)
    assert balanced_split(units, footprint, 16) is balanced_split(units, footprint, 16)  # remembered
