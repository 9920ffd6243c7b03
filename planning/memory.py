# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""An estimate of the IPU memory of a pipeline stage, from sizes alone.

A parameter takes its weight, a gradient accumulator and optimizer state, in the types set by `optimizer.py`. Replicated
tensor sharding divides the optimizer state by the replicas of a process; tensors below IPU.SHARDING_MIN_ELEMENTS, less
than 1 %, are neglected. State kept off chip takes nothing.

A pipeline of F stages trains in 2F-1 steps: F-1 forward, one forward and backward, F-1 backward. So stage s (from 0)
sees a micro-batch again after 2(F-1-s) others and holds 2(F-1-s)+1 in flight. For each of them PopART stashes what the
stage's backward pass reads: with recomputation the stage's input and the outputs of its blocks, without it everything
kept for the backward pass. In the last stage the backward pass follows at once, so PopART recomputes nothing and keeps
everything, once; only if it is also the first stage does `options.py` enable recomputation.

The backward pass processes one block at a time. It needs the recomputed activations of that block, and the gradients of
the input and the output of its widest operation.

All of this is an estimate. Not counted are temporaries of products, for which IPU.AVAILABLE_MEMORY_PROPORTION is
reserved, and code, exchange buffers, constant tables and rounding to tiles, for which ROOM is. Dropout masks take
nothing: an IPU draws them again.
"""

from typing import Iterable, NamedTuple, Sequence, Tuple

from yacs.config import CfgNode

from .costs import Unit

TILES = 1472  # of a Mk2 IPU
TILE_BYTES = 624 * 1024
IPU_BYTES = TILES * TILE_BYTES  # 897 MiB
ROOM = 2 / 15  # assumed share for everything not counted, in addition to temporaries
IPUS_PER_PROCESS = 16  # as in the pod scripts; limits the replicas that share optimizer state


class Footprint(NamedTuple):
    """Bytes per element of each kind, and the settings that multiply them."""

    weight: int
    gradient: int
    optimizer: int
    activation: int
    micro_batch: int
    recompute: bool
    sharding_replicas: int  # replicas that may share optimizer state; 1: none
    temporaries: Tuple[float, ...]  # share of each IPU's memory for temporaries; the last one counts for further IPUs

    def usable(self, ipu: int) -> int:
        """Bytes of an IPU that can be used, leaving room for what is not counted."""
        share = self.temporaries[min(ipu, len(self.temporaries) - 1)]
        return max(round(IPU_BYTES * (1 - ROOM - share)), 0)

    def recomputes(self, stage: int, stages: int) -> bool:
        """Whether the backward pass of stage number `stage` of `stages` recomputes its forward pass."""
        return self.recompute and (stage < stages - 1 or stages == 1)

    def shards(self, ipus: int) -> int:
        """The number of shards (replicas per process) for the given IPUs per replica."""
        most = max(IPUS_PER_PROCESS // ipus, 1)
        return max(count for count in range(1, most + 1) if self.sharding_replicas % count == 0)


class Memory(NamedTuple):
    """Bytes used on one IPU, by purpose."""

    weights: int
    gradients: int
    optimizer: int
    stash: int  # activations of all micro-batches in flight
    working: int  # activations and gradients of the block that is in its backward pass

    @property
    def total(self) -> int:
        """The sum over all purposes."""
        return sum(self)

    def verdict(self, usable: int) -> str:
        """Whether this fits on an IPU: 'fits', 'tight' (more than the usable bytes) or 'does not fit'."""
        if self.total > IPU_BYTES:
            return "does not fit"
        return "fits" if self.total <= usable else "tight"


class Part(NamedTuple):
    """Sums over consecutive units; elements are for one image."""

    macs: int
    parameters: int
    stashed: int  # with recomputation: the input and the outputs of blocks, except what only the next stage reads
    recomputed: int  # maximum recomputed between two stashed values
    widest: int
    kept: int  # without recomputation


def configured_footprint(config: CfgNode) -> Footprint:
    """The footprint for MODEL.PRECISION and TRAIN.OPTIMIZER, as set up by `optimizer.py`."""
    half_weights, half_activations = config.MODEL.PRECISION == "16.16", config.MODEL.PRECISION.startswith("16.")
    weight = 2 if half_weights else 4  # accumulators and first moments are as wide, second moments always float32
    state = weight + (0 if config.TRAIN.OPTIMIZER.NAME == "sgd" else 4)
    shares = config.IPU.AVAILABLE_MEMORY_PROPORTION
    return Footprint(
        weight=weight,
        gradient=weight,
        optimizer=0 if config.IPU.OPTIMIZER_STATE_OFF_CHIP else state,
        activation=2 if half_activations else 4,
        micro_batch=config.DATA.BATCH_SIZE,
        recompute=config.IPU.RECOMPUTATION,
        sharding_replicas=config.IPU.REPLICAS if config.IPU.REPLICATED_TENSOR_SHARDING else 1,
        temporaries=tuple(shares) if isinstance(shares, list) else (shares,),
    )


def measure(units: Sequence[Unit], begin: int, end: int) -> Part:
    """The sums over units[begin:end]."""
    row = units[begin:end]
    stashed = units[begin - 1].output if begin else row[0].kept - row[0].normalised  # the embedding keeps the image
    most = segment = 0
    for unit in row:
        segment += unit.kept
        most = max(most, segment)
        if unit.ends_block and unit is not row[-1]:
            stashed += unit.output
            segment = 0
    return Part(
        sum(unit.macs for unit in row),
        sum(unit.parameters for unit in row),
        stashed,
        most,
        max(unit.widest for unit in row),
        sum(unit.kept for unit in row),
    )


def in_flight(stage: int, stages: int) -> int:
    """The micro-batches held by stage `stage` when a pipeline of `stages` forward stages is full."""
    return 2 * (stages - 1 - stage) + 1


def stage_memory(part: Part, stage: int, stages: int, ipus: int, footprint: Footprint) -> Memory:
    """The training memory of stage `stage` of `stages`, on one of the `ipus` IPUs of a replica."""
    element = footprint.activation * footprint.micro_batch  # bytes of an element of each image
    recompute = footprint.recomputes(stage, stages)
    return Memory(
        weights=part.parameters * footprint.weight,
        gradients=part.parameters * footprint.gradient,
        optimizer=-(-part.parameters * footprint.optimizer // footprint.shards(ipus)),
        stash=element * in_flight(stage, stages) * (part.stashed if recompute else part.kept),
        working=element * (part.recomputed * recompute + 2 * part.widest),
    )


def together(stages: Iterable[Memory]) -> Memory:
    """The memory of several stages on one IPU, of which only one works at a time."""
    held = list(stages)
    return Memory(
        weights=sum(memory.weights for memory in held),
        gradients=sum(memory.gradients for memory in held),
        optimizer=sum(memory.optimizer for memory in held),
        stash=sum(memory.stash for memory in held),
        working=max((memory.working for memory in held), default=0),
    )
