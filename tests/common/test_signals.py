# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Requests to stop by a signal."""

import os
import signal
import time

import pytest

from common.errors import Preempted
from common.signals import StopRequest


def test_stop_request_outside_a_step_stops_at_once_and_inside_at_its_end():
    stop = StopRequest()
    before = signal.getsignal(signal.SIGINT)
    with stop.installed():
        with pytest.raises(Preempted, match="SIGUSR1"):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(1)
        stop.name = ""
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            assert stop.name == "SIGTERM"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
        with pytest.raises(Preempted, match="SIGTERM"):
            stop.check()
    assert signal.getsignal(signal.SIGINT) is before
