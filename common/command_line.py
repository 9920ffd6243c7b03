# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Command lines: parsing without abbreviations or unknown flags, and errors as one line with an exit code."""

import argparse
import signal
import sys
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

from common.errors import EXIT_OK, EXIT_PREEMPTED, Refusal
from utils import nearest


class CommandLine(argparse.ArgumentParser):
    """An argument parser whose complaints are refusals, with the nearest flag for a mistyped one."""

    def error(self, message: str) -> Any:
        """Called by argparse with what is wrong."""
        raise Refusal(f"{message}; see --help")

    def parse(self, argv: Optional[Sequence[str]]) -> argparse.Namespace:
        """Parses `argv` (None: the command line); nothing unknown is let through."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [name for action in self._actions for name in action.option_strings]
            raise Refusal(f"unknown argument {unknown[0]}{nearest(unknown[0].split('=')[0], flags)}")
        return args


def run_command(main: Callable[[], None]) -> int:
    """Runs an entry point and turns refusals into one line on standard error and an exit code.

    Anything but a refusal or Ctrl-C is a fault of ours and keeps its traceback.
    """
    try:
        main()
    except Refusal as refusal:
        if refusal.code == EXIT_PREEMPTED:  # torchrun ends those that are still leaving when the first has left
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(f"{Path(sys.argv[0]).name}: {refusal}", file=sys.stderr)
        return refusal.code
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        return 130
    return EXIT_OK
