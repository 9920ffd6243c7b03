# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""`pytest --backend host|sdk`: which PopTorch the tests run on (see tests/backend.py).

`pytest --backend sdk` without a file runs ACCEPTANCE, the tests that an IPU's owner needs.
"""

import gc
import importlib
import os

import pytest

from tests import BACKEND_VARIABLE

# The tests whose results depend on the PopTorch under test; the others would only repeat what --backend host shows.
ACCEPTANCE = (
    "tests/poptorch_host",
    "tests/differential",
    "tests/test_optimizer.py",
    "tests/test_options.py",
    "tests/dataset/test_build_ipu.py",
    "tests/dataset/test_handover.py",
    "tests/dataset/test_restart_markers.py",
    "tests/dataset/test_shards.py",
    "tests/models/test_build.py",
    "tests/models/test_input_dtype.py",
    "tests/models/test_pipeline.py",
    "tests/training/test_averaging.py",
    "tests/training/test_nonfinite.py",
    "tests/training/test_pace.py",
    "tests/training/test_packed_data.py",
    "tests/training/test_prediction.py",
    "tests/training/test_resume.py",
    "tests/training/test_tables.py",
    "tests/sdk",
    "swin_test.py",
)


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
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args = [str(config.rootpath / path) for path in ACCEPTANCE]
    os.environ[BACKEND_VARIABLE] = name
    importlib.import_module("tests.forked").preload()  # before an asynchronous loader starts the server


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays: a tenth of the time was spent on looking through it again


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
