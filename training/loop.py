# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The training loop: epochs, weight updates, validation and checkpoints.

`train` builds a run, `fit` goes through its epochs, and `train_epoch` through the steps of one. A step is `train_step`,
which starts it on the device, and `finish_step`, which waits for its results.
"""

import dataclasses
import datetime
import math
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Tuple

import torch
from yacs.config import CfgNode

import accelerator
from common.errors import EXIT_NONFINITE, Refusal
from common.launch import Launch
from common.logs import REPEATED, logger
from common.signals import StopRequest
from dataset.build_ipu import ending
from dataset.workers import batches, deaths_unannounced
from lr_scheduler import learning_rate
from options import device_generates_data
from training import output_folder, processes
from training.agreement import bit_sums, check_agreement
from training.averaging import is_due
from training.building import Run, build_run, find_state, random_device
from training.compiling import errors_refused
from training.diagnosis import explain
from training.loader_wait import LoaderWait, report_wait
from training.outcomes import Outcomes
from training.pace import Pace, epoch_bar
from training.processes import ending_together
from training.progress import AVERAGED, Progress
from training.reporting import Reporter
from training.saving import Saver
from training.status import recorded
from training.trackers import Tracker, find_trackers, open_tracker
from training.validation import accuracy_columns, validate_epoch
from utils import Throughput


def train(config: CfgNode, launch: Launch, stop: StopRequest, origins: Mapping[str, str]) -> None:
    """Trains to the end, starting from the newest checkpoint of the output folder if there is one.

    Args:
        origins: what set each key, for the report.
    """
    with output_folder.opened(config, launch) as folder, recorded(folder, config, launch, stop) as status:
        with ending_together(launch):
            state = find_state(config, launch, folder)
            progress = Progress(**state["progress"]) if state else Progress()
            if is_finished(config, progress):
                logger.info("nothing to do: %s is at epoch %d, update %d", folder, progress.epoch, progress.update)
                return
            with output_folder.logged(folder, launch), errors_refused("the device failed"):
                status.begin(progress)
                output_folder.write_configuration(folder, config, launch)
                trackers, reporter = find_trackers(config, launch, folder), Reporter(config, folder, launch, origins)
                run = build_run(config, launch, folder, state)
                saver = Saver(folder if launch.is_leader else None, status, config.TRAIN.KEEP, reporter.write)
                with ending(run.data.training_loader, run.data.validation_loader), saver.running():
                    reporter.begin(run)
                    fit(run, progress, stop, open_tracker(trackers), reporter, saver)
                status.cause = progress.stopped_early(config.TRAIN.EARLY_STOPPING)


def fit(run: Run, progress: Progress, stop: StopRequest, track: Tracker, reporter: Reporter, saver: Saver) -> None:
    """Trains, validates and saves, epoch by epoch."""
    while not is_finished(run.config, progress):
        with stop.deferred():
            pace = train_epoch(run, progress, stop, saver)
            save(run, progress, saver, is_best=False)
        stop_if_asked(run, progress, stop, saver)
        if progress.step < run.updates_per_epoch:  # --training-steps ended the run inside an epoch
            break
        results = validate_epoch(run, progress)
        row = epoch_row(run, progress, pace, results)
        with stop.deferred():
            best = max(top1_of(results), progress.best_top1)
            is_best = best > progress.best_top1
            progress.end_epoch(row, best)
            reporter.note(run, progress.epoch, results.get(""))
            save(run, progress, saver, is_best)
        track(run, row, results.get(""))
        stop_if_asked(run, progress, stop, saver)
    saver.finish()
    processes.share(None, run.launch)
    log_outcome(run, progress)


def epoch_row(run: Run, progress: Progress, pace: Pace, results: Dict[str, Outcomes]) -> Dict[str, Any]:
    """The row of metrics.csv for an epoch."""
    return {
        "epoch": progress.epoch,
        "update": progress.update,
        "lr": learning_rate(run.optimizer),
        "loss": progress.mean_loss(),
        "throughput": round(pace.throughput, 1),
        **accuracy_columns(run, results),
        **pace.columns(),
    }


def top1_of(results: Dict[str, Outcomes]) -> float:
    """The top-1 accuracy that decides on the best checkpoint: of averaged weights if any; -1 without validation."""
    outcomes = results.get(AVERAGED, results.get(""))
    return -1.0 if outcomes is None else outcomes.accuracy().top1


def log_outcome(run: Run, progress: Progress) -> None:
    """Logs why the run stopped early, if it did, and its best accuracy."""
    early = progress.stopped_early(run.config.TRAIN.EARLY_STOPPING)
    if early:
        logger.info("%s", early)
    if progress.step == 0 and progress.best_top1 >= 0:  # at the end of an epoch, and validated before
        whose = "" if run.average is None else " of averaged weights"
        logger.info("best top-1%s: %.2f %%", whose, progress.best_top1)


def stop_if_asked(run: Run, progress: Progress, stop: StopRequest, saver: Saver) -> None:
    """Raises Preempted in all processes once the state is saved, if one was asked to stop before training is done."""
    if is_finished(run.config, progress):
        return
    asked = processes.sum_over_processes(torch.tensor([float(bool(stop.name))]), run.launch)
    if not asked.item():
        return
    stop.name = stop.name or "a signal to another process"
    saver.finish()
    processes.share(None, run.launch)  # waits for the leader's save: when a process exits, torchrun ends the others
    stop.check(f"update {progress.update}, which is saved" if run.folder else "")


def train_epoch(run: Run, progress: Progress, stop: StopRequest, saver: Saver) -> Pace:
    """Trains from `progress` to the end of the epoch, a stop request, or TRAIN.TRAINING_STEPS updates."""
    config = run.config
    updates = config.IPU.DEVICE_ITERATIONS
    samples = run.launch.global_batch(config) * updates
    interval, whole = Throughput(), Throughput()
    run.model.train()
    if progress.step == run.updates_per_epoch:  # stopped after the last update of the epoch, before its validation
        return Pace(0.0, 0.0, 0.0, None)
    waits, norms = LoaderWait(batches(run.data.training_loader)), []
    with epoch_bar(run, progress) as bar:
        for step, loss, norm in finished_steps(run, progress, waits, stop):
            saver.check()
            norms.append(norm)
            progress.advance(updates, loss)
            average_weights(run, progress)
            interval.add(samples)
            whole.add(samples)
            bar.set_postfix(loss=f"{loss:.4f}", lr=f"{step.rate:.3g}", refresh=False)
            bar.update(samples)
            if progress.update % config.LOG_INTERVAL < updates or progress.step == run.updates_per_epoch:
                report(run, progress, loss, step.rate, interval.read(), waits.read())
            if is_save_due(run, progress) and not (stop.agreed or is_finished(config, progress)):
                save(run, progress, saver, is_best=False)  # the end of the epoch is saved after this loop
    if run.launch.is_leader:
        report_wait(config, progress.epoch + 1, waits)
    return Pace.of(whole.read(), waits.share, run.launch.global_batch(config), norms)


class Step(NamedTuple):
    """A step in progress: its combined batch and learning rate, and a function that waits for its results."""

    images: torch.Tensor
    targets: torch.Tensor
    rate: float
    results: Callable[[], accelerator.Results]


def finished_steps(
    run: Run, progress: Progress, batches: Iterable[Any], stop: StopRequest
) -> Iterator[Tuple[Step, float, float]]:
    """Trains on batches until the end of the epoch or of the run, or a stop request.

    Yields each step with the results of `finish_step`. If the device answers late, the next step is started first, to
    keep a GPU busy while the host reads the results, unless the state after this step is needed.
    """
    started: List[Step] = []
    for images, targets in batches:
        started.append(train_step(run, progress, images, targets, len(started)))
        kept = 1 if accelerator.answers_late() and not is_state_needed(run, progress, len(started), stop) else 0
        while len(started) > kept:
            step = started.pop(0)
            yield (step, *finish_step(run, progress, step, stop))
        if stop.agreed or is_finished(run.config, progress):
            break
    for step in started:
        yield (step, *finish_step(run, progress, step, stop))


def is_state_needed(run: Run, progress: Progress, ahead: int, stop: StopRequest) -> bool:
    """Whether the weights after `ahead` more steps are read, and no further step may be started before."""
    updates = ahead * run.config.IPU.DEVICE_ITERATIONS
    then = dataclasses.replace(progress, step=progress.step + updates, update=progress.update + updates)
    averages = run.average is not None and is_due(run.config, then, run.updates_per_epoch)
    return stop.agreed or averages or is_save_due(run, then) or is_finished(run.config, then)


def train_step(run: Run, progress: Progress, images: torch.Tensor, targets: torch.Tensor, ahead: int = 0) -> Step:
    """Starts IPU.DEVICE_ITERATIONS weight updates on the device.

    Args:
        images: the combined batch of this process.
        targets: class indices (N,) or probabilities (N, classes).
        ahead: number of unfinished steps.
    """
    position = progress.position(run.updates_per_epoch) + ahead * run.config.IPU.DEVICE_ITERATIONS
    run.schedule.step_update(position)
    run.trainer.setOptimizer(run.optimizer)  # otherwise the device keeps the old learning rate
    return Step(images, targets, learning_rate(run.optimizer), accelerator.start(run.trainer, images, targets))


def finish_step(run: Run, progress: Progress, step: Step, stop: StopRequest) -> Tuple[float, float]:
    """Waits for the results of the oldest unfinished step.

    Args:
        stop: set to agreed if any process was asked to stop: all processes stop after the same update.

    Returns:
        The mean loss over the micro-batches of all replicas and processes (NaN if the updates were skipped), and the
        norm of the last gradients.
    """
    (_, losses), norm, skipped = step.results()
    micro_batches = run.config.TRAIN.ACCUMULATION_STEPS * run.config.IPU.DEVICE_ITERATIONS
    mine = torch.tensor([losses.double().mean().item() / micro_batches, float(bool(stop.name))], dtype=torch.float64)
    total, stops = processes.sum_over_processes(mine, run.launch).tolist()
    if stops:
        stop.name = stop.name or "a signal to another process"
        stop.agreed = True
    loss = total / run.launch.processes
    scales = run.config.TRAIN.AUTO_LOSS_SCALING or accelerator.scales_gradients()
    left_out = skipped > 0 and not scales
    if skipped and scales:
        logger.info("update %d: skipped, its gradients overflowed; the loss scale is halved", progress.update)
    if (left_out or not math.isfinite(loss)) and not device_generates_data(run.config):
        check_may_skip(run, progress, step, loss)
        return math.nan, norm
    return loss, norm


def check_may_skip(run: Run, progress: Progress, step: Step, loss: float) -> None:
    """Accepts that a host skipped a non-finite step, as often in a row as TRAIN.SKIP_NONFINITE allows.

    Raises:
        Refusal: otherwise, with the cause if it is found.
    """
    what = "the loss is" if not math.isfinite(loss) else "the gradients are"
    where = (
        f"{what} not finite at update {progress.update} (epoch {progress.epoch}, step {progress.step}, "
        f"learning rate {step.rate:.3g})"
    )
    allowed, in_row = run.config.TRAIN.SKIP_NONFINITE, progress.skipped_in_row + run.config.IPU.DEVICE_ITERATIONS
    if in_row <= allowed:
        logger.warning("%s: skipped, %d of at most %d consecutive ones", where, in_row, allowed)
        return
    on_ipu = accelerator.is_ipu()  # an IPU program can neither skip an update nor be inspected
    cause = "" if on_ipu else f": {explain(run, progress, step.images, step.targets)}"
    further = "or use --precision 32.32"
    if not on_ipu:
        further = "use --precision 32.32, or skip such updates with TRAIN.SKIP_NONFINITE"
    raise Refusal(
        f"{where}{cause}; the checkpoints are unchanged: lower TRAIN.BASE_LR or TRAIN.LOSS_SCALING, {further}",
        EXIT_NONFINITE,
    )


def report(run: Run, progress: Progress, loss: float, learning: float, rate: float, wait: float) -> None:
    """Logs the progress line, which benchmarks.yml parses.

    Args:
        learning: the learning rate.
        rate: samples per second since the last line.
        wait: share of the time since then spent waiting for data.
    """
    updates = run.config.TRAIN.EPOCHS * run.updates_per_epoch - progress.position(run.updates_per_epoch)
    if run.config.TRAIN.TRAINING_STEPS:
        updates = min(updates, run.config.TRAIN.TRAINING_STEPS - progress.update)
    left = max(updates, 0) * run.launch.global_batch(run.config)
    logger.info(
        "epoch: %d/%d step: %d/%d loss: %.4f lr: %.4g throughput: %.1f samples/sec eta: %s data wait: %.0f %%",
        progress.epoch + 1,
        run.config.TRAIN.EPOCHS,
        progress.step,
        run.updates_per_epoch,
        loss,
        learning,
        rate,
        datetime.timedelta(seconds=int(left / rate)),
        100 * wait,
        extra=REPEATED,
    )


def average_weights(run: Run, progress: Progress) -> None:
    """Adds the new weights to the run's average, if it has one and averaging is due."""
    if run.average is not None and is_due(run.config, progress, run.updates_per_epoch):
        with deaths_unannounced():
            run.trainer.copyWeightsToHost()
        run.average.add(run.model, progress.update)


