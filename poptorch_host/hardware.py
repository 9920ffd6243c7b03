# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Queries for IPU hardware, of which a host has none unless it is configured."""

from . import host
from .errors import check

_MK2 = 2  # the version of the IPUs that PopTorch 3.4 is for


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Returns whether that many IPUs are available: the number that the host is configured to report, by default 0."""
    return num_ipus <= host.ipus()


def ipuHardwareVersion() -> int:
    """Returns the version of the IPUs. Raises AssertionError if there are none."""
    check(ipuHardwareIsAvailable(), "no IPU hardware is available: this is poptorch_host")
    return _MK2
