# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Performance counters and latencies, from the times that the engine records."""

from typing import Dict, List, Sequence, Tuple

Latency = Tuple[float, float, float]
Counters = Dict[str, List[List[float]]]

EVENTS = ("input", "input_complete", "output", "output_complete")
NOTHING_RAN: Latency = (0.0, 0.0, 0.0)


# The times in seconds of the EVENTS of a micro-batch.
Times = Tuple[float, float, float, float]


def counters(times: Sequence[Times], inputs: int, outputs: int, returned: Sequence[int]) -> Counters:
    """Returns for each event one list per tensor, with the time of each transfer.

    Args:
        times: the times of every micro-batch of the last call.
        inputs: the number of input tensors.
        outputs: the number of output tensors.
        returned: the micro-batches whose outputs were returned.
    """
    sent = {event: [time[position] for time in times] for position, event in enumerate(EVENTS[:2])}
    received = {event: [times[index][position] for index in returned] for position, event in enumerate(EVENTS[2:], 2)}
    return {
        **{event: [list(values) for _ in range(inputs)] for event, values in sent.items()},
        **{event: [list(values) for _ in range(outputs)] for event, values in received.items()},
    }


def latency(times: Sequence[Times], returned: Sequence[int], begin: str, end: str) -> Latency:
    """Returns (minimum, maximum, average) seconds between two events over the micro-batches with returned outputs."""
    spans = [times[index][EVENTS.index(end)] - times[index][EVENTS.index(begin)] for index in returned]
    return (min(spans), max(spans), sum(spans) / len(spans)) if spans else NOTHING_RAN
