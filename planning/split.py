# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The best split of a model into pipeline stages: exact, by dynamic programming."""

import functools
import math
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from .costs import Unit
from .memory import Footprint, Part, measure, stage_memory

IPU_COUNTS = (1, 2, 4, 8, 16)  # of a replica


@functools.lru_cache(maxsize=32)
def fewest_ipus_split(units: Tuple[Unit, ...], footprint: Footprint, accumulation: int) -> Tuple[int, ...]:
    """The best split into as few stages as memory allows, one IPU each.

    Where no number of IPUs suffices, one stage: a host does not mind, and for an IPU the plan says what is missing.

    Args:
        units: the model's parts in the order of execution.
        accumulation: micro-batches in a weight update, of which PopTorch wants 2F-1 for F stages.

    Returns:
        The index of the unit with which each stage begins.
    """
    for ipus in IPU_COUNTS:
        if ipus <= len(_starts(units)) and 2 * ipus - 1 <= accumulation:
            begins = _split_within(units, footprint, ipus, Footprint.usable)
            if begins:
                return tuple(begins)
    return (0,)


@functools.lru_cache(maxsize=32)
def balanced_split(units: Tuple[Unit, ...], footprint: Footprint, stages: int) -> Tuple[int, ...]:
    """The split into so many stages, one IPU each, whose slowest stage has the fewest MACs.

    Stages fit the usable memory of their IPUs; where no split does, memory is left out of account.

    Returns:
        The index of the unit with which each stage begins.

    Raises:
        ValueError: where the model has fewer places to begin a stage.
    """
    most = len(_starts(units))
    if not 1 <= stages <= most:
        raise ValueError(
            f"IPU.IPUS_PER_REPLICA {stages} does not suit a model of {most // 2} blocks: {most} stages "
            "are the most, of half a block each and the head"
        )
    for limit in (Footprint.usable, _no_limit):
        begins = _split_within(units, footprint, stages, limit)
        if begins is not None:
            return tuple(begins)
    raise AssertionError("any split is within an infinite limit")


def minimax_split(length: int, stages: int, cost: Callable[[int, int, int], float]) -> Optional[List[int]]:
    """Cuts a row into stages so that the dearest stage is as cheap as it can be.

    Bellman's recurrence over (stages, items): the best cut of the first n items into s stages ends with a stage that
    begins at some item m, after the best cut of the first m items into s - 1 stages.

    Args:
        length: items in the row.
        stages: how many stages to make, none of them empty.
        cost: of items [begin, end) as stage number s, called as cost(begin, end, s); infinite where it must not be.

    Returns:
        The item with which each stage begins; None where every split has a stage that must not be.
    """
    best = [0.0] + [math.inf] * length  # best[n]: the dearest stage of the first n items
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
    """The fastest split within the limit of each IPU; of those, the one whose fullest IPU has the most room."""
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
    """Where a stage may begin: with each half of a block and with the final norm, and the first with the embedding."""
    halves = [index for index, unit in enumerate(units) if unit.begins_block or unit.ends_block]
    return [0] + halves[1:] + [index for index, unit in enumerate(units) if unit.module == "norm"]
