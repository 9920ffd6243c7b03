# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Exit of the command lines."""

import pytest

from common.command_line import run_command


def test_faults_of_ours_keep_their_traceback():
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(broken)
