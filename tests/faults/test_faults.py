# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The faults that take a moment each are part of the suite; those that train belong to `python -m tests.faults`."""

import importlib
import operator

import pytest

from config import get_config
from tests.faults import kills
from tests.faults.__main__ import parse
from tests.faults.files import YAML_BOMBS, require_refused
from tests.faults.table import FAULTS, inject

pytest_plugins = ["tests.digits"]


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if not fault.whole_runs])
def test_fault_is_survived_each_time(name, tmp_path):
    runs = FAULTS[name].runs if name == "foreign" else 5  # of which each is another case
    result = inject(FAULTS[name], runs, 1, tmp_path, tmp_path)
    assert result.survived == result.runs == runs


def test_worker_killed_during_a_save_is_told_as_that_and_the_run_goes_on(digits, tmp_path):
    assert inject(FAULTS["kill-worker"], 1, 1, tmp_path, digits).survived == 1


@pytest.mark.parametrize("index", range(len(YAML_BOMBS)))
def test_yaml_that_is_no_configuration_is_one_line(index, tmp_path):
    (tmp_path / "a.yaml").write_text("SEED: 1\n")
    (tmp_path / "bomb.yaml").write_text(YAML_BOMBS[index])
    require_refused(lambda: get_config(str(tmp_path / "bomb.yaml")))


def test_unknown_fault_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["flop"])
    assert "flop is no fault: kill" in capsys.readouterr().err


@pytest.mark.parametrize("phase", sorted(kills.PHASES))
def test_every_phase_has_a_function_in_the_program(phase):
    module, _, name = kills.PHASES[phase].where.partition(":")
    assert callable(operator.attrgetter(name)(importlib.import_module(module)))
