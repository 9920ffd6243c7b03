# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What a program asks about devices: a host has none."""

from .errors import check


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Whether that many IPUs can be had. Never here."""
    return False


def ipuHardwareVersion() -> int:
    """The version of the IPUs. AssertionError where there are none, as always here."""
    check(False, "no IPU hardware is available: this is poptorch_host")
    return 0
