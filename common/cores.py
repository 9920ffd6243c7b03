# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The number of cores this process may use, and how many of them run the model."""

import os
import re
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container (cgroup v2): microseconds of CPU time and of wall time, or max
THREADS = "OMP_NUM_THREADS"
THREADS_OF_OPENMP = re.compile(r"\+?0*[1-9]\d{0,8}(\s*,\s*\+?0*[1-9]\d{0,8})*")  # for each level of nested regions
BINDING = ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
LEFT_OF = 8  # one of this many cores is left to data workers


def usable_cores() -> int:
    """The number of cores that this process may run on, limited by the quota of a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
    try:
        quota, period = QUOTA.read_text(encoding="ascii").split()
    except (OSError, ValueError):  # no quota
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def binding_variable() -> str:
    """The environment variable that makes OpenMP bind threads to cores; '' if none is set."""
    values = {name: os.environ.get(name, "").lower() for name in BINDING}
    return next((name for name, value in values.items() if value not in ("", "false", "none", "disabled")), "")


def model_threads(cores: int, on_gpu: bool) -> int:
    """The number of threads for the matrix products of a model, or for the host's work if it is on a GPU."""
    left = cores // LEFT_OF
    return max(1, left if on_gpu else cores - left)
