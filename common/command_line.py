# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Command lines: strict parsing; errors become one line with an exit code."""

import argparse
import io
import signal
import sys
from pathlib import Path
from typing import Any, Callable, Collection, Optional, Sequence

from common.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_PREEMPTED, Refusal
from utils import nearest


def _nowhere(flag: str, ours: Collection[str]) -> str:
    return ""


class CommandLine(argparse.ArgumentParser):
    """An argument parser that raises `Refusal`, and suggests the closest flag for a mistyped one."""

    def error(self, message: str) -> Any:
        """Called by argparse for invalid arguments."""
        raise Refusal(f"{message}; see --help")

    def __init__(self, *args: Any, elsewhere: Callable[[str, Collection[str]], str] = _nowhere, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._elsewhere = elsewhere

    def parse(self, argv: Optional[Sequence[str]]) -> argparse.Namespace:
        """Parses `argv`, by default the arguments of the process; raises `Refusal` for unknown ones."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [name for action in self._actions for name in action.option_strings]
            meant = self._elsewhere(unknown[0], flags) or nearest(unknown[0].split("=")[0], flags)
            raise Refusal(f"unknown argument {unknown[0]}{meant}")
        return args


def run_command(main: Callable[[], None]) -> int:
    """Runs an entry point and returns its exit code; a `Refusal` is printed as one line on standard error.

    Any other exception except Ctrl-C is a bug of this program and keeps its traceback. Characters that standard output
    cannot encode are escaped, as Python does on standard error: a file name must not end a run.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # not if captured by a test
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except Refusal as refusal:
        if refusal.code == EXIT_PREEMPTED:  # torchrun terminates the others as soon as one exits
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(f"{Path(sys.argv[0]).name}: {refusal}", file=sys.stderr)
        return refusal.code
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK
