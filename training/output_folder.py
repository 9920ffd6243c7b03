# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The output folder of a training run: one run at a time, its log, metrics and status."""

import contextlib
import csv
import fcntl
import importlib
import io
import json
import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import yaml
from yacs.config import CfgNode

from common.errors import EXIT_BUSY, EXIT_OK, Refusal
from common.files import write_atomically
from common.launch import Launch
from common.logs import file_log, logger
from training import checkpoint
from training.processes import ending_together
from utils import reason


@contextlib.contextmanager
def opened(config: CfgNode, launch: Launch) -> Iterator[Optional[Path]]:
    """The folder of the run, made, proved writable and kept from other runs while the context is open.

    The leader locks it for all processes. The lock dies with its process, so none can be left behind. A run that
    TRAIN.TRAINING_STEPS cuts short, as benchmarks do, may leave OUTPUT out: it has no folder and keeps nothing.

    Raises:
        Refusal: when no folder is named, a tag leads out of it, it cannot be written, or another run has it.
    """
    folder = Path(config.OUTPUT) / config.TAG
    if not config.OUTPUT and (config.TAG or not config.TRAIN.TRAINING_STEPS):
        raise Refusal("--output is needed: the folder for checkpoints, log and metrics")
    if Path(config.TAG).is_absolute() or ".." in Path(config.TAG).parts:
        raise Refusal(f"--tag {config.TAG} leads out of --output: give the name of a folder in it")
    if not config.OUTPUT or not launch.is_leader:
        yield folder if config.OUTPUT else None
        return
    _make(folder)
    with open(folder / ".lock", "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refusal(
                f"--output {folder} is in use by another run; choose another folder or wait", EXIT_BUSY
            ) from error
        except OSError as error:
            raise Refusal(
                f"--output {folder} cannot be locked against other runs: {reason(error)}; choose a "
                "folder on a file system that has locks"
            ) from error
        checkpoint.remove_leftovers(folder)
        yield folder


@contextlib.contextmanager
def recorded(folder: Optional[Path], launch: Launch, last_update: Callable[[], int]) -> Iterator[None]:
    """Logs to the folder and leaves status.json when the run ends: how, why, and where to go on from.

    torchrun flattens every exit code to 1; this file keeps the real one.
    """
    if folder is None or not launch.is_leader:
        yield
        return
    code, cause = EXIT_OK, ""
    try:
        with file_log(folder / "log.txt"), ending_together(launch):
            yield
    except Refusal as refusal:
        code, cause = refusal.code, str(refusal)
        raise
    except BaseException as error:
        code, cause = 1, f"{type(error).__name__}: {error}"
        raise
    finally:
        last = folder / checkpoint.LAST
        _note(
            folder / "status.json",
            json.dumps(
                {
                    "state": "done" if code == EXIT_OK else "stopped",
                    "exit_code": code,
                    "cause": cause,
                    "last_update": last_update(),
                    "checkpoint": str(last) if last.exists() else None,
                },
                indent=2,
            )
            + "\n",
        )


def open_tracker(config: CfgNode, launch: Launch) -> Callable[[Dict[str, Any]], None]:
    """Where rows of metrics also go: to Weights & Biases with --wandb (its WANDB_ variables apply), or nowhere.

    Raises:
        Refusal: when --wandb is given and its package is not installed.
    """
    if not config.WANDB or not launch.is_leader:
        return lambda row: None
    try:
        wandb = importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise Refusal(f"--wandb needs the package {error.name}: pip install wandb") from error
    wandb.init(project="swin", dir=config.OUTPUT or None, config=yaml.safe_load(config.dump()), resume="allow")
    return lambda row: wandb.log(row, step=row["update"])


def write_metrics(folder: Path, rows: List[Dict[str, Any]]) -> None:
    """Writes metrics.csv, one row an epoch; the whole file at once, so that a resumed run never repeats a row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[-1]))
    writer.writeheader()
    writer.writerows(rows)
    _note(folder / "metrics.csv", text.getvalue())


def _note(path: Path, text: str) -> None:
    """Replaces a file that tells of the run; where the disk refuses, the run goes on without it."""
    try:
        write_atomically(path, text)
    except OSError as error:
        logger.warning("%s cannot be written: %s", path, reason(error))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise Refusal(f"--output {folder} cannot be written: {reason(error)}; choose another folder") from error
