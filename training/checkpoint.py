# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Checkpoints: one file format, saved atomically, verified before use.

A checkpoint is a zip archive written by torch.save that holds only plain tensors and containers, with a digest of the
whole file in the archive's comment. The output folder of a run has:

    last.pth             the newest state
    previous.pth         the one before, in case the newest is damaged
    best.pth             the state with the best validation accuracy
    update-00001234.pth  the last TRAIN.KEEP states, named by their number of updates
"""

import errno
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, cast

import torch

from common import seal
from common.archive import DamagedFile, read_archive, tensors_of
from common.errors import EXIT_CHECKPOINT, EXIT_DATA, EXIT_RESOURCE, Refusal
from common.files import TRANSIENT_ERRORS, open_regular
from common.logs import logger
from models.weight_files import BadFile, Contents, opened
from training import schema
from utils import reason

LAST, PREVIOUS, BEST = "last.pth", "previous.pth", "best.pth"
KEPT = re.compile(r"update-(\d{8,})\.pth")
ATTEMPTS = 2  # to save, in case of transient storage errors
OTHER_CLASSES = "check --data-path, or fine-tune the weights by --pretrained-model in another --output"
CHUNK = 1 << 20  # bytes read at once for a digest

# What to do about a system error before running the same command again.
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "your quota is used up: free some space",
    errno.EROFS: "the file system is read-only: mount it writable, or choose another --output",
    errno.EACCES: "the folder's permissions do not allow it: change them, or choose another --output",
    errno.EPERM: "the folder's permissions do not allow it: change them, or choose another --output",
    errno.EIO: "the storage reports errors: check the system log, or choose another --output",
    errno.EFBIG: "files of this size are not allowed here: see ulimit -f, or choose another --output",
    errno.EISDIR: "a folder has a name that the checkpoint needs: move it away",
    errno.ENOTEMPTY: "a folder has a name that the checkpoint needs: move it away",
    errno.ENOENT: "the output folder is gone: was it moved or deleted?",
}


def load(path: Path) -> Dict[str, Any]:
    """The checkpoint at `path`, verified.

    Raises:
        Refusal: if the file is missing, damaged or not a checkpoint of this program.
    """
    try:
        return _load(path)
    except DamagedFile as error:
        raise Refusal(f"checkpoint {path} cannot be used: {error}", EXIT_CHECKPOINT) from error


def load_own(
    path: Path, foreign: Optional[Callable[[Contents], Optional[Dict[str, Any]]]] = None
) -> Optional[Dict[str, Any]]:
    """The checkpoint at `path`, verified; for a valid file of another program, what `foreign` returns, or None.

    Args:
        foreign: called with the open contents of such a file, which may hold objects of any class; raises BadFile.

    Raises:
        Refusal: if the file is missing or damaged.
    """
    try:
        with opened(path) as contents:
            if not schema.looks_own(contents.values):
                return foreign(contents) if foreign else None
    except BadFile as error:
        raise Refusal(f"checkpoint {path} cannot be used: {error}", EXIT_CHECKPOINT) from error
    return load(path)


def find(folder: Path) -> Optional[Tuple[Path, Dict[str, Any]]]:
    """The newest valid checkpoint of an output folder with its path; None if there is no checkpoint.

    This is last.pth or previous.pth. The others are used only if both are lost: they may be newer, but left over from
    before the run was restarted from an older state.

    Damaged checkpoints are renamed once a valid one is found, so that the next save does not make one the previous.

    Raises:
        Refusal: if there are checkpoints and none of them is valid.
    """
    found: Optional[Tuple[Path, Dict[str, Any]]] = None
    damaged: List[Path] = []
    for name in (LAST, PREVIOUS, BEST, *reversed(kept(folder))):
        path = folder / name
        if not os.path.lexists(path):
            continue
        try:
            state = _load(path)
        except DamagedFile as error:
            logger.warning("checkpoint %s is skipped: %s", path, error)
            damaged.append(path)
            continue
        if found is None or state["progress"]["update"] > found[1]["progress"]["update"]:
            found = path, state
        if name in (LAST, PREVIOUS):
            break
    if damaged and found is None:
        raise Refusal(f"no checkpoint in {folder} can be used: move them away to start over", EXIT_CHECKPOINT)
    for path in damaged:
        _set_aside(path)
    return found


def kept(folder: Path) -> List[str]:
    """Names of the checkpoints kept by TRAIN.KEEP, ordered by update."""
    return sorted((path.name for path in folder.iterdir() if KEPT.fullmatch(path.name)), key=_update_of)


def save(folder: Path, state: Mapping[str, Any], is_best: bool, keep: int = 0) -> None:
    """Saves `state` as last.pth, and as best.pth if `is_best`; the old last.pth becomes previous.pth.

    There is a valid checkpoint at any time: the new file is written beside the old ones, synchronised and read back
    before anything is renamed or deleted.

    Args:
        keep: how many of the latest checkpoints to keep in addition, named by their update.

    Raises:
        Refusal: if it cannot be saved; the existing files are unchanged.
    """
    path = folder / LAST
    temporary = folder / f".{LAST}.tmp"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _write(temporary, dict(state, format=schema.FORMAT))
            _put_in_place(temporary, folder, state["progress"]["update"], is_best, keep)
            return
        except (OSError, RuntimeError, DamagedFile) as error:
            cause = _system_error(error)
            if cause is None:
                raise
            if temporary.is_file():
                temporary.unlink()
            if cause.errno in TRANSIENT_ERRORS and attempt < ATTEMPTS:
                logger.warning("checkpoint %s could not be saved, trying again: %s", path, reason(cause))
                continue
            remedy = REMEDIES.get(cause.errno or 0, "fix this")
            raise Refusal(
                f"checkpoint {path} of {_megabytes(state)} cannot be saved: {cause}; {remedy} "
                "and run the same command again",
                EXIT_RESOURCE,
            ) from error


def remove_leftovers(folder: Path) -> None:
    """Deletes the temporary files of a killed run.

    Raises:
        Refusal: if one of them is not a regular file, and so not of a run.
    """
    for pattern in (".*.tmp", ".probe.*"):
        for leftover in folder.glob(pattern):
            if os.path.lexists(leftover) and (leftover.is_symlink() or not leftover.is_file()):
                raise Refusal(f"{leftover} is in the way of this run's temporary files: move it away")
            leftover.unlink(missing_ok=True)  # another run that is starting may delete its probe


def weights_of(state: Mapping[str, Any], averaged: bool, path: Path) -> Mapping[str, torch.Tensor]:
    """The weights of a checkpoint, or their moving average if `averaged`.

    Raises:
        Refusal: if it has no averaged weights.
    """
    if averaged and "ema" not in state:
        raise Refusal(
            f"checkpoint {path} has no averaged weights (EMA): leave MODEL.PRETRAINED_EMA and --use-ema out",
            EXIT_CHECKPOINT,
        )
    return state["ema" if averaged else "model"]


def load_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Loads a checkpoint's weights into a model of the same architecture.

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
    problems += [
        f"{key} is {weights[key].dtype}, not {own[key].dtype}"
        for key in own
        if key in weights and weights[key].is_floating_point() != own[key].is_floating_point()
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise Refusal(
            f"checkpoint {path} has another architecture: {shown}; give the --cfg, --opts and --num-classes of its run",
            EXIT_CHECKPOINT,
        )
    model.load_state_dict(weights)


def check_classes(path: Path, trained: Sequence[str], found: Sequence[str]) -> List[str]:
    """The names of the classes; raises `Refusal` if the data set and the checkpoint label classes differently.

    If one of them only numbers its classes, the names come from the other.
    """
    if _numbered(found) and not _numbered(trained) and len(found) <= len(trained):
        logger.info("the data set has no class names: they are taken from checkpoint %s", path)
        return list(trained)
    if _numbered(trained) and len(found) == len(trained):
        return list(found)
    if len(trained) != len(found):
        raise Refusal(
            f"the data set has {len(found)} classes, checkpoint {path} has {len(trained)}: {OTHER_CLASSES}", EXIT_DATA
        )
    for index, names in enumerate(zip(found, trained)):
        if names[0] != names[1]:
            raise Refusal(
                f"class {index} of the data set is {names[0]}, but {names[1]} in checkpoint {path}: {OTHER_CLASSES}",
                EXIT_DATA,
            )
    return list(trained)


def _numbered(names: Sequence[str]) -> bool:
    return all(name == str(label) for label, name in enumerate(names))


def _load(path: Path) -> Dict[str, Any]:
    return schema.verified(*read_archive(path))


def _set_aside(path: Path) -> None:
    """Renames a damaged checkpoint, which protects it from being overwritten."""
    number = 1
    while os.path.lexists(path.with_name(f"{path.name}.damaged-{number}")):
        number += 1
    aside = path.with_name(f"{path.name}.damaged-{number}")
    os.replace(path, aside)
    logger.warning("%s is kept as %s", path, aside)


def _write(temporary: Path, state: Mapping[str, Any]) -> None:
    """Writes and synchronises a sealed file, and verifies it by reading it back.

    Raises:
        DamagedFile: if its contents differ from what was written.
    """
    with open(open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as stream:
        sealing = seal.SealingStream(stream)
        torch.save(state, cast(BinaryIO, sealing))  # torch.save only writes to it
        sealing.seal()
        stream.flush()
        os.fsync(stream.fileno())
    with open(open_regular(temporary), "rb") as stream:
        digest, left = hashlib.sha256(), os.fstat(stream.fileno()).st_size - seal.LENGTH
        while left > 0:
            chunk = stream.read(min(CHUNK, left))
            if not chunk:
                break
            digest.update(chunk)
            left -= len(chunk)
        if stream.read() != seal.MARK + digest.hexdigest().encode():
            raise DamagedFile("its contents differ from what was written") from OSError(errno.EIO, "wrong contents")


def _put_in_place(temporary: Path, folder: Path, update: int, is_best: bool, keep: int) -> None:
    """Renames a verified new checkpoint, and deletes those beyond TRAIN.KEEP."""
    path = folder / LAST
    if path.exists():
        os.replace(path, folder / PREVIOUS)
    os.replace(temporary, path)
    if is_best:
        _link(path, folder / BEST)
    if keep:
        _link(path, folder / f"update-{update:08d}.pth")
        _prune(folder, update, keep)
    _sync_folder(folder)


def _prune(folder: Path, update: int, keep: int) -> None:
    """Deletes all but the last `keep` kept checkpoints; those after `update` are of an abandoned run, and go first."""
    oldest_first = sorted(kept(folder), key=lambda name: (_update_of(name) <= update, _update_of(name)))
    for name in oldest_first[:-keep]:
        (folder / name).unlink()


def _update_of(name: str) -> int:
    """The update in the name of a kept checkpoint."""
    return int(KEPT.sub(r"\1", name))


def _megabytes(state: Mapping[str, Any]) -> str:
    return f"{sum(tensor.numel() * tensor.element_size() for _, tensor in tensors_of(state)) / 1e6:.1f} MB"


def _system_error(error: BaseException) -> Optional[OSError]:
    """The OSError behind an error of torch.save; None if there is none."""
    cause: Optional[BaseException] = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _link(source: Path, target: Path) -> None:
    """Atomically makes `target` a hard link to `source`, or a copy on file systems without links."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # no hard links: a copy takes as much space again
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _sync_folder(folder: Path) -> None:
    """Makes renames in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
