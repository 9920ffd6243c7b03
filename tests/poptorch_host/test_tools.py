# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Hardware questions, profiling marks and the comparison of results."""

import pytest
import torch
from poptorch_host import host
from poptorch_host.testing import allclose

from tests.backend import host_only, poptorch

pytestmark = host_only("its tools for tests and profiles")


def test_no_hardware_is_found():
    assert poptorch.ipuHardwareIsAvailable() is False and poptorch.ipuHardwareIsAvailable(2) is False
    with pytest.raises(AssertionError, match="no IPU"):
        poptorch.ipuHardwareVersion()


@pytest.mark.parametrize("by_environment", [True, False])
def test_a_host_can_be_set_to_tell_of_ipus(by_environment, monkeypatch):
    monkeypatch.setattr(host, "_settings", type(host._settings)())
    if by_environment:
        monkeypatch.setenv("POPTORCH_HOST_IPUS", "2")
    else:
        host.configure(ipus=2)
    assert poptorch.ipuHardwareIsAvailable(2) and not poptorch.ipuHardwareIsAvailable(3)
    assert poptorch.ipuHardwareVersion() == 2
    for wrong in (-1, "some"):
        with pytest.raises(poptorch.Error, match="ipus is"):
            host.configure(ipus=wrong)


def test_ids_and_attributes_of_device_code_are_refused():
    with pytest.raises(poptorch.Error, match="getIpuTensorId"):
        poptorch.getIpuTensorId(torch.ones(1))
    with pytest.raises(poptorch.Error, match="accessAttributes"):
        poptorch.accessAttributes("0")


def test_marks_appear_in_the_profiler_and_methods_work_as_before():
    class Adder:
        def add(self, x, y=1):
            """Adds."""
            return x + y

    channel = poptorch.profiling.Channel("loop")
    adder = Adder()
    assert channel.instrument(adder, "add") is adder and adder.add.__doc__ == "Adds."
    with torch.profiler.profile() as profile:
        assert adder.add(2, y=3) == 5
        with channel.tracepoint("epoch"):
            pass
    assert {"loop.add", "loop.epoch"} <= {event.name for event in profile.events()}
    with pytest.raises(AttributeError):
        channel.instrument(adder, "subtract")


@pytest.mark.parametrize(
    "ref, other, agree",
    [
        (torch.ones(2), torch.ones(2) + 1e-7, True),
        (torch.ones(2), torch.ones(2) + 1e-2, False),
        (torch.ones(2), torch.ones(2, 1), False),
        (torch.ones(2), torch.ones(2).half(), True),
        ([torch.ones(1), {"a": 1.0}], (torch.ones(1), {"a": 1.0 + 1e-9}), True),
        ([torch.ones(1)], [torch.ones(1)] * 2, False),
        ({"a": 1}, {"b": 1}, False),
        (None, None, True),
        (None, torch.ones(1), False),
        ("x", "x", True),
        (1, 2, False),
        (torch.tensor(float("nan")), torch.tensor(float("nan")), True),
    ],
)
def test_results_agree_to_rounding_and_in_shape(ref, other, agree):
    assert allclose(ref, other) is agree
