# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""How much memory the machine has to spare, and how much this process has used."""

import os
import resource
import sys
from typing import Optional

SHARED_MEMORY = "/dev/shm"


def free_shared_memory() -> int:
    """Bytes that batches may use: most of the free space in /dev/shm, at most half of the available memory."""
    room = sys.maxsize
    if os.path.isdir(SHARED_MEMORY):  # not on macOS
        status = os.statvfs(SHARED_MEMORY)
        room = status.f_bavail * status.f_frsize * 9 // 10
    available = available_memory()
    return room if available is None else min(room, available // 2)


def available_memory() -> Optional[int]:
    """Bytes that can be used without swapping; None if the system does not report them."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            sizes = dict(line.split(":") for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def peak_memory() -> int:
    """The most bytes that this process has had resident so far, without its workers."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
