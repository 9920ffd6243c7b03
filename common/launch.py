# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Where a run runs: the kinds of device, and one process's place with its share of the replicas."""

from typing import NamedTuple

from yacs.config import CfgNode

DEVICES = ("auto", "ipu", "gpu", "cpu")
REFERENCE_BATCH = 512  # global batch for which the recipes name their learning rates


class Launch(NamedTuple):
    """This process's place in the run and how replicas are shared out."""

    process: int
    processes: int
    replicas: int  # in all processes together
    local_replicas: int
    stages: int = 1  # processes that share a model; see training/host_pipeline.py

    @property
    def instance(self) -> "Launch":
        """The launch as data parallelism sees it: the processes that share a model count as one."""
        return self._replace(process=self.process // self.stages, processes=self.processes // self.stages, stages=1)

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
