# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What tests of several modules use."""

import logging

import pytest
from poptorch_host import host


@pytest.fixture(autouse=True)
def own_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of a fresh process: the application's, which other tests of this process made, do not hold here."""
    monkeypatch.setattr(host, "_settings", type(host._settings)())


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Records what the package logs, at every level."""
    caplog.set_level(logging.DEBUG, logger="poptorch::python")
    return caplog
