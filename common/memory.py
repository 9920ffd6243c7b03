# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""How much memory the machine has to spare."""

import os
import sys
from typing import Optional

SHARED_MEMORY = "/dev/shm"


def free_shared_memory() -> int:
    """Bytes that batches may take up: most of what /dev/shm has left and at most half of the memory available."""
    room = sys.maxsize
    if os.path.isdir(SHARED_MEMORY):  # not on macOS
        status = os.statvfs(SHARED_MEMORY)
        room = status.f_bavail * status.f_frsize * 9 // 10
    available = available_memory()
    return room if available is None else min(room, available // 2)


def available_memory() -> Optional[int]:
    """Bytes that can be used without swapping, where the system tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            sizes = dict(line.split(":") for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
