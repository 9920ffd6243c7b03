# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What a stage occupies: micro-batches in flight, the types of what is held, sharding, and the verdict."""

import pytest
import torch

import accelerator
from common.launch import Launch
from config import get_config
from optimizer import build_optimizer
from planning.costs import Unit
from planning.memory import (
    IPU_BYTES,
    Footprint,
    Memory,
    configured_footprint,
    in_flight,
    measure,
    stage_memory,
    together,
)

# An embedding that keeps 7 elements of image, two blocks and a head; every number tells its place.
UNITS = [
    Unit("patch_embed", 1, normalised=20, parameters=100, kept=27, widest=20, output=20),
    Unit("layers.0.blocks.0", 2, 0, parameters=200, kept=300, widest=30, output=20),
    Unit("layers.0.blocks.0.norm2", 3, 0, parameters=400, kept=500, widest=80, output=20),
    Unit("layers.0.downsample", 4, 0, parameters=800, kept=40, widest=20, output=10),
    Unit("layers.1.blocks.0", 5, 0, parameters=1600, kept=150, widest=15, output=10),
    Unit("layers.1.blocks.0.norm2", 6, 0, parameters=3200, kept=250, widest=40, output=10),
    Unit("norm", 7, 0, parameters=6400, kept=10, widest=10, output=5),
    Unit("head", 8, 0, parameters=12800, kept=9, widest=2, output=2),
]
FLOAT = Footprint(
    weight=4,
    gradient=4,
    optimizer=8,
    activation=4,
    micro_batch=3,
    recompute=True,
    sharding_replicas=1,
    temporaries=(0.2,),
)


def test_a_mk2_ipu_has_897_mib():
    assert IPU_BYTES == 897 * 2**20


@pytest.mark.parametrize("stages", [1, 2, 5, 8])
def test_micro_batches_in_flight_are_those_of_the_schedule(stages):
    """Step by step: forward stage s sees micro-batch m at step m + s, backward stage s at m + 2 (F-1) - s."""
    for stage in range(stages):
        held, most = set(), 0
        for step in range(10 * stages):
            held.add(step - stage)
            most = max(most, len(held))
            held.discard(step - 2 * (stages - 1) + stage)
        assert in_flight(stage, stages) == most


def test_first_stage_stashes_the_image_and_the_blocks_that_it_reads_again():
    part = measure(UNITS, 0, 4)
    assert (part.macs, part.parameters) == (10, 1500)
    assert part.stashed == 7 + 20  # the output of the block feeds the merging here
    assert part.recomputed == 27 + 300 + 500
    assert part.kept == 27 + 300 + 500 + 40
    assert part.widest == 80


def test_output_that_only_the_next_stage_reads_is_not_stashed():
    assert measure(UNITS, 0, 3).stashed == 7
    assert measure(UNITS, 4, 6).stashed == 10  # what the merging handed over


def test_stage_that_begins_inside_a_block_stashes_what_enters_there():
    part = measure(UNITS, 2, 6)
    assert part.stashed == 20 + 20
    assert part.recomputed == 500  # against 40 + 150 + 250 from the block's output on


def test_stage_with_recomputation_is_as_computed_by_hand():
    memory = stage_memory(measure(UNITS, 0, 4), 0, 3, 3, FLOAT)
    assert memory == Memory(
        weights=6000, gradients=6000, optimizer=12000, stash=5 * 27 * 3 * 4, working=(827 + 2 * 80) * 3 * 4
    )
    assert memory.total == 24000 + 1620 + 11844


def test_without_recomputation_everything_kept_is_stashed():
    memory = stage_memory(measure(UNITS, 0, 4), 0, 3, 3, FLOAT._replace(recompute=False))
    assert (memory.stash, memory.working) == (5 * 867 * 3 * 4, 2 * 80 * 3 * 4)


@pytest.mark.parametrize("recompute", [True, False])
def test_last_stage_keeps_everything_once(recompute):
    memory = stage_memory(measure(UNITS, 4, 8), 2, 3, 3, FLOAT._replace(recompute=recompute))
    assert (memory.stash, memory.working) == (419 * 3 * 4, 2 * 40 * 3 * 4)


