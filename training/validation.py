# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Validates the weights of a training run, and their average, between epochs."""

import contextlib
from typing import Dict, Iterator, Optional

from common.logs import logger
from training.building import Run
from training.evaluation import compile_validator, evaluate_images
from training.outcomes import Outcomes
from training.progress import AVERAGED, Progress


def validate_epoch(run: Run, progress: Progress) -> Dict[str, Outcomes]:
    """Validates every TEST.INTERVAL epochs and after the last one; the two programs take turns on the device.

    Returns:
        The outcomes of the weights under "", and of the averaged weights, if any, under AVERAGED; empty for an epoch
        without validation.
    """
    epoch, epochs = progress.epoch + 1, run.config.TRAIN.EPOCHS
    if epoch % run.config.TEST.INTERVAL and epoch < epochs:
        return {}
    with validating(run):
        results = {"": _evaluate(run)}
        if run.average is not None:
            with run.average.installed(run.model):
                run.validator.copyWeightsToDevice()
                results[AVERAGED] = _evaluate(run)
    for prefix, outcomes in results.items():
        whose = " of averaged weights" if prefix else ""
        logger.info("epoch: %d/%d validation%s: %s", epoch, epochs, whose, outcomes.accuracy())
    return results


@contextlib.contextmanager
def validating(run: Run) -> Iterator[None]:
    """Gives the device to the validation program, with the model's weights, and back to training after the context."""
    run.trainer.detachFromDevice()
    run.model.eval()
    compile_validator(run.config, run.validator, run.model.num_classes)
    yield
    run.validator.detachFromDevice()
    run.trainer.attachToDevice()


def accuracy_columns(run: Run, results: Dict[str, Outcomes]) -> Dict[str, Optional[float]]:
    """The columns of metrics.csv for the results of `validate_epoch`; values are None without validation."""
    columns: Dict[str, Optional[float]] = {}
    for prefix in [""] if run.average is None else ["", AVERAGED]:
        accuracy = results[prefix].accuracy() if prefix in results else None
        top1, top5 = (None, None) if accuracy is None else (accuracy.top1, accuracy.top5)
        columns[f"{prefix}top1"] = None if top1 is None else round(top1, 4)
        columns[f"{prefix}top5"] = None if top5 is None else round(top5, 4)
    return columns


def _evaluate(run: Run) -> Outcomes:
    """The outcomes of the validation program's current weights."""
    return evaluate_images(run.validator, run.data.validation_loader, len(run.data.validation), run.launch)
