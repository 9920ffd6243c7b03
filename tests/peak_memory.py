# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The resident memory that a call needs at its peak, as Linux counts it: tensors and files that are mapped included."""

import gc
import re
from pathlib import Path

import pytest

REFUSAL_SECONDS = 2.0  # of computing, within which a damaged or hostile file is refused,
REFUSAL_SPARE = 32 << 20  # and the bytes that this may take beside twice the file's
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # see proc(5)


def peak_of(call):
    """Bytes that a call added to the memory of this process at its peak, and what it returned."""
    gc.collect()
    try:
        RESET.write_text("5")  # the peak is from now on
    except OSError as error:
        pytest.skip(f"the system does not reset the peak of a process's memory: {error}")
    before = _kilobytes("VmRSS")
    value = call()
    return (_kilobytes("VmHWM") - before) << 10, value


def _kilobytes(name):
    return int(re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())[1])
