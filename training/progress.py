# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The progress of a training run, and what a resumed run may change."""

import dataclasses
import math
from typing import Any, Dict, List, Tuple

from yacs.config import CfgNode

from common.errors import EXIT_CHECKPOINT, Refusal
from common.logs import logger
from config import defaults, parse
from configs.official import flat

AVERAGED = "ema_"  # prefix of the columns of averaged weights


@dataclasses.dataclass
class Progress:
    """Position and results of a run; plain values only, for checkpoints."""

    epoch: int = 0  # completed epochs
    step: int = 0  # weight updates in the current epoch
    update: int = 0  # total weight updates
    loss_sum: float = 0.0  # over the updates of the current epoch
    best_top1: float = -1.0  # per cent
    epochs: List[Dict[str, Any]] = dataclasses.field(default_factory=list)  # rows of metrics.csv
    skipped: int = 0  # non-finite weight updates, which were not applied
    skipped_in_epoch: int = 0
    skipped_in_row: int = 0

    def advance(self, updates: int, loss: float) -> None:
        """Counts weight updates with mean loss `loss`; NaN: they were skipped."""
        self.step += updates
        self.update += updates
        if math.isnan(loss):
            self.skipped += updates
            self.skipped_in_epoch += updates
            self.skipped_in_row += updates
        else:
            self.loss_sum += loss * updates
            self.skipped_in_row = 0

    def position(self, updates_per_epoch: int) -> int:
        """The position in the learning-rate schedule, in updates, as if all epochs had `updates_per_epoch`.

        Equal to `update`, unless earlier epochs had another batch size or number of images.
        """
        return self.epoch * updates_per_epoch + self.step

    def mean_loss(self) -> float:
        """The mean loss over the updates applied in the current epoch."""
        return self.loss_sum / max(self.step - self.skipped_in_epoch, 1)

    def stopped_early(self, patience: int) -> str:
        """Why the run stops early: the best top-1 accuracy is `patience` epochs old. '' if training continues.

        Averaged weights count if there are any. Only an epoch with a validation can end a run.

        Args:
            patience: TRAIN.EARLY_STOPPING; 0: never stops.
        """
        scores = [row.get(f"{AVERAGED}top1", row.get("top1")) for row in self.epochs]
        if not patience or not scores or scores[-1] is None:
            return ""
        best = max(score for score in scores if score is not None)
        waited = len(scores) - 1 - scores.index(best)
        if waited < patience:
            return ""
        return f"stopped early: no better top-1 than {best:.2f} % for {waited} epochs (TRAIN.EARLY_STOPPING {patience})"

    def end_epoch(self, row: Dict[str, Any], best_top1: float) -> None:
        """Ends the current epoch with its row of metrics and the best accuracy so far."""
        self.epochs.append(row)
        self.best_top1 = best_top1
        self.epoch += 1
        self.step = self.skipped_in_epoch = 0
        self.loss_sum = 0.0


# These define the run: they cannot change when it is resumed.
FIXED = (
    "MODEL.TYPE",
    "MODEL.SWIN",
    "MODEL.SWINV2",
    "MODEL.PRECISION",
    "DATA.IMG_SIZE",
    "TRAIN.OPTIMIZER.NAME",
    "TRAIN.LAYER_DECAY",  # defines the parameter groups
    "TRAIN.FREEZE",
)
# These determine the samples of an update: they may change between epochs only.
SAMPLE_ORDER = (
    "SEED",
    "DATA.BATCH_SIZE",
    "DATA.BALANCED_SAMPLING",
    "AUG.REPEATS",
    "TRAIN.ACCUMULATION_STEPS",
    "IPU.REPLICAS",
    "IPU.DEVICE_ITERATIONS",
)
# These affect locations and speed, not results.
FREE = (
    "OUTPUT",
    "TAG",
    "LOG_INTERVAL",
    "REPORT",
    "TENSORBOARD",
    "WANDB",
    "DATA.DATA_PATH",
    "DATA.NUM_WORKERS",
    "DATA.LOADER",
    "DATA.CACHE_MODE",
    "DATA.INDEX_CACHE",
    "DATA.ZIP_MODE",
    "MODEL.RESUME",
    "MODEL.PRETRAINED",
    "TRAIN.COMPILE",
    "TRAIN.TRAINING_STEPS",
    "TRAIN.EARLY_STOPPING",
    "TRAIN.CHECKPOINT_STEPS",
    "TRAIN.AUTO_RESUME",
    "TRAIN.KEEP",
    "TRAIN.MAX_FRUITLESS_RESTARTS",
    "TEST",
    "IPU",
)


def check_same_run(config: CfgNode, saved: str, progress: Progress) -> None:
    """Compares the configuration of a checkpoint with that of the resuming run.

    Raises:
        Refusal: if the model changed, or the order of samples inside an epoch.
    """
    before, now = dict(flat(parse(saved, "checkpoint"))), dict(flat(parse(config.dump(), "configuration")))
    before = {**dict(flat(defaults())), **before}  # a key may be newer than the checkpoint
    for key in sorted(set(before) | set(now)):
        change = (before.get(key), now.get(key))
        if change[0] == change[1]:
            continue
        changed = f"{key} was {change[0]} when the checkpoint was saved and is {change[1]} now"
        if _within(key, FIXED):
            raise Refusal(
                f"{changed}: restore the old value, or start a new run with --pretrained-model", EXIT_CHECKPOINT
            )
        if _within(key, SAMPLE_ORDER) and progress.step:
            raise Refusal(
                f"{changed}: it may change between epochs only; keep the old value until epoch "
                f"{progress.epoch + 1} ends",
                EXIT_CHECKPOINT,
            )
        if _within(key, SAMPLE_ORDER) or not _within(key, FREE):
            logger.warning("%s", changed)


def check_same_data(progress: Progress, before: int, now: int) -> None:
    """Raises `Refusal` if the number of training images changed inside an epoch, which changes the order of samples."""
    if progress.step and before != now:
        raise Refusal(
            f"the data set had {before} training images when the checkpoint was saved and has {now} now: it "
            f"may change between epochs only; restore the old images until epoch {progress.epoch + 1} ends",
            EXIT_CHECKPOINT,
        )


def check_position(progress: Progress, updates: int) -> None:
    """Raises `Refusal` if the checkpoint's position is beyond the end of an epoch, which has `updates` updates."""
    if progress.step > updates:
        raise Refusal(
            f"the checkpoint is at update {progress.step} of an epoch, which has {updates} here", EXIT_CHECKPOINT
        )


def _within(key: str, sections: Tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)
