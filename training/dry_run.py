# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""--dry-run: prints what a command would train, and how long an epoch takes from two steps. Nothing is saved."""

import datetime
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from yacs.config import CfgNode

import accelerator
from common.figures import new_figure, save_figure
from common.launch import Launch
from common.signals import StopRequest
from configs.official import flat
from dataset.build_ipu import ending
from dataset.decode import shown
from dataset.workers import batches
from lr_scheduler import build_scheduler
from planning.geometry import configured_layers
from training import checkpoint
from training.building import Run, build_run
from training.loop import finish_step, train_step
from training.progress import Progress
from training.validation import validating

WIDTH = 100  # columns
SHOWN_CLASSES = 100
SHOWN_RATES = 12  # rows of the table of learning rates
DRAWN_RATES = 1000  # points of the chart
FLAG = "--schedule-output"


def dry_run(
    config: CfgNode, launch: Launch, stop: StopRequest, origins: Mapping[str, str], picture: Optional[str]
) -> None:
    """Prints the configuration, model, learning rates and data of a run, trains two steps, and prints their cost.

    Args:
        origins: what set each key, from `arguments.origins`.
        picture: PNG file for a plot of the learning rates; None: no plot.

    Raises:
        Refusal: for everything that a run refuses before its third step.
    """
    path, figure = Path(picture or ""), None
    if picture is not None and launch.is_leader:
        figure = new_figure(FLAG, path, (9.0, 4.5), "use --dry-run alone")
    run = build_run(_without_traces(config), launch, None, None)
    with ending(run.data.training_loader, run.data.validation_loader):
        cost = _cost(run, stop)
    if not launch.is_leader:
        return
    print(report(run, config, origins, cost))
    if figure is not None:
        _draw(figure, run)
        save_figure(figure, FLAG, path)


def report(run: Run, config: CfgNode, origins: Mapping[str, str], cost: Sequence[str]) -> str:
    """The sections of the dry run, without a trailing newline."""
    sections = {
        "Configuration": configuration(config, origins),
        "Model": _model(run),
        "Learning rate": _schedule(run),
        "Data": _data(run),
        "Cost": [*cost, *_continuation(config)],
    }
    return "\n\n".join("\n".join([f"{title}:", *lines]) for title, lines in sections.items())


