# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Every program of the repository that can be started says how, and refuses what it does not know."""

import runpy
import sys
from pathlib import Path

import pytest

from common.errors import EXIT_USAGE

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    ".",
    "benchmarks",
    "dataset",
    "models",
    "poptorch_host",
    "tools",
    "tools/program_data",
    "tests",
    "tests/differential",
    "tests/faults",
)
# They take a program of the user, and programs on standard input, instead of options.
OTHERS = ("poptorch_host/__main__.py", "tests/differential/runner.py")
COMMANDS = sorted(
    str(path.relative_to(ROOT))
    for folder in FOLDERS
    for path in (ROOT / folder).glob("*.py")
    if '\nif __name__ == "__main__":\n' in path.read_text(encoding="utf-8")
)


def started(command, argument, monkeypatch):
    """The exit code of a program, which is run in this process."""
    monkeypatch.setattr(sys, "argv", [command, argument])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / command), run_name="__main__")
    return ended.value.code or 0


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in OTHERS])
def test_command_has_help_and_refuses_unknown_arguments(command, monkeypatch, capsys):
    assert started(command, "--help", monkeypatch) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: ") and len(shown.split("\n\n")) > 2, "a description and the arguments"
    assert started(command, "--no-such-argument", monkeypatch) == EXIT_USAGE
    assert capsys.readouterr().err
