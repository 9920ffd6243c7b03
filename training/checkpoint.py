# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Checkpoints: one file format, saved atomically, verified before use.

A checkpoint is a zip archive as torch.save writes it, holding plain tensors and plain containers only, so that it loads
with weights-only unpickling and its CRCs tell a damaged file from a good one. A run keeps three in its output folder:

    last.pth      the newest state
    previous.pth  the one before, should the newest be damaged
    best.pth      the state with the best validation accuracy
"""

import os
import shutil
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch

from common.archive import DamagedFile, first_non_finite, read_archive, tensors_of
from common.errors import EXIT_CHECKPOINT, EXIT_DATA, EXIT_RESOURCE, Refusal
from common.logs import logger

FORMAT = 1
LAST, PREVIOUS, BEST = "last.pth", "previous.pth", "best.pth"
FIELDS = ("format", "model", "optimizer", "rng_states", "progress", "config", "classes")


def load(path: Path) -> Dict[str, Any]:
    """The checkpoint at `path`, verified.

    Raises:
        Refusal: when the file is missing, damaged or not a checkpoint of this program.
    """
    try:
        return _load(path)
    except DamagedFile as error:
        raise Refusal(f"checkpoint {path} cannot be used: {error}", EXIT_CHECKPOINT) from error


def load_own(path: Path) -> Optional[Dict[str, Any]]:
    """The checkpoint at `path`, verified, or None when it is a good file that another program wrote.

    Raises:
        Refusal: when the file is missing or damaged.
    """
    try:
        state = read_archive(path)
        return _verified(state) if isinstance(state, dict) and all(field in state for field in FIELDS) else None
    except DamagedFile as error:
        raise Refusal(f"checkpoint {path} cannot be used: {error}", EXIT_CHECKPOINT) from error


def find(folder: Path) -> Optional[Tuple[Path, Dict[str, Any]]]:
    """The newest good checkpoint of an output folder with its path; None where there is none at all.

    Raises:
        Refusal: when there are checkpoints and not one of them is good.
    """
    good: List[Tuple[Path, Dict[str, Any]]] = []
    seen = False
    for name in (LAST, PREVIOUS, BEST):
        path = folder / name
        if not path.exists():
            continue
        seen = True
        try:
            good.append((path, _load(path)))
        except DamagedFile as error:
            logger.warning("checkpoint %s is skipped: %s", path, error)
        if good and name == LAST:
            return good[0]
    if seen and not good:
        raise Refusal(f"no checkpoint in {folder} can be used: move them away to start anew", EXIT_CHECKPOINT)
    return max(good, key=lambda found: found[1]["progress"]["update"]) if good else None


def save(folder: Path, state: Mapping[str, Any], is_best: bool) -> None:
    """Makes `state` the folder's last checkpoint, and its best if it is; the old last one becomes the previous one.

    At no moment is there less than one good checkpoint.

    Raises:
        Refusal: when the disk refuses; what was there before is still there.
    """
    path = folder / LAST
    temporary = folder / f".{LAST}.tmp"
    try:
        with open(temporary, "wb") as stream:
            torch.save(dict(state, format=FORMAT), stream)
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            os.replace(path, folder / PREVIOUS)
        os.replace(temporary, path)
        if is_best:
            _link(path, folder / BEST)
        _sync_folder(folder)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise Refusal(
            f"checkpoint {path} of {_megabytes(state)} cannot be saved: {_system_error(error)}; free some "
            "space and run the same command again",
            EXIT_RESOURCE,
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Deletes what a killed run left behind: files that it had not finished writing."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Puts a checkpoint's weights into a model of the same architecture.

    Raises:
        Refusal: naming the first keys and shapes that differ.
    """
    own = model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in weights]
    problems += [f"{key} is not in the model" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, not {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise Refusal(f"checkpoint {path} is of another architecture: {shown}", EXIT_CHECKPOINT)
    model.load_state_dict(weights)


def check_classes(path: Path, trained: Sequence[str], found: Sequence[str]) -> None:
    """Refuses a data set whose labels mean something else than those the checkpoint was trained with."""
    if len(trained) != len(found):
        raise Refusal(f"the data set has {len(found)} classes, checkpoint {path} knows {len(trained)}", EXIT_DATA)
    for index, names in enumerate(zip(found, trained)):
        if names[0] != names[1]:
            raise Refusal(
                f"class {index} of the data set is {names[0]}, but {names[1]} in checkpoint {path}", EXIT_DATA
            )


def _load(path: Path) -> Dict[str, Any]:
    state = read_archive(path)
    if not isinstance(state, dict) or any(field not in state for field in FIELDS):
        raise DamagedFile("it is no checkpoint of this program; give foreign weights to --pretrained-model")
    return _verified(state)


def _verified(state: Dict[str, Any]) -> Dict[str, Any]:
    """The state, when this program can go on from it."""
    if state["format"] != FORMAT:
        raise DamagedFile(f"its format is {state['format']}, this program reads {FORMAT}")
    broken = first_non_finite({name: state[name] for name in ("model", "optimizer")})
    if broken is not None:
        raise DamagedFile(f"its {broken} is not finite")
    return state


def _megabytes(state: Mapping[str, Any]) -> str:
    return f"{sum(tensor.numel() * tensor.element_size() for _, tensor in tensors_of(state)) / 1e6:.1f} MB"


def _system_error(error: BaseException) -> BaseException:
    """The system's error behind one of torch.save, which only tells that it could not go on where it was."""
    cause: Optional[BaseException] = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return error if cause is None else cause


def _link(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, or a copy where the file system has no links; atomically."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # no hard links here: the copy costs a checkpoint's size once more
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _sync_folder(folder: Path) -> None:
    """Makes renames in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