def configuration(config: CfgNode, origins: Mapping[str, str]) -> List[str]:
    """One line per key: its value, and what set it."""
    rows = [(key, repr(value) if value == "" else str(value), origins[key]) for key, value in flat(config)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{key:<{widths[0]}}  {value:<{min(widths[1], 40)}}  {origin}" for key, value, origin in rows]


def _without_traces(config: CfgNode) -> CfgNode:
    """The configuration, changed to keep nothing in the output folder."""
    changed = config.clone()
    changed.defrost()
    if changed.IPU.EXECUTABLE_CACHE == "auto":
        changed.IPU.EXECUTABLE_CACHE = ""
    changed.freeze()
    return changed


def _modules(run: Run) -> Dict[str, List[int]]:
    """Parameters and multiply-accumulates per module, with the blocks of a layer as one."""
    rows: Dict[str, List[int]] = {}
    for unit in run.model.units:
        parts = unit.module.split(".")
        name = ".".join(parts[:2]) if parts[0] == "layers" and parts[2] == "blocks" else unit.module
        row = rows.setdefault(name, [0, 0])
        row[0] += unit.parameters
        row[1] += unit.macs
    return rows


def _model(run: Run) -> List[str]:
    """One row per module with its parameters and multiply-accumulates, and their sums."""
    rows = _modules(run)
    layers = {f"layers.{index}": layer for index, layer in enumerate(configured_layers(run.config))}
    lines = [f"{'module':<22}{'blocks, tokens, width, heads, window':<48}{'parameters':>14}{'GMACs':>12}"]
    for name, (parameters, macs) in rows.items():
        words = ""
        if name in layers:
            layer = layers[name]
            words = (
                f"{layer.depth}, {layer.grid[0]}x{layer.grid[1]}, {layer.channels}, {layer.heads}, "
                f"{layer.window[0]}x{layer.window[1]}"
            )
        lines.append(f"{name:<22}{words:<48}{parameters:>14,}{macs / 1e9:>12.4f}")
    total, macs = (sum(row[column] for row in rows.values()) for column in (0, 1))
    trained = sum(weight.numel() for weight in run.model.parameters() if weight.requires_grad)
    lines.append(f"{run.config.MODEL.NAME:<70}{total:>14,}{macs / 1e9:>12.4f}")
    return [*lines, f"trained: {trained:,} parameters, in {run.config.MODEL.PRECISION} on {accelerator.description()}"]


def rates(run: Run, updates: Sequence[int]) -> List[float]:
    """The learning rates at the given updates, for a parameter group without its own factor."""
    weight = torch.nn.Parameter(torch.zeros(1))
    rate = run.config.TRAIN.BASE_LR * run.launch.learning_rate_factor(run.config)
    optimizer = torch.optim.SGD([weight], lr=rate)
    schedule = build_scheduler(run.config, optimizer, run.updates_per_epoch, run.launch)
    found = []
    for update in updates:
        schedule.step_update(update)
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


def _spread(run: Run, count: int) -> List[int]:
    """At most `count` evenly spaced updates, from the first of the run to the last."""
    last = run.config.TRAIN.EPOCHS * run.updates_per_epoch - 1
    return sorted({round(last * index / (count - 1)) for index in range(count)})


def _schedule(run: Run) -> List[str]:
    warmup = run.config.TRAIN.WARMUP_EPOCHS * run.updates_per_epoch
    updates = sorted({*_spread(run, SHOWN_RATES), warmup})
    lines = [f"{'epoch':>8}{'update':>12}{'rate':>14}"]
    for update, rate in zip(updates, rates(run, updates)):
        words = "  end of the warm-up" if update == warmup and warmup else ""
        lines.append(f"{update // run.updates_per_epoch + 1:>8}{update:>12,}{rate:>14.4g}{words}")
    factor = run.launch.learning_rate_factor(run.config)
    return [*lines, f"{run.config.TRAIN.LR_SCHEDULER.NAME}; configured rates times {factor:g}"]


def _draw(figure: Any, run: Run) -> None:
    updates = _spread(run, DRAWN_RATES)
    axes = figure.subplots()
    axes.plot([update / run.updates_per_epoch for update in updates], rates(run, updates), color="#0072b2")
    axes.set_title(f"{run.config.MODEL.NAME}: {run.config.TRAIN.LR_SCHEDULER.NAME} schedule")
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _data(run: Run) -> List[str]:
    lines = [
        f"training images: {len(run.data.training):,}; validation images: {len(run.data.validation):,}; "
        f"classes: {len(run.data.classes):,}"
    ]
    labels = getattr(run.data.training, "labels", None)
    counts = Counter(labels.tolist()) if labels is not None else {}
    if counts:
        sizes = sorted(counts.get(label, 0) for label in range(len(run.data.classes)))
        middle = sizes[len(sizes) // 2]
        lines.append(f"training images per class: {sizes[0]:,} to {sizes[-1]:,}, median {middle:,}")
    names = [
        shown(name) + (f" ({counts.get(label, 0):,})" if counts else "")
        for label, name in enumerate(run.data.classes[:SHOWN_CLASSES])
    ]
    more = f" and {len(run.data.classes) - SHOWN_CLASSES:,} more" if len(run.data.classes) > SHOWN_CLASSES else ""
    return lines + textwrap.wrap(f"classes: {', '.join(names)}{more}", WIDTH, subsequent_indent="    ")


def _cost(run: Run, stop: StopRequest) -> List[str]:
    """Trains two steps, validates two batches, and estimates the time of an epoch from the second ones."""
    updates, epochs = run.config.IPU.DEVICE_ITERATIONS, run.config.TRAIN.EPOCHS
    first, last, losses = _timed_steps(run, stop)
    batch = run.launch.global_batch(run.config)
    training, validation = last * run.updates_per_epoch / updates, _validation_seconds(run)
    validations = -(-epochs // run.config.TEST.INTERVAL)  # the last epoch is always validated
    whole = datetime.timedelta(seconds=round(training * epochs + validation * validations))
    place = "GPU" if accelerator.selected().device == "gpu" else "host"
    workers = run.config.DATA.NUM_WORKERS
    beside = f", without its {workers} data workers" if workers else ""
    weights = " of both weights" if run.average is not None else ""
    return [
        f"measured: {first:.2f} s for the first step, {last:.2f} s for the last, losses "
        + ", ".join(f"{loss:.4f}" for loss in losses),
        f"an epoch: about {training:,.0f} s of training in {run.updates_per_epoch:,} updates of {batch:,} samples, "
        f"{batch * updates / last:,.1f} samples/s",
        f"a validation{weights}: about {validation:,.0f} s, {len(run.data.validation):,} images",
        f"{epochs} epochs with {validations} validations: about {whole}",
        f"memory: {accelerator.peak_memory() / 1e6:,.0f} MB of the {place} at peak{beside}; "
        "--plan estimates the memory of IPUs",
    ]


def _timed_steps(run: Run, stop: StopRequest) -> Tuple[float, float, List[float]]:
    """Trains two steps (or the only one); returns the seconds of the first and of the last, and the losses."""
    progress = Progress()
    run.model.train()
    marks, losses = [time.monotonic()], []
    for images, targets in _two(run.data.training_loader):
        losses.append(finish_step(run, progress, train_step(run, progress, images, targets), stop)[0])
        progress.advance(run.config.IPU.DEVICE_ITERATIONS, losses[-1])
        marks.append(time.monotonic())
        stop.check()
    return marks[1] - marks[0], marks[-1] - marks[-2], losses


def _validation_seconds(run: Run) -> float:
    """The time of a validation, estimated from its second batch; averaged weights (EMA) are validated as well."""
    with validating(run):
        marks = [time.monotonic()]
        for images, _ in _two(run.data.validation_loader):
            run.validator(images)
            marks.append(time.monotonic())
    rounds = 1 if run.average is None else 2
    return rounds * (marks[-1] - marks[-2]) * len(run.data.validation_loader)


def _two(loader: Any) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
    """The first two batches of a loader, or its only one."""
    for number, batch in enumerate(batches(loader), 1):
        yield batch
        if number == 2:
            return


def _continuation(config: CfgNode) -> List[str]:
    """Says whether the command would resume from a checkpoint, which the dry run does not."""
    folder = Path(config.OUTPUT, config.TAG)
    if config.MODEL.RESUME:
        return [f"a run would resume from {config.MODEL.RESUME}; these steps started from the beginning"]
    if config.OUTPUT and config.TRAIN.AUTO_RESUME and (folder / checkpoint.LAST).exists():
        return [f"a run would resume from {folder / checkpoint.LAST}; these steps started from the beginning"]
    return []
