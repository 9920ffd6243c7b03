# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Measures how long training waits for data, and suggests how to shorten it."""

import time
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List

from yacs.config import CfgNode

from common.cores import usable_cores
from common.logs import logger
from dataset.shards import is_sharded

TOLERATED = 0.1  # share of time above which the log names remedies
ENOUGH = 20  # batches before a share says how fast data comes, not how long its workers take to start


class LoaderWait(Iterator[Any]):
    """Iterates over batches and measures how long the consumer waits for them.

    Args:
        batches: from a loader.
        clock: returns seconds.
    """

    def __init__(self, batches: Iterable[Any], clock: Callable[[], float] = time.monotonic):
        self._batches = iter(batches)
        self._clock = clock
        self._waited = 0.0
        self._start = self._mark = clock()
        self._waited_at_mark = 0.0
        self.count = 0  # of batches so far

    def __next__(self) -> Any:
        since = self._clock()
        try:
            batch = next(self._batches)
        finally:
            self._waited += self._clock() - since
        self.count += 1
        return batch

    @property
    def share(self) -> float:
        """The share of time spent waiting since the start, 0 to 1."""
        return self._waited / max(self._clock() - self._start, 1e-9)

    def read(self) -> float:
        """The share of time spent waiting since the last `read` or the start; starts a new interval."""
        now = self._clock()
        share = (self._waited - self._waited_at_mark) / max(now - self._mark, 1e-9)
        self._mark, self._waited_at_mark = now, self._waited
        return share


def report_wait(config: CfgNode, epoch: int, waits: LoaderWait) -> None:
    """Logs the share of an epoch's time spent waiting for data.

    Names remedies if it is above TOLERATED over ENOUGH batches: in fewer, most of the wait is for the first one.
    """
    text = f"epoch: {epoch}/{config.TRAIN.EPOCHS} waited for data: {100 * waits.share:.1f} % of the time"
    if waits.share > TOLERATED and waits.count >= ENOUGH:
        logger.warning("%s; to shorten it: %s", text, ", ".join(remedies(config)))
    else:
        logger.info("%s", text)


def remedies(config: CfgNode) -> List[str]:
    """Changes that speed up data loading, the most effective first."""
    data = config.DATA
    cores = usable_cores()
    if data.DATASET == "generated":
        return ["--synthetic device"]
    found = []
    if data.NUM_WORKERS < cores:
        found.append(f"more --num-workers (now {data.NUM_WORKERS}; {cores} cores)")
    if data.INPUT_DTYPE == "float":
        found.append("--opts DATA.INPUT_DTYPE uint8")
    if data.LOADER == "sync":
        found.append("--opts DATA.LOADER async")
    if data.DATASET == "imagenet" and not data.ZIP_MODE and not is_sharded(Path(data.DATA_PATH)):
        found.append("python -m dataset.prepare shards if storage is slow with many files")
    return found or ["a host with more cores, or faster storage"]
