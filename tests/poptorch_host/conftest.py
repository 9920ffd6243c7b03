# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What tests of several modules use."""

import logging

import pytest


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Records what the package logs, at every level."""
    caplog.set_level(logging.DEBUG, logger="poptorch::python")
    return caplog
