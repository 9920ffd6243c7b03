# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The plan of a training run on IPUs, computed from its configuration without hardware.

Parameters and MACs are exact. Memory is the estimate of `memory.py`. Throughput is an upper bound: the time of matrix
products alone at a given rate. A backward pass takes twice the MACs of its forward pass, half of them for the gradients
of activations and half for those of weights, plus those of the forward pass if it is recomputed. All IPUs of a
replica work at the same time on different micro-batches, so the slowest IPU determines the time per micro-batch.
Filling and draining a pipeline of F stages takes the time of F-1 micro-batches per update: F-1 forward steps before the
first backward step, and F-1 backward steps after the last forward step.
"""

from typing import List, NamedTuple, Optional, Sequence, Tuple

from yacs.config import CfgNode

from planning.placement import Stage, ipus_of, pipeline_stages

from .costs import Unit, configured_units
from .memory import Memory, configured_footprint, in_flight, measure, stage_memory, together

# Peak rate of products on a Mk2 IPU in MACs per second: Graphcore gives 250 TFLOP/s in half, 62.5 in single precision.
PEAK_HALF = 125e12
PEAK_FLOAT = 31.25e12
UTILISATION = 0.2  # assumed share of the peak


class IpuPlan(NamedTuple):
    """One IPU of a replica. MACs are for one image, of the forward pass and of training."""

    ipu: int
    content: str
    in_flight: int  # micro-batches, of the IPU's first stage
    parameters: int
    macs: int
    training_macs: int
    memory: Memory
    usable: int  # bytes that leave room for what is not counted

    @property
    def verdict(self) -> str:
        """Whether the IPU holds its memory: see `Memory.verdict`."""
        return self.memory.verdict(self.usable)


class Plan(NamedTuple):
    """What a configuration requires of IPUs."""

    stages: Tuple[Stage, ...]
    layers: List[float]  # in the form of IPU.LAYERS_PER_IPU
    ipus: List[IpuPlan]
    micro_batch: int
    accumulation: int
    replicas: int
    peak: float  # MACs per second of an IPU

    @property
    def mapping(self) -> List[int]:
        """The IPU of each stage."""
        return [stage.ipu for stage in self.stages]

    @property
    def macs(self) -> int:
        """MACs of the model's forward pass over one image."""
        return sum(ipu.macs for ipu in self.ipus)

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return sum(ipu.parameters for ipu in self.ipus)

    @property
    def slowest(self) -> int:
        """MACs of the forward pass on the slowest IPU."""
        return max(ipu.macs for ipu in self.ipus)

    @property
    def balance(self) -> float:
        """MACs of the slowest IPU over the mean; 1 is perfect."""
        return self.slowest * len(self.ipus) / self.macs

    @property
    def bubble(self) -> float:
        """Relative time that filling and draining the pipeline adds to an update: (F-1) / accumulation."""
        return (len(self.stages) - 1) / self.accumulation

    @property
    def samples(self) -> int:
        """Images per weight update, over all replicas."""
        return self.micro_batch * self.accumulation * self.replicas

    @property
    def fullest(self) -> IpuPlan:
        """The IPU with the highest memory use."""
        return max(self.ipus, key=lambda ipu: ipu.memory.total)

    @property
    def throughput(self) -> float:
        """Upper bound of the training throughput at the peak rate, in images per second over all replicas."""
        step = max(ipu.training_macs for ipu in self.ipus) * self.micro_batch / self.peak
        return self.samples / (step * (self.accumulation + len(self.stages) - 1))


def make_plan(config: CfgNode, stages: Optional[Sequence[Stage]] = None) -> Plan:
    """The plan of a configuration.

    Args:
        stages: replaces the stages of the configuration.
    """
    units, stages = configured_units(config), tuple(stages or pipeline_stages(config))
    names = [unit.module for unit in units]
    edges = [names.index(stage.module) for stage in stages] + [len(units)]
    rows = [units[begin:end] for begin, end in zip(edges, edges[1:])]
    ipus = [_ipu_plan(config, units, edges, stages, ipu) for ipu in range(ipus_of(stages))]
    layers = [sum(unit.begins_block + unit.ends_block for unit in row) / 2 for row in rows]
    half = config.MODEL.PRECISION.startswith("16.")
    return Plan(
        stages,
        [count for count in layers if count],
        ipus,
        config.DATA.BATCH_SIZE,
        config.TRAIN.ACCUMULATION_STEPS,
        config.IPU.REPLICAS,
        PEAK_HALF if half else PEAK_FLOAT,
    )


def _ipu_plan(
    config: CfgNode, units: Sequence[Unit], edges: Sequence[int], stages: Sequence[Stage], ipu: int
) -> IpuPlan:
    """The sums over the stages of one IPU; stages begin at the units `edges`."""
    footprint, ipus = configured_footprint(config), ipus_of(stages)
    mine = [index for index, stage in enumerate(stages) if stage.ipu == ipu]
    parts = [measure(units, edges[index], edges[index + 1]) for index in mine]
    memory = [stage_memory(part, index, len(stages), ipus, footprint) for index, part in zip(mine, parts)]
    training = [part.macs * (4 if footprint.recomputes(index, len(stages)) else 3) for index, part in zip(mine, parts)]
    content = "; ".join(describe(units[edges[index] : edges[index + 1]]) for index in mine)
    return IpuPlan(
        ipu,
        content or "nothing",
        in_flight(mine[0], len(stages)) if mine else 0,
        sum(part.parameters for part in parts),
        sum(part.macs for part in parts),
        sum(training),
        together(memory),
        footprint.usable(ipu),
    )


def describe(units: Sequence[Unit]) -> str:
    """Units in words: 'embedding, 0.0-0.1, merging, 1.0 attention', blocks as layer.block."""
    words: List[str] = []
    whole: List[str] = []  # consecutive blocks of one layer

    def flush() -> None:
        if whole:
            words.append(whole[0] if len(whole) == 1 else f"{whole[0]}-{whole[-1]}")
        whole.clear()

    for index, unit in enumerate(units):
        name = ".".join(unit.module.split(".")[1:4:2])  # layer.block, if it is a block
        if unit.begins_block and index + 1 < len(units):
            whole.append(name)
        elif not unit.ends_block or not whole:
            flush()
            words.append(_word(unit, name))
    flush()
    return ", ".join(words)


def _word(unit: Unit, block: str) -> str:
    if unit.begins_block or unit.ends_block:
        return f"{block} {'attention' if unit.begins_block else 'MLP'}"
    return {"patch_embed": "embedding", "norm": "norm", "head": "head"}.get(unit.module, "merging")
