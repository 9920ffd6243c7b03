# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Exit and output of the command lines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.command_line import run_command


def test_faults_of_ours_keep_their_traceback():
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(broken)


def test_characters_that_the_locale_lacks_are_escaped():
    program = "from common.command_line import run_command; run_command(lambda: print('caf\\xe9'))"
    ascii_only = dict(os.environ, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    root = Path(__file__).resolve().parent.parent.parent
    ended = subprocess.run([sys.executable, "-c", program], cwd=root, env=ascii_only, capture_output=True, check=True)
    assert ended.stdout == b"caf\\xe9\n"
