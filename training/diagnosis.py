# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Finds the module and the samples that cause a non-finite loss or gradient."""

import contextlib
from typing import Any, Callable, List, NamedTuple, Optional

import torch
from torch import Tensor, nn

from dataset.build_ipu import drawing
from dataset.samplers import Layout, step_samples
from models.build import MODELS
from training import processes
from training.building import Run
from training.progress import Progress

SHOWN = 8  # samples in a message


class Finding(NamedTuple):
    """The first non-finite value, and the names of the samples in its micro-batch."""

    what: str
    samples: List[str]

    def __str__(self) -> str:
        more = f" and {len(self.samples) - SHOWN} more" if len(self.samples) > SHOWN else ""
        return f"{self.what}, for the samples {', '.join(self.samples[:SHOWN])}{more}"


def explain(run: Run, progress: Progress, images: Tensor, targets: Tensor) -> str:
    """Repeats a step with checks and describes what is not finite; called in every process.

    The host runs it in float32 (or autocast), one micro-batch at a time, with new dropout masks. The weights are those
    before the step, since poptorch_host skipped the update, unless a GPU has already started the next step.
    """
    run.trainer.copyWeightsToHost()
    found = [finding for finding in processes.gather(_search(run, progress, images, targets), run.launch) if finding]
    if found:
        return str(found[0])
    if run.config.MODEL.PRECISION.startswith("16"):
        return "the same step is finite in float32: half precision overflowed"
    return "the same step is finite with other dropout masks"


def _search(run: Run, progress: Progress, images: Tensor, targets: Tensor) -> Optional[Finding]:
    """The first non-finite value in this process's share of the step, by micro-batch."""
    micro_batch, launch = run.config.DATA.BATCH_SIZE, run.launch.instance
    layout = Layout(
        run.config.IPU.DEVICE_ITERATIONS,
        run.config.TRAIN.ACCUMULATION_STEPS,
        launch.local_replicas,
        launch.processes,
        launch.process,
        micro_batch,
    )
    step = progress.step // run.config.IPU.DEVICE_ITERATIONS
    data = run.data.training
    indices = step_samples(len(data), layout, run.config.SEED, progress.epoch, step, drawing(run.config, data))
    model = _plain_model(run)
    for first in range(0, len(images), micro_batch):
        part = slice(first, first + micro_batch)
        what = first_bad(model, images[part], targets[part])
        if what:
            return Finding(what, [data.name(int(index)) for index in indices[part]])
    return None


def _plain_model(run: Run) -> nn.Module:
    """A copy of the run's model in float32 or autocast, for the host."""
    config = run.config.clone()
    config.defrost()
    if config.MODEL.PRECISION != "mix":
        config.MODEL.PRECISION = "32.32"
    model = MODELS[config.MODEL.TYPE](config, run.model.num_classes)
    model.load_state_dict(run.model.state_dict())
    return model.train()


def first_bad(model: nn.Module, images: Tensor, targets: Tensor) -> str:
    """The first non-finite value of a forward and backward pass (pixels, weights, module outputs, gradients).

    Empty if all are finite.
    """
    if not _is_finite(images):
        return "a pixel is not finite"
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter):
            return f"the weight {name} is not finite"
    outputs: List[str] = []
    model.zero_grad()
    with contextlib.ExitStack() as hooks, torch.random.fork_rng(devices=[]):
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_hook(_noting(name, outputs)).remove)
        _, loss = model(images, targets)
        loss.backward()
    if outputs:
        return f"the output of {outputs[0]} is not finite"
    gradients = [name for name, parameter in model.named_parameters() if not _is_finite(parameter.grad)]
    return f"the gradient of {gradients[-1]} is not finite" if gradients else ""  # the last is computed first


def _noting(name: str, outputs: List[str]) -> Callable[[nn.Module, Any, Any], None]:
    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        if any(isinstance(part, Tensor) and not _is_finite(part) for part in parts):
            outputs.append(name or "the loss")

    return note


def _is_finite(tensor: Optional[Tensor]) -> bool:
    return tensor is None or bool(torch.isfinite(tensor.detach().float()).all())
