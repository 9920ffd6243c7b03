# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Result files: checks that they can be created before the work starts, and never overwrites one."""

import contextlib
import csv
import os
import signal
import sys
from pathlib import Path
from typing import Any, Iterable, Iterator, TextIO

from common.errors import EXIT_RESOURCE, EXIT_USAGE, Refusal
from common.files import new_path
from utils import reason


def check_free(path: Path) -> None:
    """Raises `Refusal` if `path` exists, or if its folder is missing or read-only."""
    folder = path.absolute().parent
    if os.path.lexists(path):
        raise Refusal(
            f"{path} exists already, and nothing is overwritten: give another name, or move it away", EXIT_USAGE
        )
    if not folder.is_dir():
        raise Refusal(f"{path}: folder {path.parent} does not exist", EXIT_USAGE)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refusal(f"{path} cannot be written: folder {path.parent} is read-only for this user", EXIT_RESOURCE)


@contextlib.contextmanager
def new_text(path: Path) -> Iterator[TextIO]:
    """A text stream for a new file, which appears at `path` if the context ends without an error.

    File names that are not UTF-8 keep their bytes.

    Raises:
        Refusal: if it exists by then or cannot be written.
    """
    try:
        with new_path(path) as temporary:
            with open(temporary, "x", encoding="utf-8", errors="surrogateescape", newline="") as stream:
                yield stream
    except OSError as error:
        raise Refusal(f"{path} cannot be written: {reason(error)}", EXIT_RESOURCE) from error


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """Exits quietly, as by SIGPIPE, if the reader of standard output goes away while the context prints.

    Raises:
        SystemExit: in this case.
        Refusal: if standard output cannot be written for another reason.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards the rest of the buffer
        if isinstance(error, BrokenPipeError):
            raise SystemExit(128 + signal.SIGPIPE) from error
        raise Refusal(f"standard output cannot be written: {reason(error)}", EXIT_RESOURCE) from error


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes a new CSV file (RFC 4180); raises as `new_text` does."""
    with new_text(path) as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
