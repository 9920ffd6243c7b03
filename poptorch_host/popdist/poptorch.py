# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Options of a process in a distributed program."""

from typing import Any, NoReturn, Optional

from .. import options
from . import getInstanceIndex, getNumInstances, getNumLocalReplicas


class Options(options.Options):
    """Options whose replication factor and process id are set by the launcher and cannot be changed.

    Args:
        ipus_per_replica: the number of IPUs of a replica; unused on a host.
    """

    def __init__(self, ipus_per_replica: Optional[int] = None) -> None:
        super().__init__()
        self._distributed = _Distributed()
        self.set(replication_factor=getNumLocalReplicas())

    def useIpuId(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises RuntimeError: the launcher chooses the devices."""
        _refuse("useIpuId")

    def replicationFactor(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises RuntimeError: the launcher sets the number of replicas."""
        _refuse("replicationFactor")


class _Distributed(options._DistributedOptions):
    """Process id and count from the launcher."""

    def __init__(self) -> None:
        super().__init__()
        self.set(distributed_process_id=getInstanceIndex(), num_distributed_processes=getNumInstances())

    def disable(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises RuntimeError: the launcher sets the number of processes."""
        _refuse("Distributed.disable")

    def setEnvVarNames(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises RuntimeError: the launcher sets the number of processes."""
        _refuse("Distributed.setEnvVarNames")

    def configureProcessId(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises RuntimeError: the launcher sets the number of processes."""
        _refuse("Distributed.configureProcessId")


def _refuse(call: str) -> NoReturn:
    raise RuntimeError(f"Cannot call `{call}` with popdist.poptorch.Options: the launcher sets it")
