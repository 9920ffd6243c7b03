# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The kinds of device, and the place of a process in a run."""

from typing import NamedTuple

from yacs.config import CfgNode

DEVICES = ("auto", "ipu", "gpu", "cpu")
REFERENCE_BATCH = 512  # global batch size of the configured learning rates


class Launch(NamedTuple):
    """The rank of this process, and how replicas are divided among processes."""

    process: int
    processes: int
    replicas: int  # over all processes
    local_replicas: int
    stages: int = 1  # processes per model; see training/host_pipeline.py

    @property
    def instance(self) -> "Launch":
        """The launch for data parallelism: the processes of a model count as one."""
        return self._replace(process=self.process // self.stages, processes=self.processes // self.stages, stages=1)

    @property
    def is_leader(self) -> bool:
        """Whether this process writes files and logs."""
        return self.process == 0

    def global_batch(self, config: CfgNode) -> int:
        """Samples per weight update, over all processes."""
        return config.DATA.BATCH_SIZE * config.TRAIN.ACCUMULATION_STEPS * self.replicas

    def learning_rate_factor(self, config: CfgNode) -> float:
        """The factor for the configured learning rates, which scale linearly with the global batch size."""
        return self.global_batch(config) / REFERENCE_BATCH
