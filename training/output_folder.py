# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The output folder of a training run: its lock, log, metrics and status."""

import contextlib
import csv
import fcntl
import io
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, TextIO

from yacs.config import CfgNode

from common.errors import EXIT_BUSY, Refusal
from common.files import open_regular
from common.launch import Launch
from common.logs import file_log
from training import checkpoint, status
from utils import reason

LOCK, LOG, METRICS, CONFIGURATION = ".lock", "log.txt", "metrics.csv", "config.yaml"


@contextlib.contextmanager
def opened(config: CfgNode, launch: Launch) -> Iterator[Optional[Path]]:
    """Creates the output folder, checks that it is writable, and locks it against other runs inside the context.

    The leader holds the lock for all processes, until it exits. A run without OUTPUT, which `arguments.check_complete`
    allows for benchmarks, has no folder and saves nothing.

    Raises:
        Refusal: if the tag leads out of the folder, it is not writable, or it is in use.
    """
    folder = Path(config.OUTPUT) / config.TAG
    if Path(config.TAG).is_absolute() or ".." in Path(config.TAG).parts:
        raise Refusal(f"--tag {config.TAG} leads out of --output: use the name of a subfolder")
    if not config.OUTPUT or not launch.is_leader:
        yield folder if config.OUTPUT else None
        return
    _make(folder)
    with _opened_lock(folder) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refusal(
                f"--output {folder} is in use by another run: choose another folder or wait", EXIT_BUSY
            ) from error
        except OSError as error:
            raise Refusal(
                f"--output {folder} cannot be locked against other runs: {reason(error)}; choose a "
                "folder on a file system with locks"
            ) from error
        checkpoint.remove_leftovers(folder)
        _check_names(folder)
        yield folder


@contextlib.contextmanager
def logged(folder: Optional[Path], launch: Launch) -> Iterator[None]:
    """While this context is open, the leader of a run with a folder also logs to log.txt.

    Raises:
        Refusal: if the log cannot be opened.
    """
    if folder is None or not launch.is_leader:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_log(folder / LOG))
        except OSError as error:
            raise Refusal(f"log {folder / LOG} cannot be written: {reason(error)}; move it away") from error
        yield


def write_configuration(folder: Optional[Path], config: CfgNode, launch: Launch) -> None:
    """Writes the whole configuration to config.yaml, a file for --cfg."""
    if folder is not None and launch.is_leader:
        status.note(folder / CONFIGURATION, config.dump())


def write_metrics(folder: Path, rows: List[Dict[str, Any]]) -> None:
    """Rewrites metrics.csv, with one row per epoch: a resumed run never repeats a row.

    Rows written by another version or configuration may have other columns.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(name for row in reversed(rows) for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    status.note(folder / METRICS, text.getvalue())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)  # another run may just have cleaned up
    except OSError as error:
        raise Refusal(f"--output {folder} cannot be written: {reason(error)}; choose another folder") from error


def _opened_lock(folder: Path) -> TextIO:
    try:
        return open(open_regular(folder / LOCK, os.O_RDWR | os.O_CREAT), "r+")
    except OSError as error:
        raise Refusal(f"{folder / LOCK} cannot be opened: {reason(error)}; move it away") from error


def _check_names(folder: Path) -> None:
    """Refuses folders, pipes and the like in place of the files of a run; links to files are accepted."""
    for name in (LOG, METRICS, status.NAME, checkpoint.PREVIOUS, checkpoint.BEST):
        path = folder / name
        if os.path.lexists(path) and not path.is_file():
            raise Refusal(f"{path} is not a regular file, but this run writes there: move it away")
