# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Saves checkpoints in the background: training waits for a copy of the state, not for the disk."""

import concurrent.futures
import contextlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import torch

from common.archive import first_non_finite
from common.errors import EXIT_NONFINITE, Refusal
from common.logs import logger
from training import checkpoint, output_folder
from training.schema import FINITE
from training.status import Status


class Saver:
    """Writes the checkpoints of a run, one at a time, in the leader of a run with an output folder.

    Args:
        folder: output folder of the run; None: nothing is saved.
        status: updated after each checkpoint.
        keep: TRAIN.KEEP.
        report: called with the rows of metrics after each checkpoint; must not raise.
    """

    def __init__(
        self,
        folder: Optional[Path],
        status: Status,
        keep: int,
        report: Callable[[List[Dict[str, Any]]], None] = lambda rows: None,
    ) -> None:
        self._folder = folder
        self._status = status
        self._keep = keep
        self._report = report
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="save")
        self._pending: Optional[concurrent.futures.Future[None]] = None

    @contextlib.contextmanager
    def running(self) -> Iterator["Saver"]:
        """Waits for the last checkpoint at the end of the context, even after an error.

        Raises:
            Refusal: if it could not be saved; an error raised inside the context takes precedence.
        """
        try:
            yield self
        except BaseException:  # KeyboardInterrupt, too: what was being saved is finished first
            try:
                self.finish()
            except Refusal as refusal:
                logger.error("%s", refusal)
            raise
        finally:
            self._thread.shutdown()
        self.finish()

    def start(self, state: Dict[str, Any], is_best: bool) -> None:
        """Starts saving a copy of `state`, after the previous save is complete.

        Raises:
            Refusal: if the previous save failed.
        """
        self.finish()
        if self._folder is not None:
            self._pending = self._thread.submit(self._save, self._folder, _copied(state), is_best)

    def check(self) -> None:
        """Raises the Refusal of a failed save, without waiting."""
        if self._pending is not None and self._pending.done():
            self.finish()

    def finish(self) -> None:
        """Waits for the save in progress.

        Raises:
            Refusal: if it failed; the existing files are unchanged.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _save(self, folder: Path, state: Dict[str, Any], is_best: bool) -> None:
        update, epochs = state["progress"]["update"], state["progress"]["epochs"]
        broken = first_non_finite({name: state[name] for name in FINITE if name in state})
        if broken is not None:
            raise Refusal(
                f"{broken} is not finite after update {update}; the checkpoints are unchanged", EXIT_NONFINITE
            )
        checkpoint.save(folder, state, is_best, self._keep)
        if epochs:
            output_folder.write_metrics(folder, epochs)
            self._report(epochs)
        self._status.write()


def _copied(value: Any) -> Any:
    """A deep copy on the CPU."""
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return value
