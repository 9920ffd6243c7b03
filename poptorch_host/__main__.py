# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Runs a PopTorch program on this package: `python -m poptorch_host program.py ARGS` or `... -m module ARGS`.

A new interpreter replaces this process, so that arguments, exit code, `__main__` and tracebacks are those of
`python program.py ARGS`. The only difference is an additional folder on PYTHONPATH, which child processes inherit.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import List

_USAGE = "usage: python -m poptorch_host PROGRAM.py [ARGS ...]\n       python -m poptorch_host -m MODULE [ARGS ...]"
_SHIM = str(Path(__file__).resolve().parent / "shim")


def main(arguments: List[str]) -> int:
    """Replaces this process by the program. Returns an exit code if there is no program to run."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    search = [_SHIM, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(search)
    if sys.flags.ignore_environment:
        print(
            "poptorch_host: -I and -E hide PYTHONPATH, through which the program finds poptorch: remove these flags",
            file=sys.stderr,
        )
        return 2
    # as multiprocessing takes them for its own interpreters
    flags: List[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # not in typeshed
    flags += ["-u"] if getattr(sys.stdout, "write_through", False) else []  # not among them, but torchrun passes it
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *flags, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
