# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The memory available on the machine and used by this process."""

import errno
import os
import resource
import sys
from typing import Optional

SHARED_MEMORY = "/dev/shm"
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
    """Bytes that can be used without swapping; None if the system does not report them."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            sizes = dict(line.split(":") for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
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
