# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Builds everything a training run uses, from its configuration and, to resume, from a checkpoint."""

import contextlib
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
from timm.scheduler.scheduler import Scheduler
from yacs.config import CfgNode

import accelerator
from common.errors import EXIT_CHECKPOINT, Refusal
from common.launch import Launch
from common.logs import logger
from dataset.balance import class_weights
from dataset.build_ipu import build_dataset, build_loader, example_batch
from lr_scheduler import build_scheduler
from models.build import SwinClassifier, build_pipeline, choose_attention
from models.freezing import freeze
from models.pretrained import Wanted, check_exists, load_pretrained
from optimizer import build_optimizer
from options import inference_options, training_options
from planning.placement import ipus_of, pipeline_stages
from training import checkpoint, host_pipeline, processes
from training.averaging import WeightAverage, start_average
from training.compiling import compile_program
from training.progress import Progress, check_position, check_same_data, check_same_run
from utils import one_line


class Data(NamedTuple):
    """The data sets of `build_dataset`, and their loaders."""

    training: Any
    validation: Any
    training_loader: Any
    validation_loader: Any

    @property
    def classes(self) -> List[str]:
        """The names of the classes."""
        classes: List[str] = self.training.classes
        return classes


class Run(NamedTuple):
    """The objects that the training loop uses."""

    config: CfgNode
    saved_config: str  # the configuration as text, for checkpoints
    launch: Launch
    folder: Optional[Path]  # None: nothing is written
    data: Data
    updates_per_epoch: int
    model: SwinClassifier
    average: Optional[WeightAverage]  # of the model's weights
    optimizer: Any
    schedule: Scheduler
    trainer: Any  # poptorch.trainingModel of the model, or the trainer of one of its stages: see host_pipeline
    validator: Any  # poptorch.inferenceModel of the same model


def find_state(config: CfgNode, launch: Launch, folder: Optional[Path]) -> Optional[Dict[str, Any]]:
    """The checkpoint to resume from: --resume or the newest in the output folder, whichever has more updates, or None.

    Repeating a command with --resume thus continues from its own checkpoints. The leader reads the checkpoint and
    broadcasts it, so that all processes start from the same state.

    Raises:
        Refusal: for a checkpoint that cannot be used, or does not match the configuration.
    """
    found = processes.share(_furthest(config, folder) if launch.is_leader else None, launch)
    if found is None:
        return None
    path, state = found
    progress = Progress(**state["progress"])
    check_same_run(config, state["config"], progress)
    if config.MODEL.PRETRAINED:
        logger.info("%s is ignored: the run resumes from its checkpoint", config.MODEL.PRETRAINED)
    logger.info("resuming from %s: epoch %d, update %d", path, progress.epoch, progress.update)
    return state


def _furthest(config: CfgNode, folder: Optional[Path]) -> Optional[Tuple[Path, Dict[str, Any]]]:
    own = checkpoint.find(folder) if config.TRAIN.AUTO_RESUME and folder is not None else None
    if not config.MODEL.RESUME:
        return own
    named = Path(config.MODEL.RESUME), checkpoint.load(Path(config.MODEL.RESUME))
    if own is None or own[1]["progress"]["update"] <= named[1]["progress"]["update"]:
        return named
    logger.warning("%s has more updates than --resume %s: set TRAIN.AUTO_RESUME False to use that", own[0], named[0])
    return own


