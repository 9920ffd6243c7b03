# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The optimal split of a model into pipeline stages, by dynamic programming."""

import functools
import math
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from .costs import Unit
from .memory import Footprint, Part, measure, stage_memory

IPU_COUNTS = (1, 2, 4, 8, 16)  # of a replica


@functools.lru_cache(maxsize=32)
def fewest_ipus_split(units: Tuple[Unit, ...], footprint: Footprint, accumulation: int) -> Tuple[int, ...]:
    """The best split into the fewest stages that fit in memory, one per IPU.

    If none fits, a single stage: hosts can run it, and for IPUs the plan reports what does not fit.

    Args:
        units: the units of the model, in the order of execution.
        accumulation: micro-batches per weight update; PopTorch requires 2F-1 for F stages.

    Returns:
        The index of the first unit of each stage.
    """
    for ipus in IPU_COUNTS:
        if ipus <= len(_starts(units)) and 2 * ipus - 1 <= accumulation:
            begins = _split_within(units, footprint, ipus, Footprint.usable)
            if begins:
                return tuple(begins)
    return (0,)


@functools.lru_cache(maxsize=32)
def balanced_split(units: Tuple[Unit, ...], footprint: Footprint, stages: int) -> Tuple[int, ...]:
    """The split into `stages` stages, one per IPU, that minimises the MACs of the slowest stage.

    Every stage fits in the usable memory of its IPU if such a split exists; otherwise memory is ignored.

    Returns:
        The index of the first unit of each stage.

    Raises:
        ValueError: if the model cannot be split into as many stages.
    """
    most = len(_starts(units))
    if not 1 <= stages <= most:
        raise ValueError(
            f"IPU.IPUS_PER_REPLICA {stages} is out of range for a model with {most // 2} blocks: it has at most "
            f"{most} stages, of half a block each and the head"
        )
    for limit in (Footprint.usable, _no_limit):
        begins = _split_within(units, footprint, stages, limit)
        if begins is not None:
            return tuple(begins)
    raise AssertionError("any split is within an infinite limit")


def minimax_split(length: int, stages: int, cost: Callable[[int, int, int], float]) -> Optional[List[int]]:
    """Splits a sequence into stages with minimal cost of the most expensive stage.

    Bellman's recurrence over (stages, items): the best split of the first n items into s stages is, for some m, the
    best split of the first m items into s - 1 stages, followed by a stage from item m on.

    Args:
        length: number of items.
        stages: number of stages, none of them empty.
        cost: cost(begin, end, s) of items [begin, end) as stage s; infinite if not allowed.

    Returns:
        The first item of each stage; None if no split is allowed.
    """
    best = [0.0] + [math.inf] * length  # best[n]: cost of the most expensive stage of the first n items
    choices: List[List[int]] = []  # choices[s][n]: where stage s begins, if n ends it
    for stage in range(stages):
        row, choice = [math.inf] * (length + 1), [0] * (length + 1)
        for end in range(stage + 1, length + 1):
            for begin in range(stage, end):
                if best[begin] < row[end]:
                    value = max(best[begin], cost(begin, end, stage))
                    if value < row[end]:
                        row[end], choice[end] = value, begin
        best = row
        choices.append(choice)
    if math.isinf(best[length]):
        return None
    begins = [length]
    for choice in reversed(choices):
        begins.append(choice[begins[-1]])
    return begins[:0:-1]


def _no_limit(footprint: Footprint, ipu: int) -> float:
    return math.inf


def _split_within(
    units: Sequence[Unit], footprint: Footprint, stages: int, limit: Callable[[Footprint, int], float]
) -> Optional[List[int]]:
    """The fastest split within the limit of each IPU; ties go to the one with the most room on its fullest IPU."""
    starts = _starts(units)
    edges = starts + [len(units)]
    parts: Dict[Tuple[int, int], Part] = {
        (begin, end): measure(units, edges[begin], edges[end]) for end in range(1, len(edges)) for begin in range(end)
    }

    def size(begin: int, end: int, stage: int) -> float:
        total = stage_memory(parts[begin, end], stage, stages, stages, footprint).total
        return total if total <= limit(footprint, stage) else math.inf

    def macs(begin: int, end: int, stage: int) -> float:
        return parts[begin, end].macs if math.isfinite(size(begin, end, stage)) else math.inf

    found = minimax_split(len(starts), stages, macs)
    if found is None:
        return None
    slowest = max(parts[begin, end].macs for begin, end in zip(found, found[1:] + [len(starts)]))
    roomiest = minimax_split(
        len(starts),
        stages,
        lambda begin, end, stage: size(begin, end, stage) if parts[begin, end].macs <= slowest else math.inf,
    )
    assert roomiest is not None  # `found` is one such split
    return [starts[index] for index in roomiest]


def _starts(units: Sequence[Unit]) -> List[int]:
    """The units at which a stage may start: the embedding, every half of a block but the first, the final norm."""
    halves = [index for index, unit in enumerate(units) if unit.begins_block or unit.ends_block]
    return [0] + halves[1:] + [index for index, unit in enumerate(units) if unit.module == "norm"]
