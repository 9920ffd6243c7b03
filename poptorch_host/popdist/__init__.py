# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The processes of a distributed program: their number, the index of this one, and its replicas.

Processes are started by torchrun (RANK, WORLD_SIZE), or as with IPUs by poprun (OMPI_COMM_WORLD_RANK,
OMPI_COMM_WORLD_SIZE). POPDIST_NUM_LOCAL_REPLICAS is the number of replicas of each process (default 1), which poprun
sets. Every function raises Error for a variable that holds no number.
"""

import os
from typing import Any, Callable, Iterable, Tuple

import torch

from .. import host
from .._environment import number_in
from ..errors import createPoptorchError
from ..updating.reduce import process_group

_POPRUN = "POPDIST_NUM_TOTAL_REPLICAS"
_OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
_TORCHRUN = ("RANK", "WORLD_SIZE")


def isPopdistEnvSet() -> bool:
    """Returns whether this process was started by poprun or torchrun."""
    return _POPRUN in os.environ or all(name in os.environ for name in _TORCHRUN)


def init() -> None:
    """Initialises torch.distributed, unless it is initialised or there is a single process.

    Raises:
        Error: if the environment does not contain the address of the first process.
    """
    from .poptorch import Options  # which needs this package

    process_group(Options(), host.device())


def getNumTotalReplicas() -> int:
    """Returns the number of replicas of all processes."""
    return number_in(_POPRUN, getNumLocalReplicas() * getNumInstances())


def getNumLocalReplicas() -> int:
    """Returns the number of replicas of this process."""
    return number_in("POPDIST_NUM_LOCAL_REPLICAS", 1)


def getReplicaIndexOffset() -> int:
    """Returns the global index of the first replica of this process."""
    return number_in("POPDIST_REPLICA_INDEX_OFFSET", getInstanceIndex() * getNumLocalReplicas())


def getNumIpusPerReplica() -> int:
    """Returns the number of IPUs of a replica, as given to poprun (default 1)."""
    return number_in("POPDIST_NUM_IPUS_PER_REPLICA", 1)


def getInstanceIndex() -> int:
    """Returns the index of this process, counted from 0."""
    return _rank_and_size()[0]


def getNumInstances() -> int:
    """Returns the number of processes."""
    return _rank_and_size()[1]


def execute_on_instances(instances: Iterable[int], func: Callable[..., Any], *args: Any) -> Any:
    """Calls `func(*args)` in the given processes only. After `init`, the other processes wait for them.

    Returns:
        The result of `func`, or None in the other processes.
    """
    try:
        return func(*args) if getInstanceIndex() in set(instances) else None
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()


def _rank_and_size() -> Tuple[int, int]:
    for rank, size in (_OPEN_MPI, _TORCHRUN):
        if rank in os.environ and size in os.environ:
            index, count = number_in(rank, 0), number_in(size, 1)
            if index >= count:
                raise createPoptorchError(
                    f"environment variable {rank} is {index} but {size} is {count}: ranks are counted from 0"
                )
            return index, count
    return 0, 1