def build_run(config: CfgNode, launch: Launch, folder: Optional[Path], state: Optional[Dict[str, Any]]) -> Run:
    """Builds data, model, optimizer and schedule, and restores the state of a checkpoint."""
    progress = Progress(**state["progress"]) if state else Progress()
    _check_device(config)
    torch.manual_seed(config.SEED)
    training, validation = _open_data(config, progress, state)
    options, validation_options = training_options(config, launch.instance), inference_options(config, launch)
    training_loader = _build_training_loader(config, options, training, progress)
    validation_loader = build_loader(config, validation_options, validation, training=False)
    updates_per_epoch = len(training_loader) * config.IPU.DEVICE_ITERATIONS
    check_position(progress, updates_per_epoch)
    model = _build_model(config, launch, training, state)
    average = start_average(config, model, state)
    optimizer = build_optimizer(config, model, launch)
    schedule = build_scheduler(config, optimizer, updates_per_epoch, launch)
    if state:
        saved = state["optimizer"]
        if not saved["ipu_state"] and not saved["state"]:
            _warn_without_moments(config, progress)
            # PopTorch would be given a state that lacks every moment, and say so once more, in other words.
            saved = {**optimizer.state_dict(), "param_groups": saved["param_groups"]}
        _restore_optimizer(optimizer, saved)
    run = Run(
        config=config,
        saved_config=config.dump(),
        launch=launch,
        folder=folder,
        data=Data(training, validation, training_loader, validation_loader),
        updates_per_epoch=updates_per_epoch,
        model=model,
        average=average,
        optimizer=optimizer,
        schedule=schedule,
        trainer=_build_trainer(config, launch, model, options, optimizer),
        validator=accelerator.poptorch().inferenceModel(model, validation_options),
    )
    _log_run(run)
    compile_program(run.trainer, "training", example_batch(config, options, model.num_classes, training=True))
    if state:
        _restore_randomness(run, state)
    return run


def _check_device(config: CfgNode) -> None:
    """Refuses keys that an IPU does not support."""
    if config.TRAIN.SKIP_NONFINITE and accelerator.is_ipu():
        raise Refusal("TRAIN.SKIP_NONFINITE is for hosts, an IPU applies every update: use TRAIN.AUTO_LOSS_SCALING")


def _open_data(config: CfgNode, progress: Progress, state: Optional[Dict[str, Any]]) -> Tuple[Any, Any]:
    """Opens the training and the validation data set, and checks them against the checkpoint."""
    if config.MODEL.PRETRAINED and not state:
        check_exists(Path(config.MODEL.PRETRAINED))  # before a large data set is listed
    training, validation = build_dataset(config, training=True), build_dataset(config, training=False)
    if state:
        check_same_data(progress, state.get("training_images", len(training)), len(training))
    return training, validation


def _build_training_loader(config: CfgNode, options: Any, data: Any, progress: Progress) -> Any:
    """The training loader, positioned where the checkpoint was saved."""
    step = progress.step // config.IPU.DEVICE_ITERATIONS
    return build_loader(config, options, data, training=True, start_epoch=progress.epoch, start_step=step)


def _build_model(config: CfgNode, launch: Launch, data: Any, state: Optional[Dict[str, Any]]) -> SwinClassifier:
    """The model with its weights, frozen according to TRAIN.FREEZE, and the class weights of its loss.

    Args:
        data: the training data set.
    """
    classes = config.MODEL.NUM_CLASSES or len(data.classes)
    fused = _fused_attention(config, launch, state)
    is_new = not state and not config.MODEL.PRETRAINED
    with accelerator.new_weights() if is_new else contextlib.nullcontext():
        model = build_pipeline(config, classes, training=True, fused=fused)
    _load_weights(model, config, data.classes, state)
    freeze(model, config.TRAIN.FREEZE)
    if config.TRAIN.CLASS_WEIGHTS:
        model.loss.weigh(class_weights(config.TRAIN.CLASS_WEIGHTS, data, classes))
    return model


def _load_weights(model: SwinClassifier, config: CfgNode, classes: List[str], state: Optional[Dict[str, Any]]) -> None:
    """Loads the weights of the checkpoint or of --pretrained-model, if there is one."""
    if state:
        checkpoint.check_classes(Path(checkpoint.LAST), state["classes"], classes)
        checkpoint.load_weights(model, state["model"], Path(checkpoint.LAST))
    elif config.MODEL.PRETRAINED:
        load_pretrained(model, Path(config.MODEL.PRETRAINED), wanted=Wanted.of(config))


