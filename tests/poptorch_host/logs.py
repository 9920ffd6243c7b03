# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Reads what was logged, for tests."""

import logging
from typing import List

import pytest


def warnings_in(log: pytest.LogCaptureFixture) -> List[str]:
    """The texts of the warnings so far."""
    return [record.getMessage() for record in log.records if record.levelno == logging.WARNING]
