# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""report.html of a run: collects its contents during training and writes it after each epoch's checkpoint."""

import datetime
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from yacs.config import CfgNode

import accelerator
from common import seal
from common.launch import Launch
from common.logs import logger
from configs.official import flat
from dataset.decode import BadImage, decode
from reports import manifest, page
from reports.results import Mistake, Results, build_results, data_uri
from training import checkpoint, status
from training.building import Run
from training.outcomes import Outcomes
from training.progress import Progress
from utils import one_line

NAME = "report.html"
SHOWN_MISTAKES = 24
Rows = Sequence[Dict[str, Any]]


class Reporter:
    """Writes the report in the leader of a run with an output folder; does nothing elsewhere.

    Errors are logged and do not stop the run.

    Args:
        folder: output folder of the run; None: no report.
        origins: what set each key, from `arguments.origins`.
    """

    def __init__(self, config: CfgNode, folder: Optional[Path], launch: Launch, origins: Mapping[str, str]) -> None:
        self._folder = folder if config.REPORT and launch.is_leader else None
        self._config = config
        self._origins = origins
        self._start = time.monotonic()
        self._results: Optional[Results] = None
        self._written = 0  # rows of the last page written
        self._facts: Dict[str, List[Tuple[str, str]]] = {}

    def begin(self, run: Run) -> None:
        """Collects what does not change during the run: data, code, devices."""
        if self._folder is None:
            return
        try:
            self._facts = {
                "data": _data_facts(run),
                "code": manifest.code_and_packages(accelerator.description()),
                "run": _run_facts(run),
            }
            if not page.plotly_script():
                logger.info("plotly is not installed: %s has no charts (pip install plotly)", NAME)
        except Exception as error:
            self._give_up(error)

    def note(self, run: Run, epoch: int, outcomes: Optional[Outcomes]) -> None:
        """Collects the results of the validation after `epoch`, counted from 1, and pictures of the worst mistakes."""
        if self._folder is None or outcomes is None:
            return
        try:
            found = _mistakes(run, outcomes)
            self._results = build_results(
                epoch, run.data.classes, outcomes.confusions(), outcomes.class_counts(), found
            )
        except Exception as error:
            self._give_up(error)

    def write(self, rows: Rows) -> None:
        """Writes the page if there are new rows of metrics; called by the saving thread after each checkpoint."""
        if self._folder is None or len(rows) == self._written:
            return
        try:
            text = page.render(
                _head(self._config, rows, self._start), rows, self._results, self._manifest(self._folder)
            )
            status.note(self._folder / NAME, text)
            self._written = len(rows)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Logs an error and writes no further reports: a report is no reason to end a run."""
        logger.warning("%s is no longer written: %s: %s", NAME, type(error).__name__, one_line(error))
        self._folder = None

    def _manifest(self, folder: Path) -> manifest.Manifest:
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        settings = [
            manifest.Setting(key, repr(value) if value == "" else str(value), self._origins.get(key, "default"))
            for key, value in flat(self._config)
        ]
        times = [("written", now), ("duration of this process", _duration(self._start))]
        return manifest.Manifest(
            self._facts["run"] + times, self._facts["code"], self._facts["data"], settings, _checkpoints(folder)
        )


def _duration(start: float) -> str:
    """The time since `start`, a value of the monotonic clock."""
    return str(datetime.timedelta(seconds=round(time.monotonic() - start)))


def _head(config: CfgNode, rows: Rows, start: float) -> page.Head:
    last = rows[-1]
    tiles = []
    for name, column in (("top-1", "top1"), ("EMA top-1", "ema_top1")):
        accuracies = [row[column] for row in rows if row.get(column) is not None]
        if accuracies:
            tiles += [(f"best {name}", f"{max(accuracies):.2f} %"), (f"last {name}", f"{accuracies[-1]:.2f} %")]
    tiles += [("training loss", f"{last['loss']:.4f}"), ("samples/s", f"{last['throughput']:,.0f}")]
    done, epochs = last["epoch"] + 1, config.TRAIN.EPOCHS
    early = Progress(epochs=list(rows)).stopped_early(config.TRAIN.EARLY_STOPPING)
    state = "stopped early: " if early else "finished: " if done >= epochs else ""
    return page.Head(config.MODEL.NAME, f"{state}epoch {done} of {epochs}", [*tiles, ("this run", _duration(start))])


def _run_facts(run: Run) -> List[Tuple[str, str]]:
    config, launch = run.config, run.launch
    return [
        ("command", manifest.command_line()),
        ("folder", str(Path(config.OUTPUT, config.TAG).resolve())),
        ("started", datetime.datetime.now().astimezone().isoformat(timespec="seconds")),
        ("seed", str(config.SEED)),
        ("processes", str(launch.processes)),
        ("global batch", f"{launch.global_batch(config):,} samples, {run.updates_per_epoch:,} updates per epoch"),
    ]


def _data_facts(run: Run) -> List[Tuple[str, str]]:
    facts = [("path", run.config.DATA.DATA_PATH or f"generated on the {run.config.DATA.GENERATED}")]
    for split, data in (("training", run.data.training), ("validation", run.data.validation)):
        facts.append((f"{split} images", f"{len(data):,}"))
        if hasattr(data, "labels"):  # generated images have no files
            facts.append((f"{split} fingerprint", manifest.fingerprint(data.classes, data.labels, data.name)))
    return [*facts, ("classes", f"{len(run.data.classes):,}")]


def _mistakes(run: Run, outcomes: Outcomes) -> List[Mistake]:
    """The most confident mistakes with their pictures; none for generated images."""
    data = run.data.validation
    if not hasattr(data, "read"):
        return []
    names = [*run.data.classes, *(str(label) for label in range(len(run.data.classes), outcomes.num_classes))]
    wrong = np.flatnonzero(outcomes.is_readable & ~outcomes.hits[:, 0])
    worst = wrong[np.argsort(-outcomes.probabilities[wrong, 0], kind="stable")][:SHOWN_MISTAKES]
    return [
        Mistake(
            _picture(data.read(index)),
            os.path.basename(data.name(index)),
            names[outcomes.labels[index]],
            names[outcomes.predicted[index, 0]],
            float(outcomes.probabilities[index, 0]),
        )
        for index in worst.tolist()
    ]


def _picture(contents: bytes) -> str:
    try:
        return data_uri(decode(contents))
    except BadImage:  # the file has changed since it was validated
        return ""


def _checkpoints(folder: Path) -> List[manifest.Checkpoint]:
    names = [name for name in (checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST) if (folder / name).is_file()]
    return [
        manifest.Checkpoint(name, (folder / name).stat().st_size / 1e6, seal.digest_of(folder / name))
        for name in [*names, *checkpoint.kept(folder)]
    ]
