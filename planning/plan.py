# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The plan of a training run on IPUs, from its configuration alone: numbers without hardware.

Parameters and MACs are exact. Memory is the estimate of `memory.py`. The throughput is a bound: the time that products
alone take at a stated rate. A backward pass takes twice the MACs of its forward pass, one for the gradients of
activations and one for those of weights, and as many as the forward pass again where that is recomputed. All IPUs of a
replica work at once, on different micro-batches, so a micro-batch takes as long as the busiest IPU needs for it. To
fill and to empty a pipeline of F stages takes the time of F-1 micro-batches in each update: F-1 forward steps before
the first backward step, and F-1 backward steps after the last forward step.
"""

from typing import List, NamedTuple, Optional, Sequence, Tuple

from yacs.config import CfgNode

from planning.placement import Stage, ipus_of, pipeline_stages

from .costs import Unit, configured_units
from .memory import Memory, configured_footprint, in_flight, measure, stage_memory, together

# Products of a Mk2 IPU in MACs a second: Graphcore's 250 TFLOP/s in half and 62.5 TFLOP/s in single precision.
PEAK_HALF = 125e12
PEAK_FLOAT = 31.25e12
UTILISATION = 0.2  # share of the peak that a run reaches: an assumption, for small products and all that is no product


class IpuPlan(NamedTuple):
    """One IPU of a replica. MACs are of one image: of the forward pass, and of everything that training computes."""

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
    """What a configuration asks of IPUs."""

    stages: Tuple[Stage, ...]
    layers: List[float]  # as IPU.LAYERS_PER_IPU would say it
    ipus: List[IpuPlan]
    micro_batch: int
    accumulation: int
    replicas: int
    peak: float  # MACs of an IPU in a second

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
        """MACs of the forward pass on the IPU that has the most."""
        return max(ipu.macs for ipu in self.ipus)

    @property
    def balance(self) -> float:
        """The slowest IPU over the mean; 1 is perfect."""
        return self.slowest * len(self.ipus) / self.macs

    @property
    def bubble(self) -> float:
        """Time that filling and emptying the pipeline adds to an update: F-1 stages over accumulation."""
        return (len(self.stages) - 1) / self.accumulation

    @property
    def samples(self) -> int:
        """Images of one weight update, all replicas together."""
        return self.micro_batch * self.accumulation * self.replicas

    @property
    def fullest(self) -> IpuPlan:
        """The IPU that needs the most memory."""
        return max(self.ipus, key=lambda ipu: ipu.memory.total)

    @property
    def throughput(self) -> float:
        """Bound of training throughput at the peak rate, in images a second, all replicas together."""
        step = max(ipu.training_macs for ipu in self.ipus) * self.micro_batch / self.peak
        return self.samples / (step * (self.accumulation + len(self.stages) - 1))


def make_plan(config: CfgNode, stages: Optional[Sequence[Stage]] = None) -> Plan:
    """The plan of a configuration.

    Args:
        stages: other stages than the configuration's.
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
    """The stages of one IPU, of those that begin at `edges`, summed up."""
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
    whole: List[str] = []  # blocks in a row, of one layer

    def flush() -> None:
        if whole:
            words.append(whole[0] if len(whole) == 1 else f"{whole[0]}-{whole[-1]}")
        whole.clear()

    for index, unit in enumerate(units):
        name = ".".join(unit.module.split(".")[1:4:2])  # layer.block, where it is one
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
