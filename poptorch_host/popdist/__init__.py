# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The processes of one program: how many there are, which one this is, and how many replicas each has.

torchrun starts them here (RANK, WORLD_SIZE), as poprun does with IPUs (OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE).
POPDIST_NUM_LOCAL_REPLICAS says how many replicas each process has: poprun sets it; under torchrun set it yourself where
it is not 1.
"""

import os
from typing import Any, Callable, Iterable, Tuple

import torch

from .. import host
from ..errors import createPoptorchError
from ..updating.reduce import process_group

_POPRUN = "POPDIST_NUM_TOTAL_REPLICAS"
_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
_TORCHRUN = ("RANK", "WORLD_SIZE")


def isPopdistEnvSet() -> bool:
    """Whether this process was started by poprun or torchrun."""
    return _POPRUN in os.environ or all(name in os.environ for name in _TORCHRUN)


def init() -> None:
    """Joins the processes into one group of torch.distributed, unless that was done; a single process needs none.

    Raises:
        Error: when the address where the processes meet cannot be told from the environment.
    """
    from .poptorch import Options  # which needs this package

    process_group(Options(), host.device())


def getNumTotalReplicas() -> int:
    """Replicas of all processes together."""
    return _number(_POPRUN, getNumLocalReplicas() * getNumInstances())


def getNumLocalReplicas() -> int:
    """Replicas of this process."""
    return _number("POPDIST_NUM_LOCAL_REPLICAS", 1)


def getReplicaIndexOffset() -> int:
    """The index of this process's first replica among those of all processes."""
    return _number("POPDIST_REPLICA_INDEX_OFFSET", getInstanceIndex() * getNumLocalReplicas())


def getNumIpusPerReplica() -> int:
    """IPUs of a replica, as poprun was told; a replica on a host counts as one."""
    return _number("POPDIST_NUM_IPUS_PER_REPLICA", 1)


def getInstanceIndex() -> int:
    """The index of this process, from 0."""
    return _rank_and_size()[0]


def getNumInstances() -> int:
    """How many processes there are."""
    return _rank_and_size()[1]


def execute_on_instances(instances: Iterable[int], func: Callable[..., Any], *args: Any) -> Any:
    """Calls `func(*args)` in the processes of these indices only; where `init` was called, the others wait for them.

    Returns:
        What `func` returned, None where it was not called.
    """
    try:
        return func(*args) if getInstanceIndex() in set(instances) else None
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()


def _rank_and_size() -> Tuple[int, int]:
    for rank, size in (_OPEN_MPI, _TORCHRUN):
        if rank in os.environ and size in os.environ:
            index, count = _number(rank, 0), _number(size, 1)
            if index >= count:
                raise createPoptorchError(
                    f"environment variable {rank} is {index} and {size} {count}: processes are counted from 0"
                )
            return index, count
    return 0, 1


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdigit():
        raise createPoptorchError(f"environment variable {variable} is {text!r}: it must be a number")
    return int(text)
