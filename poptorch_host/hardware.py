# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What a program asks about devices: a host has none, unless it is set to say so."""

from . import host
from .errors import check

_MK2 = 2  # the version of the IPUs that PopTorch 3.4 is for


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Whether that many IPUs can be had: as many as the host is set to tell of, none unless it is."""
    return num_ipus <= host.ipus()


def ipuHardwareVersion() -> int:
    """The version of the IPUs. AssertionError where there are none."""
    check(ipuHardwareIsAvailable(), "no IPU hardware is available: this is poptorch_host")
    return _MK2