def is_save_due(run: Run, progress: Progress) -> bool:
    """Whether TRAIN.CHECKPOINT_STEPS asks for a checkpoint inside the epoch."""
    often = run.config.TRAIN.CHECKPOINT_STEPS
    inside = progress.step < run.updates_per_epoch
    return inside and bool(often) and progress.update % often < run.config.IPU.DEVICE_ITERATIONS


def save(run: Run, progress: Progress, saver: Saver, is_best: bool) -> None:
    """Starts saving the state of a run with an output folder; called in every process, written by the leader.

    Raises:
        Refusal: if the previous save failed, or if the processes hold different weights.
    """
    with deaths_unannounced():  # a worker's death is reported at the next batch, after the state is saved
        run.trainer.copyWeightsToHost()
        rng_states, sums = zip(*processes.gather((run.trainer.rng_state, bit_sums(run)), run.launch))
        check_agreement(run, progress, sums)
        if run.folder is None or not run.launch.is_leader:
            return
        average, fused = run.average, run.model.fused_attention
        saver.start(
            {
                **({} if average is None else {"ema": average.weights, "ema_update": average.update}),
                **({} if fused is None else {"fused_attention": fused}),
                "model": dict(run.model.state_dict()),
                "optimizer": run.optimizer.state_dict(),
                "rng_states": list(rng_states),
                "rng_device": random_device(run.config, run.launch),
                "progress": vars(progress),
                "config": run.saved_config,
                "classes": list(run.data.classes),
                "training_images": len(run.data.training),
            },
            is_best,
        )


def is_finished(config: CfgNode, progress: Progress) -> bool:
    """Whether all epochs or TRAIN.TRAINING_STEPS updates are done, or TRAIN.EARLY_STOPPING ends the run."""
    steps = config.TRAIN.TRAINING_STEPS
    at_end = progress.epoch >= config.TRAIN.EPOCHS or 0 < steps <= progress.update
    return at_end or bool(progress.stopped_early(config.TRAIN.EARLY_STOPPING))
