# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The memory available on the machine, or in its container, and used by this process."""

import errno
import os
import resource
import sys
from pathlib import Path
from typing import Optional

SHARED_MEMORY = "/dev/shm"
CGROUP = Path("/sys/fs/cgroup")  # of a container
# Of its version 2 and 1: the limit, the bytes in use, and those among them of files that are given back first.
CONTROLLERS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
SHORTAGES = (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)  # of memory, processes, descriptors
# PyTorch's allocator and Python's threads raise RuntimeErrors with these texts.
SHORTAGE_MESSAGES = ("DefaultCPUAllocator", "can't start new thread")
ROOM = 16 << 20  # minimum bytes to work with


def free_shared_memory() -> int:
    """Bytes that batches may use: most of the free space in /dev/shm, at most half of the available memory."""
    room = sys.maxsize
    if os.path.isdir(SHARED_MEMORY):  # not on macOS
        status = os.statvfs(SHARED_MEMORY)
        room = status.f_bavail * status.f_frsize * 9 // 10
    available = available_memory()
    return room if available is None else min(room, available // 2)


def available_memory() -> Optional[int]:
    """Bytes that can be used without swapping, within a container's limit; None if the system reports neither."""
    return min((size for size in (_free_of_machine(), _free_of_container()) if size is not None), default=None)


def _free_of_machine() -> Optional[int]:
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            sizes = dict(line.split(":") for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _free_of_container() -> Optional[int]:
    """What the limit leaves, where the cache of files that were read counts as free, as it does for the machine."""
    for limit, usage, statistics, reclaimed in CONTROLLERS:
        try:
            allowed, used = (int((CGROUP / name).read_text(encoding="ascii")) for name in (limit, usage))
            sizes = dict(line.split() for line in (CGROUP / statistics).read_text(encoding="ascii").splitlines())
            return max(allowed - used + int(sizes.get(reclaimed, 0)), 0)
        except (OSError, ValueError):  # there is no such controller, or its limit is "max"
            continue
    return None


def peak_memory() -> int:
    """The peak resident bytes of this process so far, without its workers."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_shortage(error: Optional[BaseException]) -> bool:
    """Whether an error, or its cause, is a lack of memory, threads, processes or file descriptors."""
    while error is not None:
        said = isinstance(error, RuntimeError) and any(part in str(error) for part in SHORTAGE_MESSAGES)
        if said or isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in SHORTAGES):
            return True
        error = error.__cause__
    return False


def has_room() -> bool:
    """Whether this process can still allocate memory; decoders do not always report that they could not."""
    try:
        return len(bytearray(ROOM)) == ROOM
    except MemoryError:
        return False
