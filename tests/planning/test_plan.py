# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The numbers of the plan, against ones computed by hand."""

from typing import Any

import pytest
from yacs.config import CfgNode

from config import get_config
from planning.costs import configured_units
from planning.memory import configured_footprint, measure, stage_memory
from planning.plan import PEAK_FLOAT, PEAK_HALF, describe, make_plan

# Eight tokens' width, two layers of two and one blocks: 4 x 4 tokens of 8 channels, then 2 x 2 of 16; one window each.
SMALL = [
    "DATA.IMG_SIZE",
    "8",
    "DATA.BATCH_SIZE",
    "3",
    "MODEL.NUM_CLASSES",
    "10",
    "MODEL.SWIN.PATCH_SIZE",
    "2",
    "MODEL.SWIN.EMBED_DIM",
    "8",
    "MODEL.SWIN.DEPTHS",
    "[2, 1]",
    "MODEL.SWIN.NUM_HEADS",
    "[1, 2]",
    "MODEL.SWIN.WINDOW_SIZE",
    "4",
    "TRAIN.ACCUMULATION_STEPS",
    "10",
    "IPU.REPLICAS",
    "2",
]
EMBEDDING = 16 * 12 * 8
ATTENTION, MLP = 16 * 8 * 4 * 8 + 2 * 16 * 16 * 8, 2 * 16 * 8 * 32
MERGING = 4 * 32 * 16
LAST_ATTENTION, LAST_MLP = 4 * 16 * 4 * 16 + 2 * 4 * 4 * 16, 2 * 4 * 16 * 64
HEAD = 160


def configured(layers: str, *opts: Any) -> CfgNode:
    return get_config("SWIN_TINY", [*SMALL, "IPU.LAYERS_PER_IPU", layers, *map(str, opts)])


def test_work_of_each_ipu_is_as_computed_by_hand():
    plan = make_plan(configured("[1.5, 1.5]"))
    first, last = EMBEDDING + 2 * ATTENTION + MLP, MLP + MERGING + LAST_ATTENTION + LAST_MLP + HEAD
    assert [ipu.macs for ipu in plan.ipus] == [first, last]
    assert [ipu.training_macs for ipu in plan.ipus] == [4 * first, 3 * last]  # the last stage computes nothing again
    assert plan.macs == first + last
    assert plan.slowest == first > last
    assert plan.balance == pytest.approx(first / ((first + last) / 2))


def test_without_recomputation_training_takes_three_forward_passes():
    plan = make_plan(configured("[1.5, 1.5]", "IPU.RECOMPUTATION", False))
    assert [ipu.training_macs for ipu in plan.ipus] == [3 * ipu.macs for ipu in plan.ipus]


def test_update_bubble_and_throughput_are_as_computed_by_hand():
    plan = make_plan(configured("[1, 1, 1]"))
    assert plan.samples == 3 * 10 * 2
    assert plan.bubble == pytest.approx(2 / 10)
    step = 3 * 4 * (ATTENTION + MLP + MERGING) / PEAK_FLOAT  # of the second stage, the busiest
    assert plan.throughput == pytest.approx(60 / (step * 12))


@pytest.mark.parametrize(
    "precision, peak", [("32.32", PEAK_FLOAT), ("16.16", PEAK_HALF), ("16.32", PEAK_HALF), ("mix", PEAK_FLOAT)]
)
def test_rate_is_that_of_the_activations_type(precision, peak):
    assert make_plan(configured("[3]", "MODEL.PRECISION", precision)).peak == peak
    assert PEAK_HALF == 4 * PEAK_FLOAT == 250e12 / 2


def test_memory_of_each_ipu_is_its_stages():
    config = configured("[1, 2]")
    units, footprint = configured_units(config), configured_footprint(config)
    plan = make_plan(config)
    edge = [unit.module for unit in units].index("layers.0.blocks.1")
    assert plan.ipus[0].memory == stage_memory(measure(units, 0, edge), 0, 2, 2, footprint)
    assert plan.ipus[1].memory == stage_memory(measure(units, edge, len(units)), 1, 2, 2, footprint)
    assert [ipu.in_flight for ipu in plan.ipus] == [3, 1]
    assert plan.fullest.ipu == max((0, 1), key=lambda ipu: plan.ipus[ipu].memory.total)
    assert plan.parameters == sum(unit.parameters for unit in units)


def test_head_on_the_first_ipu_counts_there():
    plan = make_plan(configured("[2, 1]", "IPU.MAPPING", "[0, 1, 0]"))
    assert (plan.layers, plan.mapping, len(plan.ipus)) == ([2, 1], [0, 1, 0], 2)
    assert [ipu.macs for ipu in plan.ipus] == [
        EMBEDDING + 2 * (ATTENTION + MLP) + MERGING + HEAD,
        LAST_ATTENTION + LAST_MLP,
    ]
    assert plan.ipus[0].training_macs == 4 * plan.ipus[0].macs - HEAD
    assert plan.ipus[0].parameters - make_plan(configured("[2, 1]")).ipus[0].parameters == 2 * 16 + 17 * 10
    assert [ipu.in_flight for ipu in plan.ipus] == [5, 3]
    assert plan.bubble == pytest.approx(2 / 10)


def test_sharding_takes_the_ipus_of_a_replica_not_its_stages():
    opts = ["IPU.REPLICAS", 8, "IPU.REPLICATED_TENSOR_SHARDING", True]
    plain, sharded = (make_plan(configured("[2, 1]", "IPU.MAPPING", "[0, 1, 0]", *more)) for more in ([], opts))
    for before, after in zip(plain.ipus, sharded.ipus):
        assert after.memory.optimizer == pytest.approx(before.memory.optimizer / 8, abs=2)


def test_ipu_without_a_stage_holds_nothing():
    plan = make_plan(configured("[2, 1]", "IPU.MAPPING", "[0, 2]"))
    assert [ipu.content for ipu in plan.ipus] == ["embedding, 0.0-0.1, merging", "nothing", "1.0, norm, head"]
    assert plan.ipus[1].memory.total == plan.ipus[1].macs == plan.ipus[1].in_flight == 0
    assert plan.balance == pytest.approx(3 * plan.slowest / plan.macs)


@pytest.mark.parametrize(
    "layers, words",
    [
        ("[12]", ["embedding, 0.0-0.1, merging, 1.0-1.1, merging, 2.0-2.5, merging, 3.0-3.1, norm, head"]),
        (
            "[0.5, 1, 2.5, 8]",
            [
                "embedding, 0.0 attention",
                "0.0 MLP, 0.1 attention",
                "0.1 MLP, merging, 1.0-1.1, merging",
                "2.0-2.5, merging, 3.0-3.1, norm, head",
            ],
        ),
        (
            "[11.5, 0.5]",
            [
                "embedding, 0.0-0.1, merging, 1.0-1.1, merging, 2.0-2.5, merging, 3.0, 3.1 attention",
                "3.1 MLP, norm, head",
            ],
        ),
    ],
)
def test_stages_are_described_block_by_block(layers, words):
    config = get_config("SWIN_TINY", ["IPU.LAYERS_PER_IPU", layers])
    assert [ipu.content for ipu in make_plan(config).ipus] == words


def test_a_single_unit_is_described():
    assert [describe([unit]) for unit in configured_units(configured("[3]"))[:4]] == [
        "embedding",
        "0.0 attention",
        "0.0 MLP",
        "0.1 attention",
    ]
