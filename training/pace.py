# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Speed of an epoch: the measurements in its row of metrics.csv, and its progress bar."""

import math
from typing import Any, Dict, List, NamedTuple, Optional

import accelerator
from common.progress_bar import ProgressBar, progress_bar
from training.progress import Progress

MEASURED = ("throughput", "grad_norm", "loader_wait", "step_time", "memory_mb")  # may differ between equal runs


class Pace(NamedTuple):
    """Measurements of an epoch, from its start or from where it was resumed."""

    throughput: float  # samples per second
    loader_wait: float  # share of the time spent waiting for data, 0 to 1
    step_time: float  # seconds per weight update, without waiting for data
    grad_norm: Optional[float]  # mean global norm of the gradients before clipping; None: not computed

    @classmethod
    def of(cls, rate: float, wait: float, global_batch: int, norms: List[float]) -> "Pace":
        """The pace of an epoch.

        Args:
            rate: samples per second, including waits.
            wait: share of the time spent waiting for data.
            norms: global norms of the gradients; non-finite ones are ignored.
        """
        finite = [norm for norm in norms if math.isfinite(norm)]
        step = (1 - wait) * global_batch / rate if rate else 0.0
        return cls(rate, wait, step, sum(finite) / len(finite) if finite else None)

    def columns(self) -> Dict[str, Optional[float]]:
        """The last columns of a row of metrics.csv, after the accuracies."""
        return {
            "grad_norm": None if self.grad_norm is None else float(f"{self.grad_norm:.5g}"),
            "loader_wait": round(self.loader_wait, 4),
            "step_time": float(f"{self.step_time:.4g}"),
            "memory_mb": round(accelerator.peak_memory() / 1e6, 1),
        }


def epoch_bar(run: Any, progress: Progress) -> ProgressBar:
    """A bar over the samples of the current epoch; tqdm adds the samples per second and the time left."""
    batch = run.launch.global_batch(run.config)
    name = f"epoch {progress.epoch + 1}/{run.config.TRAIN.EPOCHS}"
    return progress_bar(name, run.updates_per_epoch * batch, " samples", progress.step * batch)