@pytest.mark.parametrize(
    "replicas, ipus, shards",
    [(1, 8, 1), (2, 8, 2), (8, 8, 2), (16, 8, 2), (4, 4, 4), (6, 4, 3), (2, 16, 1), (2, 32, 1)],
)
def test_optimizer_state_is_shared_by_the_replicas_of_a_process_of_sixteen_ipus(replicas, ipus, shards):
    footprint = FLOAT._replace(sharding_replicas=replicas)
    assert footprint.shards(ipus) == shards
    assert stage_memory(measure(UNITS, 0, 1), 0, 1, ipus, footprint).optimizer == -(-800 // shards)


@pytest.mark.parametrize(
    "opts, weight, gradient, optimizer, activation",
    [
        (["MODEL.PRECISION", "32.32"], 4, 4, 8, 4),
        (["MODEL.PRECISION", "16.32"], 4, 4, 8, 2),
        (["MODEL.PRECISION", "16.16"], 2, 2, 6, 2),
        (["MODEL.PRECISION", "mix"], 4, 4, 8, 4),
        (["MODEL.PRECISION", "16.16", "TRAIN.OPTIMIZER.NAME", "sgd"], 2, 2, 2, 2),
        (["TRAIN.OPTIMIZER.NAME", "sgd"], 4, 4, 4, 4),
        (["TRAIN.OPTIMIZER.NAME", "adam"], 4, 4, 8, 4),
        (["TRAIN.OPTIMIZER.NAME", "lamb", "TRAIN.CLIP_GRAD", "0"], 4, 4, 8, 4),
        (["TRAIN.OPTIMIZER.NAME", "rmsprop", "TRAIN.CLIP_GRAD", "0"], 4, 4, 8, 4),
    ],
)
def test_footprint_has_the_types_that_the_optimizer_is_given(opts, weight, gradient, optimizer, activation):
    accelerator.select("cpu")
    config = get_config("SWIN_TINY", opts)
    footprint = configured_footprint(config)
    assert footprint[:4] == (weight, gradient, optimizer, activation)
    model = torch.nn.Linear(2, 2)
    model.no_weight_decay, model.no_weight_decay_keywords = set, set
    built = build_optimizer(config, model, Launch(0, 1, 1, 1))
    names = (
        ["velocity_accum_type"]
        if config.TRAIN.OPTIMIZER.NAME == "sgd"
        else ["first_order_momentum_accum_type", "second_order_momentum_accum_type"]
    )
    size = {torch.float16: 2, torch.float32: 4}
    assert size[built.accum_type] == footprint.gradient
    assert sum(size[getattr(built, name)] for name in names) == footprint.optimizer


def test_footprint_follows_the_configuration():
    opts = [
        "DATA.BATCH_SIZE",
        "7",
        "IPU.RECOMPUTATION",
        "False",
        "IPU.REPLICAS",
        "6",
        "IPU.REPLICATED_TENSOR_SHARDING",
        "True",
    ]
    assert configured_footprint(get_config("SWIN_TINY", opts))[4:] == (7, False, 6, (0.2,))
    assert configured_footprint(get_config("SWIN_TINY", opts[:-2]))[4:] == (7, False, 1, (0.2,))


@pytest.mark.parametrize("recompute", [True, False])
def test_only_stage_keeps_outputs_of_blocks_where_it_recomputes(recompute):
    part, footprint = measure(UNITS, 0, 8), FLOAT._replace(recompute=recompute)
    memory = stage_memory(part, 0, 1, 1, footprint)
    assert memory.stash == (part.stashed if recompute else part.kept) * 3 * 4
    assert memory.working == (part.recomputed * recompute + 2 * part.widest) * 3 * 4


def test_optimizer_state_off_chip_takes_nothing_of_an_ipu():
    assert configured_footprint(get_config("SWIN_TINY", ["IPU.OPTIMIZER_STATE_OFF_CHIP", "True"])).optimizer == 0


def test_room_for_temporaries_is_that_of_the_configuration():
    opts = ["IPU.LAYERS_PER_IPU", "[6, 6]", "IPU.AVAILABLE_MEMORY_PROPORTION"]
    alike, single = (configured_footprint(get_config("SWIN_TINY", [*opts, value])) for value in ("0.2", "[0.1, 0.9]"))
    assert [alike.usable(0), alike.usable(9)] == [pytest.approx(IPU_BYTES * 2 / 3, abs=1)] * 2
    assert single.usable(0) == pytest.approx(IPU_BYTES * (1 - 2 / 15 - 0.1), abs=1)
    assert single.usable(1) == single.usable(2) == 0


def test_stages_on_one_ipu_add_up_but_work_in_turn():
    assert together([Memory(1, 2, 3, 4, 50), Memory(10, 20, 30, 40, 5)]) == Memory(11, 22, 33, 44, 50)
    assert together([]).total == 0


@pytest.mark.parametrize(
    "total, verdict",
    [(1000, "fits"), (1001, "tight"), (IPU_BYTES, "tight"), (IPU_BYTES + 1, "does not fit")],
)
def test_verdict_leaves_room_for_what_is_not_counted(total, verdict):
    assert Memory(total - 4, 1, 1, 1, 1).verdict(1000) == verdict
