# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""States and start times of processes, from /proc if the system has it."""

import ctypes
import signal
from typing import List

STOPPED = ("T", "t")  # by a signal, by a debugger
_PR_SET_PDEATHSIG = 1  # of prctl(2)


def state(pid: int) -> str:
    """The state of a process as the letter shown by ps; empty if the process is gone."""
    return (_fields(pid) or [""])[0]


def start_time(pid: int) -> str:
    """When a process started, in system ticks: tells processes with the same id apart. Empty if it is gone."""
    fields = _fields(pid)
    return fields[19] if len(fields) > 19 else ""


def end_with_parent() -> None:
    """Makes the system send SIGTERM to this process when its parent exits; does nothing on macOS."""
    library = ctypes.CDLL(None)
    if hasattr(library, "prctl"):
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _fields(pid: int) -> List[str]:
    """The fields of /proc/PID/stat after the name, which may contain any character."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
            return stream.read().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []
