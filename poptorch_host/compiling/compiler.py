# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Compiles a model: traces forward on one micro-batch and makes the checks of a device's compiler.

The model is not changed: buffers and inputs are restored, and weights are only read.
"""

import contextlib
import os
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch

from .._logging import logger
from ..context import activate
from ..enums import ConnectionType, OutputMode, OverlapMode
from ..errors import createPoptorchError
from ..inputs.arguments import DEVICE_DTYPES, Bound, InputContract, cut, send
from ..inputs.blank import NEEDS_VALUES
from ..inputs.nested import map_tensors, tensors_of
from ..options import Options, ShardedExecution
from ..precision.half import HalfArithmetic
from ..precision.partials import HalfPartials
from ..settings.popart_keys import check_popart_options, log_options
from ..weights.device import DeviceWeights
from .ipu_names import IpuAsHost
from .memory import returned_at_once
from .saved_values import are_overwritten, noting
from .substitutions import substituted
from .supported_ops import MaskedShapeError
from .tracing import MarkedLoss, StageRecord, Tracer, is_pipelined

MAX_IPUS = 64
_IPU_VERSIONS = (1, 2, 21)
_MIN_OVERLAP_TILES = 32
_INFERENCE_ONLY = {"poptorch::cond", "poptorch::cpu", "poptorch::for_loop"}


class Loss(NamedTuple):
    """Where the loss of a program comes from.

    Attributes:
        source: 'output' (a returned tensor), 'identity' (identity_loss) or 'built-in' (a loss of PyTorch).
        position: the index among the output tensors, or among the losses of that source in forward.
    """

    source: str
    position: int


class Compiled(NamedTuple):
    """The result of compilation: plain data except for `inputs` and `outputs`.

    Attributes:
        training: whether the program has a backward pass and a weight update.
        inputs: the arguments that a call accepts.
        outputs: the outputs of forward, with tensors on device meta; None in a loaded program.
        constant_outputs: for each output tensor, whether it is the same for every micro-batch.
        stages: the stages of forward in order of execution.
        ipus: the number of IPUs of a replica.
        loss: where the loss comes from; None for inference.
        updated_buffers: the names of the buffers that forward updates.
        touched_constants: the names of the integer buffers that forward writes to, which are restored afterwards.
        writes_inputs: whether forward writes to its inputs.
        half_arithmetic: whether the program needs `HalfArithmetic`.
        makes_tensors: whether forward creates tensors without specifying a device.
        names_ipu: whether forward uses the device name "ipu".
        draws_random_numbers: whether forward uses random numbers.
        activation_bytes: the size in bytes of the results of all operations in forward of one micro-batch.
        training_flags: the `training` flag of each module, by name.
        overwrites_saved: whether forward overwrites values that the backward pass needs.
    """

    training: bool
    inputs: InputContract
    outputs: Any
    constant_outputs: Tuple[bool, ...]
    stages: Tuple[StageRecord, ...]
    ipus: int
    loss: Optional[Loss]
    updated_buffers: Tuple[str, ...]
    touched_constants: Tuple[str, ...]
    writes_inputs: bool
    half_arithmetic: bool
    makes_tensors: bool
    names_ipu: bool
    draws_random_numbers: bool
    activation_bytes: int
    training_flags: Dict[str, bool]
    overwrites_saved: bool = False

    @property
    def ops(self) -> Tuple[str, ...]:
        """The names of all operations in forward."""
        return tuple(sorted({name for stage in self.stages for name in stage.ops}))

    @property
    def input_shapes(self) -> List[Tuple[str, Any]]:
        """The name and signature of each argument of a call."""
        return self.inputs.signatures

    @property
    def output_shapes(self) -> List[Tuple[int, ...]]:
        """The shapes of the outputs of one micro-batch."""
        return [tuple(tensor.shape) for tensor in tensors_of(self.outputs)]


def pieces_of(options: Options) -> int:
    """Returns the number of micro-batches that a call splits its inputs into; 1 for options to be refused."""
    groups = options.replication_factor // options.input_group_size
    return max(int(options.device_iterations * groups * options.Training.gradient_accumulation), 1)


def check_options(options: Options) -> None:
    """Checks options that do not depend on the model.

    Raises:
        Error: for an invalid option.
        AssertionError: for an option that was set in two ways.
    """
    counts = {
        "deviceIterations": options.device_iterations,
        "replicationFactor": options.replication_factor,
        "Training.gradientAccumulation": options.Training.gradient_accumulation,
    }
    for name, count in counts.items():
        if count < 1:
            raise createPoptorchError(f"Options.{name} is {count}: it must be at least 1")
    check_popart_options(options._Popart.options)
    log_options(options.toDict())
    _check_target(options)
    _check_periods(options, options.device_iterations * options.Training.gradient_accumulation)


def _check_periods(options: Options, steps: int) -> None:
    """Raises Error for an OutputMode.EveryN of the outputs or of an anchor that would return nothing."""
    periods = [options.output_return_period] if options.output_mode == OutputMode.EveryN else []
    periods += [period for _, _, mode, period in options.anchored_tensors.values() if mode == OutputMode.EveryN]
    for period in periods:
        if not isinstance(period, int) or not 1 <= period <= steps:
            raise createPoptorchError(
                f"OutputMode.EveryN with period {period} returns nothing: a replica runs {steps} "
                "micro-batches in a call"
            )


def _check_target(options: Options) -> None:
    offline = options.exists("ipu_version")
    simulated = options.use_model if options.exists("use_model") else os.environ.get("POPTORCH_IPU_MODEL") == "1"
    if options._Popart.options.get("instrumentWithHardwareCycleCounter") and (offline or simulated):
        raise createPoptorchError("logCycleCount needs a device: it is not supported by the IPU model or offline")
    if offline and options.ipu_version not in _IPU_VERSIONS:
        raise createPoptorchError(
            f"useOfflineIpuTarget: there are no IPUs of version {options.ipu_version!r}: use one of {_IPU_VERSIONS}"
        )
    if offline and simulated:
        raise createPoptorchError("useOfflineIpuTarget cannot be combined with the IPU model: use one of them")
    if offline and options.exists("ipu_id"):
        raise createPoptorchError("useOfflineIpuTarget cannot be combined with useIpuId: offline there is no device")


@returned_at_once()
def compile_model(
    model: torch.nn.Module,
    bound: Bound,
    inputs: InputContract,
    weights: DeviceWeights,
    options: Options,
    training: bool,
) -> Compiled:
    """Compiles a model for the given arguments.

    Args:
        model: the model to compile.
        bound: the arguments of the first call.
        inputs: the inputs that the program will accept.
        weights: the model's weights on the device.
        options: the executor's options.
        training: whether to compile a backward pass.

    Raises:
        Error, AssertionError: for the compile-time errors in sections 4, 6 and 8 of PopTorch's user guide.
    """
    arguments = _first_micro_batch(bound, inputs, weights)
    tracer = _tracer(arguments, weights, options)
    half, ipu, overwrites_saved = HalfArithmetic(HalfPartials(options)), IpuAsHost(weights.device), False
    with _unchanged_weights(weights) as changes, weights.installed(), torch.set_grad_enabled(training):
        weights.select_replica(0)
        with substituted(), weights.tracing(), activate(tracer), half, tracer.listening(model), ipu, noting(training):
            outputs = _run_forward(model, arguments, tracer)
        weights.check_slots()
        weights.plain_attributes.note_changes()
        leaves = tensors_of(outputs)
        if training:
            _check_trainable(tracer)
        loss = _find_loss(tracer, leaves) if training else None
        if training and weights.blank is None:
            overwrites_saved = are_overwritten(tracer.final_losses()[0].tensor)
            _try_half_backward(tracer, half, weights, overwrites_saved)
    _check_stages(tracer.stage_records(), options, training)
    _check_buffers(changes, options)
    _check_overlap(tracer, leaves, options)
    _warn_of_host_outputs(tracer, leaves)
    return Compiled(
        training=training,
        inputs=inputs,
        outputs=map_tensors(_shape_only, outputs),
        constant_outputs=tuple(tracer.is_constant(leaf) or not tracer.is_known(leaf) for leaf in leaves),
        stages=tracer.stage_records(),
        ipus=_count_ipus(tracer, options),
        loss=loss,
        updated_buffers=tuple(changes.updated),
        touched_constants=tuple(changes.touched_constants),
        writes_inputs=tracer.writes_inputs,
        half_arithmetic=half.needed,
        makes_tensors=tracer.makes_tensors,
        names_ipu=ipu.met,
        draws_random_numbers=tracer.draws_random_numbers,
        activation_bytes=tracer.activation_bytes,
        training_flags={name: part.training for name, part in model.named_modules()},
        overwrites_saved=overwrites_saved,
    )


def _tracer(arguments: Bound, weights: DeviceWeights, options: Options) -> Tracer:
    """A tracer that knows the weights and the arguments of the first micro-batch."""
    tensors = [tensor for _, tensor in weights.named_tensors()]
    return Tracer(
        options,
        [tensor for tensor in tensors if tensor.is_floating_point()],
        [tensor for tensor in tensors if not tensor.is_floating_point()],
        tensors_of(arguments),
    )


def _warn_of_host_outputs(tracer: Tracer, leaves: List[torch.Tensor]) -> None:
    for leaf in leaves:
        if not tracer.is_known(leaf):
            logger.warning("Output expected to be on the IPU but is on %s: it is the same for every input", leaf.device)


def _first_micro_batch(bound: Bound, inputs: InputContract, weights: DeviceWeights) -> Bound:
    """Returns a copy of the first micro-batch of the arguments; a copy, since forward may write to it."""

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.requires_grad:
            logger.warning(
                "Input tensor has requires_grad=True set. This tensor will be detached because backward pass via "
                "inputs is not supported."
            )
        if weights.blank:
            return weights.blank.like(tensor, DEVICE_DTYPES.get(tensor.dtype, tensor.dtype))
        return send(tensor, weights.device).clone()

    def first(value: Any) -> Any:
        return map_tensors(copied, cut(value, 0, inputs.pieces))

    return Bound(tuple(map(first, bound.positional)), {name: first(value) for name, value in bound.keywords.items()})


def _run_forward(model: torch.nn.Module, arguments: Bound, tracer: Tracer) -> Any:
    """Runs forward and returns its outputs. Raises Error with the names of all unsupported operations in it."""
    outputs = None
    try:
        outputs = model(*arguments.positional, **arguments.keywords)
    except MaskedShapeError:
        raise
    except NEEDS_VALUES as error:  # only on device meta
        if not tracer.unsupported:
            raise createPoptorchError(
                f"{str(error).splitlines()[0]} depends on values, which do not exist on device meta: compile on cpu, "
                "or remove it from forward"
            ) from error
    if tracer.unsupported:
        names, lines = ", ".join(tracer.unsupported), ", ".join(dict.fromkeys(tracer.unsupported.values()))
        raise createPoptorchError(f"Unsupported ops found in compiled model: [{names}], in {lines}")
    return outputs


def _shape_only(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _check_trainable(tracer: Tracer) -> None:
    """Raises Error for an operation of PopTorch that has no gradient."""
    for stage in tracer.stage_records():
        for name in _INFERENCE_ONLY & set(stage.ops):
            raise createPoptorchError(
                f"{name.replace('::', '.')}() is only supported in inference: it has no gradient on a device"
            )


# Buffers.


class _BufferChanges:
    """The buffers that forward changed.

    Attributes:
        updated: the names of all floating-point buffers that changed.
        in_place: those among them that are not statistics of a batch norm.
        touched_constants: the names of the integer buffers that changed.
    """

    def __init__(self) -> None:
        self.updated: List[str] = []
        self.in_place: List[str] = []
        self.touched_constants: List[str] = []


@contextlib.contextmanager
def _unchanged_weights(weights: DeviceWeights) -> Iterator[_BufferChanges]:
    """A context manager that restores the tensors on the device at exit and records which buffers had changed."""
    before = [(name, device, device.clone(), device._version) for name, _, device in weights.buffers]
    versions = [(device, device._version) for _, _, device in weights.parameters]
    changes = _BufferChanges()
    try:
        yield changes
    finally:
        for name, device, value, version in before:
            if device._version == version and (weights.blank or torch.equal(device, value)):
                continue
            if not device.is_floating_point():
                changes.touched_constants.append(name)
            else:
                changes.updated.append(name)
                if not weights.is_norm_statistic(name):
                    changes.in_place.append(name)
            with torch.no_grad():
                device.detach_().copy_(value)
        if any(device._version != version for device, version in versions):  # by a custom operation
            weights.upload()


def _check_buffers(changes: _BufferChanges, options: Options) -> None:
    groups = options.replication_factor // options.input_group_size
    if changes.in_place and groups > 1 and options.broadcast_buffers:
        raise createPoptorchError(
            f"PopTorch does not support broadcasting buffers: forward updates {', '.join(changes.in_place)} in place "
            f"on {groups} replicas. Use Options.broadcastBuffers(False) to let each replica keep its own"
        )


# The loss.


def _find_loss(tracer: Tracer, leaves: List[torch.Tensor]) -> Loss:
    final = tracer.final_losses()
    if not final:
        raise createPoptorchError(
            "Couldn't find a loss in graph! A trained model must compute a loss of torch.nn, or "
            "mark its own with poptorch.identity_loss"
        )
    if len(final) > 1:
        raise createPoptorchError(
            f"Multiple independent losses found in graph ({len(final)}): combine them and mark "
            "the result with poptorch.identity_loss"
        )
    return _locate_loss(final[0], leaves)


def _locate_loss(mark: MarkedLoss, leaves: List[torch.Tensor]) -> Loss:
    """Prefers the output: to find any other loss, calls of loss functions must be intercepted at run time."""
    if mark.identity:
        return Loss("identity", mark.ordinal)
    for index, leaf in enumerate(leaves):
        if leaf is mark.tensor:
            return Loss("output", index)
    return Loss("built-in", mark.ordinal)


def _try_half_backward(tracer: Tracer, half: HalfArithmetic, weights: DeviceWeights, overwrites_saved: bool) -> None:
    """Determines whether the backward pass of a half model needs `HalfArithmetic`."""
    loss = tracer.final_losses()[0].tensor
    some_half = any(tensor.dtype == torch.float16 for _, tensor in weights.named_tensors())
    if not loss.requires_grad or half.needed or not (some_half or loss.dtype == torch.float16):
        return
    if overwrites_saved:  # the backward pass cannot be tried
        half.needed = True
        return
    with half:
        torch.autograd.backward(loss, torch.ones_like(loss))
    for _, _, parameter in weights.parameters:
        parameter.grad = None


# Stages and devices.


def _check_stages(stages: Tuple[StageRecord, ...], options: Options, training: bool) -> None:
    """Raises Error if a call has too few micro-batches to fill the pipeline."""
    if not is_pipelined(options._execution_strategy):
        return
    forward = len(stages)
    if training:
        needed, given = 2 * forward - 1, options.Training.gradient_accumulation
        if given < needed:
            raise createPoptorchError(
                f"poptorch.Options().Training.gradientAccumulation must be greater than or equal to the number of "
                f"pipeline stages ({needed}) when using poptorch.PipelinedExecution, but is {given}: the forward has "
                f"{forward} stages, and training adds {forward - 1} for the backward"
            )
    elif options.device_iterations < forward:
        raise createPoptorchError(
            f"poptorch.Options().deviceIterations must be greater than or equal to the number of pipeline stages "
            f"({forward}) when using poptorch.PipelinedExecution, but is {options.device_iterations}"
        )


def _count_ipus(tracer: Tracer, options: Options) -> int:
    """Returns the number of IPUs of a replica. Raises Error if the process would need too many."""
    ids = tracer.ipus or {0}
    per_replica = max(len(ids), max(ids) + 1)
    total = per_replica * options.replication_factor
    if total > MAX_IPUS:
        raise createPoptorchError(f"Too many IPUs requested ({total}): a process can have {MAX_IPUS}")
    simulated = options.exists("ipu_version") or (options.exists("use_model") and options.use_model)
    if total & (total - 1) and not options.auto_round_num_ipus and not simulated:
        raise createPoptorchError(
            f"The model and its replicas use {total} IPUs, and a process gets a power of two: use as many, or set "
            "poptorch.Options().autoRoundNumIPUs(True)"
        )
    return per_replica


def _check_overlap(tracer: Tracer, leaves: List[torch.Tensor], options: Options) -> None:
    """Raises Error for overlapped transfers that violate one of PopTorch's rules."""
    overlaps = [(name, info) for name, info in tracer.overlaps if info["mode"] != OverlapMode.NoOverlap]
    rules: List[Tuple[Callable[[str, Dict[str, Any]], bool], str]] = [
        (lambda *_: isinstance(options._execution_strategy, ShardedExecution), "needs poptorch.ShardedExecution"),
        (
            lambda *_: _io_tiles(options) >= _MIN_OVERLAP_TILES,
            f"needs at least {_MIN_OVERLAP_TILES} I/O tiles: set Options.TensorLocations.numIOTiles",
        ),
        (
            lambda name, info: name != "set_overlap_for_input" or _is_among(info["tensor"], tracer.inputs),
            "takes inputs of the model only",
        ),
        (
            lambda name, info: (
                name != "set_overlap_for_input"
                or (tracer.uses_of_input(info["tensor"]) == 1 and not _is_among(info["tensor"], leaves))
            ),
            "must be the only use of the input: use what it returns",
        ),
        (
            lambda name, info: name != "set_overlap_for_output" or _is_among(info["result"], leaves),
            "takes outputs of the model only: return what it returns",
        ),
        (
            lambda name, _: name != "set_overlap_for_output" or options.output_mode in (OutputMode.All, OutputMode.Sum),
            "needs the output mode All or Sum",
        ),
    ]
    for name, info in overlaps:
        for holds, message in rules:
            if not holds(name, info):
                raise createPoptorchError(f"{name} {message}")


def _is_among(tensor: torch.Tensor, tensors: List[torch.Tensor]) -> bool:
    return any(tensor is other for other in tensors)


def _io_tiles(options: Options) -> int:
    locations = options.TensorLocations
    return locations("numIOTiles") if locations.exists("numIOTiles") else 0


def can_run(options: Options) -> bool:
    """Returns whether a program may be run rather than only compiled."""
    return bool(options.connection_type != ConnectionType.Never.value)
