# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Evaluation of a file of weights: accuracy and throughput of its validation program."""

import argparse
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

import accelerator
from common.errors import EXIT_CHECKPOINT, Refusal
from common.launch import Launch
from common.logs import logger
from common.progress_bar import progress_bar
from dataset.build_ipu import build_dataset, build_loader, ending, example_batch
from dataset.decode import shown
from dataset.samples import PADDED
from dataset.workers import batches
from models.build import build_pipeline, choose_attention
from models.inspection import InspectedClassifier
from models.pretrained import Wanted, load_pretrained
from models.weight_origin import converted
from options import inference_options
from planning.costs import configured_units
from training import arguments, checkpoint, processes
from training.compiling import compile_program
from training.outcomes import CALIBRATION_BINS, TOP, Accuracy, Outcomes
from training.tables import Tables
from utils import Throughput


def evaluate(validator: Any, loader: Any, images: int, launch: Launch) -> Accuracy:
    """The accuracy of `evaluate_images`, with the same arguments."""
    return evaluate_images(validator, loader, images, launch).accuracy()


def evaluate_images(validator: Any, loader: Any, images: int, launch: Launch) -> Outcomes:
    """Evaluates a model on every image of a data set exactly once; all processes return the same outcomes.

    Args:
        validator: a poptorch.inferenceModel that maps a combined batch of images to logits (N, classes).
        loader: from `build_loader`; yields combined batches of (images, labels (N,)) of this process.
        images: number of images of the data set.

    Raises:
        AssertionError: if the evaluated images are not those of the data set, each once.
    """
    parts: List[Tuple[np.ndarray, ...]] = []
    classes, rows = 0, 0
    with progress_bar("validation", images, " images") as bar:
        for logits, given in answers(validator, batches(loader)):
            processes.heed(launch)
            classes = logits.shape[1]
            best = logits.topk(min(TOP, classes))
            shares = (best.values - logits.logsumexp(1, keepdim=True)).exp()
            numbers = loader.order[rows : rows + len(given)]
            rows += len(given)
            kept = given.numpy() != PADDED
            parts.append((numbers[kept], *(part.numpy()[kept] for part in (given, best.indices, shares))))
            bar.update(int(kept.sum()) * launch.processes)
    mine = [np.concatenate(column) for column in zip(*parts)]
    numbers, *columns = (np.concatenate(column) for column in zip(*processes.gather(mine, launch)))
    order = np.argsort(numbers, kind="stable")
    if not np.array_equal(numbers[order], np.arange(images)):
        raise AssertionError(f"evaluation counted {len(numbers)} of {images} images, or some of them twice")
    labels, predicted, probabilities = (column[order] for column in columns)
    return Outcomes(labels, predicted, probabilities, classes)


def answers(validator: Any, batches: Iterable[Any]) -> Iterator[Tuple[Tensor, Tensor]]:
    """The float32 logits and the labels of each batch, one batch late on devices that answer late."""
    begun: List[Tuple[Callable[[], Any], Tensor]] = []
    for images, labels in batches:
        begun.append((accelerator.start(validator, images), labels.clone()))  # a loader may overwrite its batches
        if len(begun) > accelerator.answers_late():
            results, labels = begun.pop(0)
            yield results().outputs.float(), labels
    for results, labels in begun:
        yield results().outputs.float(), labels


def configured_weights(args: argparse.Namespace, path: Path) -> Tuple[CfgNode, Optional[Dict[str, Any]]]:
    """The configuration for the weights at `path`, and the result of `checkpoint.load_own`, None for foreign weights.

    Files written by `models.convert` count as foreign with --cfg, and as checkpoints without.

    Raises:
        Refusal: for a damaged file, and for foreign weights without --cfg.
    """
    state = checkpoint.load_own(path, converted if args.cfg is None else None)
    if state is None and args.cfg is None:
        raise Refusal(f"{path} has no configuration: pass one with --cfg")
    saved = state["config"] if state and args.cfg is None else None
    config = arguments.build_config(args, saved, len(state["classes"]) if state else 0)
    if state:
        _check_room(config, state["model"], path)
    return config, state


