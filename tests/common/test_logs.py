# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The log of a run: what the console shows is in the file, from the first line on."""

import warnings

import pytest

from common.logs import console_log, file_log, logger


def test_lines_from_before_the_file_was_open_are_in_it(tmp_path, capsys):
    with console_log(is_leader=True):
        logger.info("going on from somewhere")
        logger.warning("another configuration")
        with file_log(tmp_path / "log.txt"):
            logger.info("first step")
        with file_log(tmp_path / "second.txt"):
            logger.info("once more")
    assert (tmp_path / "log.txt").read_text() + (tmp_path / "second.txt").read_text() == capsys.readouterr().out
    assert (tmp_path / "log.txt").read_text().count("\n") == 3


@pytest.mark.filterwarnings("default")
def test_warnings_of_libraries_are_lines_of_the_log_and_of_nothing_else_afterwards(tmp_path, capfd):
    before = warnings.showwarning
    with console_log(is_leader=False), file_log(tmp_path / "log.txt"):
        warnings.warn("eight processes\non two cores", stacklevel=1)
    assert (tmp_path / "log.txt").read_text().endswith("WARNING UserWarning: eight processes on two cores\n")
    assert capfd.readouterr().err == ""
    assert warnings.showwarning is before


@pytest.mark.filterwarnings("always")
def test_warning_that_a_library_repeats_is_logged_once(capsys):
    with console_log(is_leader=True):
        for number in (1, 1, 2):
            warnings.warn(f"worker {number}", stacklevel=1)
    assert [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()] == ["1", "2"]
