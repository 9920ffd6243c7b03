# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The log of a run: what the console shows is in the file, from the first line on."""

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