def _fused_attention(config: CfgNode, launch: Launch, state: Optional[Dict[str, Any]]) -> Optional[bool]:
    """Whether attention is fused: the leader's choice, for all processes."""
    fused = choose_attention(config, (state or {}).get("fused_attention")) if launch.is_leader else None
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return fused  # --compile-only has the launch of several processes in a single one
    return processes.share(fused, launch)


def _restore_optimizer(optimizer: Any, saved: Dict[str, Any]) -> None:
    """Restores moments and learning rates; the other settings of the groups come from the configuration."""
    configured = [
        {key: value for key, value in group.items() if key not in ("params", "lr")} for group in optimizer.param_groups
    ]
    try:
        optimizer.load_state_dict(saved)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        said = f"the checkpoint's optimizer does not fit this run: {one_line(error)}"
        raise Refusal(said, EXIT_CHECKPOINT) from error
    for group, settings in zip(optimizer.param_groups, configured):
        group.update(settings)


def _warn_without_moments(config: CfgNode, progress: Progress) -> None:
    """Warns that moments are lost, if the optimizer keeps any and there was an update before."""
    keeps = config.TRAIN.OPTIMIZER.NAME != "sgd" or config.TRAIN.OPTIMIZER.MOMENTUM > 0
    if progress.update and keeps:
        logger.warning("the checkpoint has no optimizer moments: they start at zero")


def _build_trainer(config: CfgNode, launch: Launch, model: SwinClassifier, options: Any, optimizer: Any) -> Any:
    """The training program: of the whole model, or of this process's stage."""
    if launch.stages > 1:
        return host_pipeline.build_trainer(config, model, options, optimizer, launch)
    return accelerator.poptorch().trainingModel(model.train(), options, optimizer)


def _log_run(run: Run) -> None:
    """Logs what the run computes, where, and on which data."""
    classes = run.model.num_classes
    if classes == 1:
        logger.warning("the data set has one class, %s: a classifier needs two or more", run.data.classes[0])
    units = run.model.units
    logger.info("device: %s; processes: %d", accelerator.description(), run.launch.processes)
    logger.info(
        "model: %s, %.1f million parameters, %.2f GMACs per image, %d classes",
        run.config.MODEL.NAME,
        sum(unit.parameters for unit in units) / 1e6,
        sum(unit.macs for unit in units) / 1e9,
        classes,
    )
    logger.info(
        "data: %d training images, %d validation images; global batch %d, updates per epoch %d",
        len(run.data.training),
        len(run.data.validation),
        run.launch.global_batch(run.config),
        run.updates_per_epoch,
    )


def random_device(config: CfgNode, launch: Launch) -> str:
    """The device that a process's random state is valid for."""
    if not accelerator.is_ipu():
        return accelerator.selected().device
    return f"{ipus_of(pipeline_stages(config)) * launch.local_replicas} IPUs"


def _restore_randomness(run: Run, state: Dict[str, Any]) -> None:
    """Restores the random state of each process; on another device or number of processes, the seed's is kept.

    Devices are compared by name, since the length of an IPU's state is unknown before it has run.
    """
    states, here = state["rng_states"], random_device(run.config, run.launch)
    there = state.get("rng_device", here)
    if len(states) != run.launch.processes:
        origin = f"{len(states)} processes, not {run.launch.processes}"
    elif there != here:
        origin = f"another device, {there}, not {here}"
    else:
        try:
            run.trainer.rng_state = states[run.launch.process]
        except accelerator.poptorch().Error as error:
            raise Refusal(f"the random state of the checkpoint is invalid here: {error}", EXIT_CHECKPOINT) from error
        return
    logger.warning("the checkpoint was saved by %s: random numbers differ from an unbroken run's", origin)
