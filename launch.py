# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The processes of one run: started alone, by poprun on IPUs, or by torchrun on CPUs and GPUs."""
import contextlib
import importlib
from types import ModuleType
from typing import Any, Iterator, List, NamedTuple

import torch
from yacs.config import CfgNode

import accelerator
from utils import Refusal, logger

REFERENCE_BATCH = 512  # global batch for which the recipes name their learning rates


class Launch(NamedTuple):
    """This process's place in the run and how replicas are shared out."""

    process: int
    processes: int
    replicas: int  # in all processes together
    local_replicas: int

    @property
    def is_leader(self) -> bool:
        """Whether this process writes files and logs."""
        return self.process == 0

    def global_batch(self, config: CfgNode) -> int:
        """Samples in one weight update, all processes together."""
        return config.DATA.BATCH_SIZE * config.TRAIN.ACCUMULATION_STEPS * self.replicas

    def learning_rate_factor(self, config: CfgNode) -> float:
        """What the recipe's learning rates are multiplied by: they grow linearly with the global batch."""
        return self.global_batch(config) / REFERENCE_BATCH


@contextlib.contextmanager
def joined(config: CfgNode) -> Iterator[Launch]:
    """Joins the other processes of the run, if there are any, and leaves them when the context closes.

    Under poprun the replicas are poprun's; otherwise IPU.REPLICAS are shared out evenly.

    Raises:
        Refusal: when the replicas cannot be shared out evenly.
    """
    launch = _join(config)
    try:
        yield launch
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _join(config: CfgNode) -> Launch:
    chosen = accelerator.selected()
    popdist = chosen.popdist
    if popdist is None or not popdist.isPopdistEnvSet():
        return Launch(0, 1, config.IPU.REPLICAS, config.IPU.REPLICAS)
    popdist.init()
    process, processes = popdist.getInstanceIndex(), popdist.getNumInstances()
    if chosen.device == "ipu":
        if processes > 1:
            _horovod().init()
        replicas = popdist.getNumTotalReplicas()
        if replicas != config.IPU.REPLICAS:
            logger.warning("poprun started %d replicas, not IPU.REPLICAS %d: the global batch is %s times the recipe's",
                           replicas, config.IPU.REPLICAS, replicas / config.IPU.REPLICAS)
        return Launch(process, processes, replicas, popdist.getNumLocalReplicas())
    if config.IPU.REPLICAS % processes:
        raise Refusal(f"IPU.REPLICAS {config.IPU.REPLICAS} cannot be shared by {processes} processes: "
                      f"pass --replicas {processes} or a multiple of it")
    return Launch(process, processes, config.IPU.REPLICAS, config.IPU.REPLICAS // processes)


def sum_over_processes(values: torch.Tensor, launch: Launch) -> torch.Tensor:
    """The elementwise sum of `values` over all processes, in every process."""
    if launch.processes == 1:
        return values
    if accelerator.is_ipu():
        horovod = _horovod()
        return horovod.allreduce(values, op=horovod.Sum)
    torch.distributed.all_reduce(values)
    return values


def share(value: Any, launch: Launch) -> Any:
    """The leader's `value`, in every process."""
    if launch.processes == 1:
        return value
    if accelerator.is_ipu():
        return _horovod().broadcast_object(value, root_rank=0)
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any, launch: Launch) -> List[Any]:
    """Every process's `value` in the order of processes, in every process."""
    if launch.processes == 1:
        return [value]
    if accelerator.is_ipu():
        return _horovod().allgather_object(value)
    values = [None] * launch.processes
    torch.distributed.all_gather_object(values, value)
    return values


def _horovod() -> ModuleType:
    """Horovod, which the SDK brings for what hosts of several instances tell each other."""
    return importlib.import_module("horovod.torch")
