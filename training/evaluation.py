# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Evaluation: the validation program of a file of weights, its accuracy and its throughput."""

import argparse
import time
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import torch
from yacs.config import CfgNode

import accelerator
from common.errors import Refusal
from common.launch import Launch
from common.logs import logger
from dataset.build_ipu import build_dataset, build_loader, example_batch
from dataset.samples import PADDED
from dataset.workers import batches
from models.build import build_pipeline
from models.pretrained import Wanted, load_pretrained
from options import inference_options
from training import arguments, checkpoint, processes
from training.compiling import compile_program
from utils import Throughput


class Accuracy(NamedTuple):
    """Exact counts of an evaluation; `classes[label]` is (images of the class, correct ones)."""

    images: int
    top1_correct: int
    top5_correct: int
    classes: Sequence[Tuple[int, int]] = ()

    @property
    def top1(self) -> float:
        """Top-1 accuracy in per cent."""
        return 100.0 * self.top1_correct / self.images

    @property
    def top5(self) -> Optional[float]:
        """Top-5 accuracy in per cent; None for fewer than six classes."""
        return None if 0 < len(self.classes) < 6 else 100.0 * self.top5_correct / self.images

    def __str__(self) -> str:
        top5 = "" if self.top5 is None else f" top-5: {self.top5:.2f} %"
        return f"top-1: {self.top1:.2f} %{top5} images: {self.images}"


def evaluate(validator: Any, loader: Any, images: int, launch: Launch) -> Accuracy:
    """Evaluates a model on a data set; every image counts exactly once, padding does not count.

    Args:
        validator: a poptorch.inferenceModel that maps a combined batch of images to logits (N, classes).
        loader: from `build_loader`; yields combined batches of (images, labels (N,)) of this process.
        images: number of images of the data set.

    Raises:
        AssertionError: if the number of evaluated images differs from `images`.
    """
    counts: Any = 0
    for batch, labels in batches(loader):
        counts = counts + _count(validator(batch).float(), labels)
    counted, top1, top5, *of_classes = processes.sum_over_processes(counts, launch).long().tolist()
    if counted != images:
        raise AssertionError(f"evaluation counted {counted} images of {images}")
    classes = len(of_classes) // 2
    return Accuracy(counted, top1, top5, list(zip(of_classes[:classes], of_classes[classes:])))


def _count(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The number of images, of top-1 and of top-5 correct ones, as float64 to be summed over batches.

    They are followed by the number of readable images of each class and of correct ones of each class. A row labelled
    PADDED is not an image; one labelled UNREADABLE is an image that counts as incorrect.
    """
    images, classes = (labels != PADDED).sum(), logits.shape[1]
    logits, labels = logits[labels >= 0], labels[labels >= 0]
    hits = logits.topk(min(5, classes)).indices == labels[:, None]
    right = labels[hits[:, 0]]
    totals = torch.stack([images, hits[:, 0].sum(), hits.sum()])
    return torch.cat([totals, *(torch.bincount(rows, minlength=classes) for rows in (labels, right))]).double()


def configured_weights(args: argparse.Namespace, path: Path) -> Tuple[CfgNode, Optional[Dict[str, Any]]]:
    """The configuration of the weights at `path`, and what `checkpoint.load_own` reads there; None for foreign weights.

    Raises:
        Refusal: for a damaged file, and for foreign weights without --cfg.
    """
    state = checkpoint.load_own(path)
    if state is None and args.cfg is None:
        raise Refusal(f"{path} has no configuration: pass one with --cfg")
    saved = state["config"] if state and args.cfg is None else None
    return arguments.build_config(args, saved, len(state["classes"]) if state else 0), state


def build_validator(config: CfgNode, path: Path, state: Optional[Dict[str, Any]], classes: int, launch: Launch) -> Any:
    """The compiled poptorch.inferenceModel of `configured_weights`; its loader takes the same options.

    Raises:
        Refusal: for weights of another architecture.
    """
    model = build_pipeline(config, classes, training=False)
    if state:
        checkpoint.load_weights(model, state["model"], path)
    else:
        load_pretrained(model, path, new_head=False, wanted=Wanted.of(config))
    validator = accelerator.poptorch().inferenceModel(model.eval(), inference_options(config, launch))
    logger.info("device: %s; processes: %d", accelerator.description(), launch.processes)
    compile_validator(config, validator, classes)
    return validator


def compile_validator(config: CfgNode, validator: Any, classes: int) -> None:
    """Compiles a poptorch.inferenceModel with `classes` outputs for evaluation, unless it is compiled already."""
    if not validator.isCompiled():
        images, _ = example_batch(config, validator.options, classes, training=False)
        compile_program(validator, "validation", [images])


def measure_throughput(config: CfgNode, launch: Launch) -> None:
    """Logs the inference throughput on generated images, over at least ten seconds after the first call."""
    dataset = build_dataset(config, training=False)
    options = inference_options(config, launch)
    classes = config.MODEL.NUM_CLASSES or len(dataset.classes)
    model = build_pipeline(config, classes, training=False).eval()
    validator = accelerator.poptorch().inferenceModel(model, options)
    images = example_batch(config, options, classes, training=False)[0].contiguous()
    compile_program(validator, "validation", [images])
    validator(images)
    throughput, end = Throughput(), time.monotonic() + 10
    while time.monotonic() < end:
        validator(images)
        throughput.add(len(images) * launch.processes)
    logger.info("throughput: %.1f samples/sec", throughput.read())


def validate_weights(
    config: CfgNode, path: Path, state: Optional[Dict[str, Any]], launch: Launch, per_class: bool = False
) -> Accuracy:
    """Validates the weights of a file on the validation split.

    Args:
        path: the file of weights.
        state: from `checkpoint.load_own`; None for foreign weights.
        per_class: whether to log the accuracy of each class, too.

    Raises:
        Refusal: for weights of another architecture, and for a data set with other classes.
    """
    dataset = build_dataset(config, training=False)
    names = list(dataset.classes)
    if state and config.DATA.DATASET != "generated":  # which has no class names
        names = checkpoint.check_classes(path, state["classes"], names)
    classes = config.MODEL.NUM_CLASSES or len(names)
    validator = build_validator(config, path, state, classes, launch)
    logger.info("validating %s on %d images of %d classes", path, len(dataset), classes)
    loader = build_loader(config, validator.options, dataset, training=False)
    accuracy = evaluate(validator, loader, len(dataset), launch)
    for name, (images, right) in zip(names, accuracy.classes) if per_class else ():
        logger.info("class %s: top-1: %.2f %% images: %d", name, 100.0 * right / max(images, 1), images)
    logger.info("validation: %s", accuracy)
    return accuracy


def evaluate_only(config: CfgNode, launch: Launch) -> None:
    """Validates the weights of --resume or --pretrained-model."""
    given = [path for path in (config.MODEL.RESUME, config.MODEL.PRETRAINED) if path]
    if len(given) != 1:
        raise Refusal("--eval validates one file: pass either --resume or --pretrained-model")
    path = Path(given[0])
    validate_weights(config, path, checkpoint.load_own(path), launch)
