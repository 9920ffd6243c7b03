# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""A readable summary of a compiled model. Not part of PopTorch."""

import logging
from pathlib import Path
from typing import Any, List, Sequence, Tuple

import torch

from .._logging import logger
from ..compiling.placement import placement
from ..compiling.supported_ops import supported
from ..compiling.tracing import is_pipelined
from ..inputs.nested import tensors_of
from ..options import Options, environment_engine_options
from ..settings import progress
from .inspection import Inspection

_LOSSES = {"output": "returned", "identity": "marked by identity_loss", "built-in": "PyTorch's own, inside forward"}


def summary(program: Inspection) -> List[str]:
    """Returns lines with the stages, IPUs, pipeline, inputs, outputs, operations and checks of a compiled model.

    Raises:
        Error: if the model is not compiled.
    """
    compiled, options = program._require_program("summary").compiled, program.options
    training = compiled.training
    lines = [
        "stages: "
        + ", ".join(
            f"{'+'.join(stage.blocks) or 'no block'} on IPU {stage.ipu} ({sum(stage.ops.values())} operations)"
            for stage in compiled.stages
        )
    ]
    lines.append(
        f"IPUs: {compiled.ipus * options.replication_factor} in all, {compiled.ipus} in each of "
        f"{options.replication_factor} replicas"
    )
    if is_pipelined(options._execution_strategy):
        lines.append(_pipeline(len(compiled.stages), training, options))
    lines.append("inputs of a call: " + ", ".join(_input(name, signature) for name, signature in compiled.input_shapes))
    outputs = ", ".join(_tensor(tensor.dtype, tensor.shape) for tensor in tensors_of(compiled.outputs))
    lines.append(f"outputs of a micro-batch: {outputs}")
    if compiled.loss is not None:
        lines.append(f"loss: {_LOSSES[compiled.loss.source]}")
    lines.append(_operations(compiled.ops))
    lines.append(
        f"checked: options, shapes and types of inputs, blocks and stages, {'one loss, ' if training else ''}"
        "operations and their static shapes, tensors left on the host, buffers, IPUs, overlapped transfers"
    )
    return lines


def report_compilation(program: Inspection) -> None:
    """Reports a finished compilation as its options ask for: a progress bar, a summary file, and DEBUG log lines.

    The file is DIRECTORY/NAME/summary.txt, where Poplar writes its reports: the directory is the autoReport.directory
    of `Options.enableProfiling` or POPLAR_ENGINE_OPTIONS, the name that of `Options.modelName` (default: "training" or
    "inference"). In a distributed run, the first process writes it. The log lines give the IPU and stage of each
    operation.

    Raises:
        Error: if POPLAR_ENGINE_OPTIONS is not a JSON object.
        OSError: if the file cannot be written.
    """
    compiled, options = program._require_program("report_compilation").compiled, program.options
    if logger.isEnabledFor(logging.DEBUG):
        for line in placement(compiled, options):
            logger.debug("%s", line)
    if options._show_compilation_progress_bar:
        progress.show(100, 100, program._compilation_seconds)
    engine = {**environment_engine_options(), **options._Popart.options.get("engineOptions", {})}
    if str(engine.get("autoReport.all")).lower() != "true" or options.Distributed.processId:
        return
    kind = "training" if compiled.training else "inference"
    name = options.model_name if options.exists("model_name") else kind
    folder = Path(engine.get("autoReport.directory", "."), name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.txt").write_text("\n".join(summary(program)) + "\n", encoding="utf-8")


def _pipeline(stages: int, training: bool, options: Options) -> str:
    if training:
        return (
            f"pipeline: gradient accumulation {options.Training.gradient_accumulation}, at least {2 * stages - 1} "
            f"for {stages} stages"
        )
    return f"pipeline: device iterations {options.device_iterations}, at least {stages} for {stages} stages"


def _input(name: str, signature: Tuple[Any, ...]) -> str:
    kind, *rest = signature
    return f"{name} {_tensor(*rest[:2])}" if kind == "tensor" else f"{name} {rest[0] if kind == 'constant' else kind}"


def _tensor(dtype: torch.dtype, shape: Tuple[int, ...]) -> str:
    return f"{str(dtype).replace('torch.', '')} {list(shape)}"


def _operations(names: Sequence[str]) -> str:
    """In-place operations count as the plain ones. Other unlisted ones have constant inputs or are PopTorch's own."""
    plain = {name[:-1] if name.endswith("_") else name for name in names}
    listed = supported().intersection(plain)
    rest = sorted(plain - listed)
    return f"operations: {len(listed)} of the {len(supported())} that PopTorch compiles" + (
        f"; on constants, or PopTorch's own: {', '.join(rest)}" if rest else ""
    )
