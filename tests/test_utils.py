# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What the commands have in common."""

import logging

import pytest

from common.logs import console_log, logger


@pytest.mark.parametrize("is_leader, said", [(True, ["news", "trouble"]), (False, ["trouble"])])
def test_leader_logs_and_others_only_warn(is_leader, said, capsys):
    with console_log(is_leader):
        logger.info("news")
        logger.warning("trouble")
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == said


def test_console_log_leaves_the_logger_as_it_was():
    before = logger.level, logger.propagate, list(logger.handlers)
    with pytest.raises(KeyError), console_log(True):
        assert logger.level == logging.INFO and not logger.propagate
        raise KeyError
    assert (logger.level, logger.propagate, logger.handlers) == before
