# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Logs metrics, sample images and the confusion matrix to TensorBoard and Weights & Biases, both optional packages."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

import numpy as np
import torch
import yaml
from yacs.config import CfgNode

from common.errors import EXIT_RESOURCE, Refusal
from common.launch import Launch
from common.logs import logger
from training.building import Run
from training.outcomes import Outcomes
from utils import one_line

FOLDER = "tensorboard"
SAMPLES = 8  # training images shown, as augmented in the first epoch
DRAWN_CLASSES = 500  # larger confusion matrices are not drawn
MATRIX_SIDE = 300  # approximate, in pixels
Tracker = Callable[[Run, Dict[str, Any], Optional[Outcomes]], None]


def find_trackers(config: CfgNode, launch: Launch, folder: Optional[Path]) -> Dict[str, Callable[[], Tracker]]:
    """What opens TensorBoard and Weights & Biases, by flag, as --tensorboard and --wandb request.

    Raises:
        Refusal: if a package is not installed, or TensorBoard has no output folder.
    """
    openers = {}
    if launch.is_leader and config.TENSORBOARD:
        openers["--tensorboard"] = _tensorboard(folder)
    if launch.is_leader and config.WANDB:
        openers["--wandb"] = _wandb(config, folder)
    return openers


def open_tracker(openers: Dict[str, Callable[[], Tracker]]) -> Tracker:
    """A function that logs an epoch to the trackers of `find_trackers`, which are opened here.

    It takes the run, the epoch's row of metrics, and the outcomes of its validation. An error is logged once and does
    not stop the run. Call this when nothing else can be refused any more: what is opened stays on the server.

    Raises:
        Refusal: if a tracker cannot be opened.
    """
    trackers = {name: opened() for name, opened in openers.items()}

    def track(run: Run, row: Dict[str, Any], outcomes: Optional[Outcomes]) -> None:
        for name, tracker in list(trackers.items()):
            try:
                tracker(run, row, outcomes)
            except Exception as error:  # a full disk or a lost connection is no reason to end a run
                logger.warning("%s: nothing more is logged: %s: %s", name, type(error).__name__, one_line(error))
                del trackers[name]

    return track


def _wandb(config: CfgNode, folder: Optional[Path]) -> Callable[[], Tracker]:
    """What opens Weights & Biases, whose package is there."""
    wandb = _required("wandb", "--wandb", "wandb")
    return lambda: _open_wandb(wandb, config, folder)


def _open_wandb(wandb: ModuleType, config: CfgNode, folder: Optional[Path]) -> Tracker:
    """A run; WANDB_ variables apply: WANDB_MODE=offline keeps everything in the output folder."""
    where = None if folder is None else str(folder)
    try:
        wandb.init(project="swin", dir=where, config=yaml.safe_load(config.dump()), resume="allow")
    except Exception as error:  # wandb.errors.UsageError without an API key, CommError without a network, and others
        cause = one_line(error).rstrip(".")
        raise Refusal(
            f"--wandb cannot start: {cause}; log in (wandb login), or set WANDB_MODE=offline", EXIT_RESOURCE
        ) from error

    def log(run: Run, row: Dict[str, Any], outcomes: Optional[Outcomes]) -> None:
        shown = {name: [wandb.Image(one) for one in images] for name, images in pictures(run, row, outcomes)}
        wandb.log({**row, **shown}, step=row["update"])

    return log


def _tensorboard(folder: Optional[Path]) -> Callable[[], Tracker]:
    """What opens TensorBoard, whose package and folder are there."""
    if folder is None:
        raise Refusal("--tensorboard writes to the output folder: pass --output")
    where = str(folder / FOLDER)
    tensorboard = _required("torch.utils.tensorboard", "--tensorboard", "tensorboard")
    return lambda: _open_tensorboard(tensorboard, where)


def _open_tensorboard(tensorboard: ModuleType, folder: str) -> Tracker:
    """TensorBoard event files in `folder`, by weight update."""
    writer = tensorboard.SummaryWriter(folder)

    def log(run: Run, row: Dict[str, Any], outcomes: Optional[Outcomes]) -> None:
        update = row["update"]
        for name, value in row.items():
            if value is not None and name not in ("epoch", "update"):
                writer.add_scalar(name, value, update)
        for name, images in pictures(run, row, outcomes):
            writer.add_images(name, images, update, dataformats="NHWC")
        writer.flush()

    return log


def pictures(run: Run, row: Dict[str, Any], outcomes: Optional[Outcomes]) -> Iterator[Tuple[str, np.ndarray]]:
    """Names and pictures of an epoch, (N, H, W, C) uint8: training images (first epoch only) and confusion matrix."""
    if row["epoch"] == 0:
        yield "training images", sample_images(run)
    if outcomes is not None and outcomes.num_classes <= DRAWN_CLASSES:
        yield "confusion", matrix_image(outcomes)[None, :, :, None]


def sample_images(run: Run) -> np.ndarray:
    """The first training images as augmented in the first epoch, (N, H, W, C) uint8."""
    data, count = run.data.training, min(SAMPLES, len(run.data.training))
    images = torch.stack([data[index][0] for index in range(count)])
    if images.dtype != torch.uint8:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (run.config.DATA.MEAN, run.config.DATA.STD))
        images = (255 * (images.float() * std + mean)).round().clamp(0, 255).to(torch.uint8)
    return images.permute(0, 2, 3, 1).numpy()


def matrix_image(outcomes: Outcomes) -> np.ndarray:
    """The confusion matrix as a picture, (H, W) uint8: rows are true classes, white means all images of a class."""
    classes = outcomes.num_classes
    matrix = np.zeros((classes, classes))
    true, predicted, images = outcomes.confusions().T
    matrix[true, predicted] = images
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(MATRIX_SIDE // classes, 1)
    return np.rint(255 * np.kron(shares, np.ones((side, side)))).astype(np.uint8)


def _required(module: str, flag: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Refusal(f"{flag} needs the package {package}: pip install {package}") from error
