# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""`pytest --backend host|sdk`: which PopTorch the tests run on (see tests/backend.py)."""

import importlib
import os

import pytest

from tests import BACKEND_VARIABLE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=("host", "sdk"),
        default="host",
        help="the PopTorch under test: poptorch_host, or the SDK's poptorch of this environment (default: host)",
    )


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("backend")
    if name == "sdk":
        _check_sdk()
    os.environ[BACKEND_VARIABLE] = name


def pytest_report_header() -> str:
    poptorch = importlib.import_module("tests.backend").poptorch
    return f"PopTorch under test: {poptorch.__name__} {poptorch.__version__}"


def _check_sdk() -> None:
    """Refuses to run tests of the SDK on anything else."""
    try:
        found = importlib.import_module("poptorch").__name__
    except ImportError as error:
        raise pytest.UsageError(f"--backend sdk needs the SDK's poptorch in this environment: {error}") from error
    if found != "poptorch":
        raise pytest.UsageError(f"--backend sdk needs the SDK's poptorch, and this is {found}")
