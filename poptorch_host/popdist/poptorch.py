# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Options of one process among several."""

from typing import Any, NoReturn, Optional

from .. import options
from . import getInstanceIndex, getNumInstances, getNumLocalReplicas


class Options(options.Options):
    """Options whose replication factor and process id are the ones of this process, and stay so.

    Args:
        ipus_per_replica: how many IPUs a replica is meant to have; a host has no use for it.
    """

    def __init__(self, ipus_per_replica: Optional[int] = None) -> None:
        super().__init__()
        self._distributed = _Distributed()
        self.set(replication_factor=getNumLocalReplicas())

    def useIpuId(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: the launcher chooses the devices."""
        _refuse("useIpuId")

    def replicationFactor(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: the launcher chooses the number of replicas."""
        _refuse("replicationFactor")


class _Distributed(options._DistributedOptions):
    """Process id and count from the launcher."""

    def __init__(self) -> None:
        super().__init__()
        self.set(distributed_process_id=getInstanceIndex(), num_distributed_processes=getNumInstances())

    def disable(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: the launcher chooses the number of processes."""
        _refuse("Distributed.disable")

    def setEnvVarNames(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: the launcher chooses the number of processes."""
        _refuse("Distributed.setEnvVarNames")

    def configureProcessId(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: the launcher chooses the number of processes."""
        _refuse("Distributed.configureProcessId")


def _refuse(call: str) -> NoReturn:
    raise RuntimeError(f"Cannot call `{call}` with popdist.poptorch.Options: the launcher decides that")