def _check_room(config: CfgNode, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raises `Refusal` if the configuration, which may be the file's own, needs more weights than the file has."""
    units = configured_units(config)
    wanted = sum(unit.parameters for unit in units if unit.module != "head" or config.MODEL.NUM_CLASSES)
    there = sum(tensor.numel() for tensor in weights.values())
    if wanted > there:
        raise Refusal(
            f"checkpoint {path} has another architecture: its configuration needs {wanted} weights, and it has {there}",
            EXIT_CHECKPOINT,
        )


def build_validator(
    config: CfgNode,
    path: Path,
    state: Optional[Dict[str, Any]],
    classes: int,
    launch: Launch,
    inspected: bool = False,
) -> Any:
    """The compiled poptorch.inferenceModel for the results of `configured_weights`; use its options for the loader.

    Args:
        inspected: whether to wrap the model in an `InspectedClassifier`.

    Raises:
        Refusal: for weights of another architecture.
    """
    fused = choose_attention(config, (state or {}).get("fused_attention"))
    model = build_pipeline(config, classes, training=False, fused=fused)
    if state:
        checkpoint.load_weights(model, checkpoint.weights_of(state, config.MODEL.PRETRAINED_EMA, path), path)
        if "ema" in state and not config.MODEL.PRETRAINED_EMA:
            logger.info(
                "%s also holds averaged weights (EMA), by which the best checkpoint was chosen: --use-ema", path
            )
    else:
        load_pretrained(model, path, new_head=False, wanted=Wanted.of(config))
    model.eval()
    program = InspectedClassifier(model).eval() if inspected else model
    validator = accelerator.poptorch().inferenceModel(program, inference_options(config, launch))
    logger.info("device: %s; processes: %d", accelerator.description(), launch.processes)
    compile_validator(config, validator, classes)
    return validator


def compile_validator(config: CfgNode, validator: Any, classes: int) -> None:
    """Compiles a poptorch.inferenceModel with `classes` outputs for evaluation, unless it is compiled already."""
    if not validator.isCompiled():
        images, _ = example_batch(config, validator.options, classes, training=False)
        compile_program(validator, "validation", [images])


def measure_throughput(config: CfgNode, launch: Launch) -> None:
    """Logs the inference throughput on generated images, measured for at least ten seconds after the first call."""
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
    config: CfgNode,
    path: Path,
    state: Optional[Dict[str, Any]],
    launch: Launch,
    per_class: bool = False,
    tables: Optional[Tables] = None,
) -> Accuracy:
    """Validates the weights of a file on the validation split.

    Args:
        path: the file of weights.
        state: from `checkpoint.load_own`; None for foreign weights.
        per_class: whether to also log the accuracy of each class.
        tables: files to write.

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
    with ending(loader):
        outcomes = evaluate_images(validator, loader, len(dataset), launch)
    accuracy = outcomes.accuracy()
    for name, (images, right) in zip(names, accuracy.classes) if per_class else ():
        logger.info("class %s: top-1: %.2f %% images: %d", shown(name), 100.0 * right / max(images, 1), images)
    if tables and launch.is_leader:
        tables.write(outcomes, names, dataset)
    logger.info("expected calibration error: %.4f in %d bins", outcomes.calibration_error(), CALIBRATION_BINS)
    logger.info("validation: %s", accuracy)
    return accuracy


def evaluate_only(config: CfgNode, launch: Launch) -> None:
    """Validates the weights of --resume or --pretrained-model."""
    given = [path for path in (config.MODEL.RESUME, config.MODEL.PRETRAINED) if path]
    if len(given) != 1:
        raise Refusal("--eval validates one file: pass either --resume or --pretrained-model")
    path = Path(given[0])
    validate_weights(config, path, checkpoint.load_own(path), launch)
