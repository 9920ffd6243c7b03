# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Runs a compiled program: the forward and backward passes of its micro-batches, and the weight updates.

Micro-batches run in the order of a device's program: device iterations are the outermost loop, then gradient
accumulation, then replicas. Several can be folded into one pass over a new dimension (`torch.func.vmap`), which keeps
them independent, so that results differ only by rounding.
"""

import contextlib
import time
from typing import Any, ContextManager, Iterator, List, Optional, Sequence, Set, Tuple

import torch

from .. import host
from .._logging import logger
from ..compiling.compiler import Compiled
from ..compiling.ipu_names import IpuAsHost
from ..compiling.losses import LossMode
from ..compiling.memory import returned_at_once
from ..compiling.substitutions import any_registered, substituted
from ..context import Execution, activate
from ..enums import CommGroupType, OutputMode
from ..errors import createPoptorchError
from ..inputs.arguments import Bound, send
from ..inputs.nested import map_tensors, replace_tensors, tensors_of
from ..options import Options
from ..precision.half import HalfArithmetic
from ..precision.partials import HalfPartials
from ..updating.update import WeightUpdate
from ..weights.device import DeviceWeights
from . import latency
from .anchors import Anchors
from .faults import FloatingPointFaults
from .link import Link
from .norm_statistics import NormStatistics
from .outputs import Collector, Selection, seal, to_host

# On a CPU, folding pays off for small models only: limits for the results of all operations, of one micro-batch and of
# all folded ones. On other devices, only memory limits it. A few micro-batches do not outweigh the overhead of vmap.
# (benchmarks/poptorch_host_folding.py)
_CPU_MICRO_BATCH_BYTES, _CPU_FOLD_BYTES = 2 * 2**20, 64 * 2**20
_LEAST_FOLD = 4
_FOLD_MEMORY_SHARE = 4  # at most 1/4 of the device's memory
_ONE_BY_ONE = {"poptorch::cpu", "poptorch::ipu_print_tensor"}  # operations with visible side effects

_NOTHING = contextlib.nullcontext()
_no_hooks = torch.autograd.graph.disable_saved_tensors_hooks  # those of checkpoints run a part of the model again


class RunExecution(Execution):
    """The execution of a forward pass, which captures the loss.

    Args:
        identity: whether the loss is one of identity_loss rather than of a built-in loss function.
        ordinal: its index among the losses of that source in forward.
    """

    def __init__(self, identity: bool, ordinal: int) -> None:
        super().__init__()
        self._identity = identity
        self._ordinal = ordinal
        self._marks = 0
        self.loss: Optional[torch.Tensor] = None

    def begin_forward(self) -> None:
        """Called before each forward pass."""
        self.restart_block_ids()
        self._marks = 0
        self.loss = None

    def mark_loss(self, tensor: torch.Tensor, reduction: str) -> None:
        """See `Execution`."""
        if self._identity:
            self._mark(tensor)

    def mark_built_in(self, tensor: torch.Tensor) -> None:
        """Called for the result of a PyTorch loss function."""
        if not self._identity:
            self._mark(tensor)

    def _mark(self, tensor: torch.Tensor) -> None:
        if self._marks == self._ordinal:
            self.loss = tensor
        self._marks += 1


class Engine:
    """Runs the calls of a compiled program.

    Args:
        model: the model, which shares its modules with the user's.
        compiled: the result of compilation.
        weights: the weights on the device.
        options: the executor's options.
        update: the weight update of a training program; None for inference.

    Attributes:
        template: the outputs of one micro-batch, whose containers every call returns.
        anchors: the anchored tensors.
        fold: the number of micro-batches to compute together.
        times: the times of every micro-batch of the last call.
        link: what copies to a GPU and back without waiting; None on the host.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        compiled: Compiled,
        weights: DeviceWeights,
        options: Options,
        update: Optional[WeightUpdate],
    ) -> None:
        self._model = model
        self._compiled = compiled
        self._weights = weights
        self._options = options
        self._update = update
        self._device = weights.device
        self._replicas: int = options.replication_factor
        self._per_update: int = options.Training.gradient_accumulation * self._replicas
        self._total: int = options.device_iterations * self._per_update
        self._selection = Selection(
            OutputMode(options.output_mode), options.output_return_period, self._total // self._replicas, self._replicas
        )
        loss = compiled.loss
        self._execution = RunExecution(loss is not None and loss.source == "identity", loss.position if loss else 0)
        self._loss_leaf = loss.position if loss is not None and loss.source == "output" else None
        self._installed, self._active = weights.installed(), activate(self._execution)
        self._plain_attributes = weights.plain_attributes if weights.plain_attributes else None
        norms = any(weights.is_norm_statistic(name) for name in compiled.updated_buffers)
        self._statistics = NormStatistics() if norms else None
        self._needs_modes = self._runs_under_modes()
        self._faults = bool(options._Popart.options.get("enableFloatingPointChecks", False))
        # shared by all calls, since it caches which kernels PyTorch lacks
        self._half = HalfArithmetic(HalfPartials(options))
        self._factor = 1.0
        self._last_root: Optional[torch.Tensor] = None
        self._constants = [
            (device, device.clone()) for name, _, device in weights.buffers if name in compiled.touched_constants
        ]
        self._detaches_inputs = compiled.writes_inputs and update is not None
        self._states = weights.states(set(compiled.updated_buffers)) if update is not None else []
        self._per_replica = weights.has_values_per_replica()
        self._prepares = (
            self._per_replica or self._detaches_inputs or bool(self._states) or self._plain_attributes is not None
        )
        self._own_memory = weights.storages()
        self._pieces = compiled.inputs.pieces
        self._group_size: int = options.input_group_size
        self._orthogonal: bool = options.input_cgt == CommGroupType.Orthogonal
        self.link = Link(self._device) if self._device.type == "cuda" else None
        fetch = to_host if self.link is None else self.link.fetch
        self.template = compiled.outputs
        self._collectors = [
            Collector(self._selection, constant, self._is_shared, fetch) for constant in compiled.constant_outputs
        ]
        self.anchors = Anchors(options, weights, update, self._total // self._replicas)
        self.fold = self._choose_fold()
        self.times: List[latency.Times] = []
        # Of the current call: its arguments, their rows by micro-batch, and the memory that outputs must not share.
        self._arguments: Optional[Bound] = None
        self._rows: Optional[List[Sequence[torch.Tensor]]] = None
        self._taken_memory: Optional[Set[int]] = None

    def _runs_under_modes(self) -> bool:
        compiled = self._compiled
        return (
            compiled.half_arithmetic
            or compiled.names_ipu
            or self._waits_for_built_in()
            or compiled.overwrites_saved
            or self._plain_attributes is not None
            or self._statistics is not None
            or any_registered()
            or (compiled.makes_tensors and self._device.type != "cpu")
        )

    # A call.

    def run(self, bound: Bound) -> Any:
        """Runs one call. Returns the outputs of the selected micro-batches on the host (see `Link`)."""
        if not self.times and self._update is not None:
            with returned_at_once():  # what the first call leaves, such as kernels of oneDNN, lies together
                return self._run(bound)
        return self._run(bound)

    def _run(self, bound: Bound) -> Any:
        self.times = []
        if self._arguments is not None:  # the last call raised an error
            for collector in self._collectors:
                collector.forget()
        if self.anchors:
            self.anchors.begin_call()
        start = time.perf_counter()
        with self._installed, self._active, self._grad_mode(), self._modes():
            arguments = Bound(
                tuple([self._send(value) for value in bound.positional]),
                {name: self._send(value) for name, value in bound.keywords.items()},
            )
            self._arguments, self._taken_memory, self._rows = arguments, None, None
            for first in range(0, self._total, self._per_update if self._update is not None else self._total):
                start = self._run_update(arguments, first, start)
        if self._compiled.writes_inputs:
            _write_back(arguments, bound)
        outputs = replace_tensors(self.template, iter([seal(collector.result()) for collector in self._collectors]))
        if self.anchors:
            self.anchors.end_call()
        self._arguments = self._rows = None
        self.end_call()
        return outputs

    def end_call(self) -> None:
        """Notes that the outputs of the last call are there."""
        self.times[-1] = (*self.times[-1][:-1], time.perf_counter())

    def _send(self, value: Any) -> Any:
        if type(value) is torch.Tensor:
            return self._send_one(value)
        return map_tensors(self._send_one, value)

    def _send_one(self, tensor: torch.Tensor) -> torch.Tensor:
        return send(tensor, self._device) if self.link is None else self.link.send(tensor)

    def _grad_mode(self) -> ContextManager[Any]:
        """Returns a context manager that enables gradients for training only, whatever the caller's mode is."""
        wanted = self._update is not None
        return _NOTHING if torch.is_grad_enabled() == wanted else torch.set_grad_enabled(wanted)

    def _run_update(self, arguments: Bound, first: int, start: float) -> float:
        """Runs the micro-batches of a weight update, or of a whole inference call. Returns the time of its end."""
        end = first + (self._per_update if self._update is not None else self._total)
        if self._update is not None and self._factor != self._update.root_gradient():
            self._factor, self._last_root = self._update.root_gradient(), None
        while first < end:
            count = min(self.fold, end - first)
            if count > 1:
                count = self._try_folded(arguments, first, count)
            else:
                self._run_one(arguments, first)
            first += count
            now = time.perf_counter()
            self.times += [(start, self._ready, now, now)] * count
            start = now
        if self._update is not None:
            self._update.apply()
            if self.anchors:
                self.anchors.collect_updated()
        return start

    def _run_one(self, arguments: Bound, index: int) -> None:
        """Runs forward and, in training, backward of one micro-batch."""
        if self._pieces > 1:
            arguments = self._cut(arguments, self._piece(index))
        if self._prepares:
            arguments = self._prepare(arguments, index % self._replicas)
        self._execution.begin_forward()
        self._ready = time.perf_counter()
        outputs = self._model(*arguments.positional, **arguments.keywords)
        leaves = tensors_of(outputs)
        if self.template is None:
            self.template = outputs
        if self._selection.keeps[index]:
            for collector, leaf in zip(self._collectors, leaves):
                collector.add(leaf, index)
        loss = self._execution.loss if self._loss_leaf is None else leaves[self._loss_leaf]
        if self._update is not None:
            self._back_propagate(self._update, loss, 1)
        if self._statistics is not None:
            self._statistics.end_micro_batch(training=self._update is not None)
        if self.anchors:
            self.anchors.collect(index, loss)
        if self._constants:
            self._restore_constants()

    def _prepare(self, arguments: Bound, replica: int) -> Bound:
        """Restores the state that a micro-batch starts from, where the previous one has changed it."""
        if self._per_replica:
            self._weights.select_replica(replica)
        if self._plain_attributes is not None:
            self._plain_attributes.rewind()
        for state in self._states:
            if state.requires_grad:  # gradients do not flow between micro-batches
                state.detach_()
        return Bound(*map_tensors(torch.Tensor.detach, tuple(arguments))) if self._detaches_inputs else arguments

    def _cut(self, arguments: Bound, piece: int) -> Bound:
        """Returns the arguments of one micro-batch, as views. The first call splits them for all micro-batches."""
        if self._rows is None:
            tensors = tensors_of(tuple(arguments))
            self._rows = [torch.split(tensor, tensor.shape[0] // self._pieces) for tensor in tensors]
        rows = [pieces[piece] for pieces in self._rows]
        if self._compiled.inputs.is_plain and not arguments.keywords:
            return Bound(tuple(rows), arguments.keywords)
        return Bound(*replace_tensors(tuple(arguments), iter(rows)))

    def _back_propagate(self, update: WeightUpdate, loss: Optional[torch.Tensor], count: int) -> None:
        if loss is None:
            raise createPoptorchError(
                "forward did not compute the loss that it was compiled with: it must do the same in every call"
            )
        update.before_backward(count)
        if loss.requires_grad:
            torch.autograd.backward(loss, update.scaled(self._root(loss)))
        update.accumulate(count)

    def _root(self, loss: torch.Tensor) -> torch.Tensor:
        """Returns the gradient of the loss, which has the same value in every element."""
        root = self._last_root
        if root is None or root.shape != loss.shape or root.dtype != loss.dtype:
            root = self._last_root = torch.full_like(loss, self._factor, requires_grad=False)
        return root

    def _piece(self, index: int) -> int:
        """Returns the piece of the inputs that micro-batch `index` gets. Replicas of a group share one."""
        if self._group_size == 1:
            return index
        step, replica = divmod(index, self._replicas)
        groups = self._replicas // self._group_size
        return step * groups + (replica % groups if self._orthogonal else replica // self._group_size)

    def _is_shared(self, tensor: torch.Tensor) -> bool:
        """Returns whether an output shares memory with a weight, an input or another output."""
        if self._taken_memory is None:
            arguments = tensors_of(tuple(self._arguments or ()))
            self._taken_memory = {other.untyped_storage().data_ptr() for other in arguments}
        memory = tensor.untyped_storage().data_ptr()
        if memory in self._own_memory or memory in self._taken_memory:
            return True
        self._taken_memory.add(memory)
        return False

    def _restore_constants(self) -> None:
        with torch.no_grad():
            self._weights.restore_constants(self._constants)

    def returned(self) -> List[int]:
        """Returns the micro-batches after which outputs are returned."""
        return self._selection.transfers

    def _modes(self) -> ContextManager[Any]:
        """Returns a context manager with the modes that the program needs. Most programs need none."""
        if not (self._needs_modes or self._faults):
            return _NOTHING
        compiled = self._compiled
        modes: List[ContextManager[Any]] = [
            mode for mode in (self._plain_attributes, self._statistics) if mode is not None
        ]
        if compiled.overwrites_saved:
            modes.append(torch.autograd.graph.allow_mutation_on_saved_tensors())
        if compiled.half_arithmetic:
            modes.append(self._half)
        if compiled.makes_tensors and self._device.type != "cpu":
            modes.append(self._device)
        if compiled.names_ipu:
            modes.append(IpuAsHost(self._device))
        if self._waits_for_built_in():
            modes.append(LossMode(self._execution.mark_built_in))
        if self._faults:
            # entered last, so that it sees operations first, as in the program
            modes.append(FloatingPointFaults())
        stack = contextlib.ExitStack()
        stack.enter_context(substituted())
        for mode in modes:
            stack.enter_context(mode)
        return stack

    def _waits_for_built_in(self) -> bool:
        """Returns whether the loss is a built-in one that is not returned: loss functions are then intercepted."""
        return self._compiled.loss is not None and self._compiled.loss.source == "built-in"

    # Folding.

    def _choose_fold(self) -> int:
        """Returns the number of micro-batches to compute together. Depends on the program and the machine only."""
        if self._update is not None and not self._update.can_fold:
            return 1
        compiled, limit = self._compiled, host.fold_limit()
        if (
            self._total == 1
            or compiled.updated_buffers
            or compiled.touched_constants
            or compiled.writes_inputs
            or compiled.overwrites_saved
            or compiled.half_arithmetic
            or self._per_replica
            or self.anchors
            or self._waits_for_built_in()
            or self._faults
            or self._group_size > 1
            or _ONE_BY_ONE.intersection(compiled.ops)
            or host.is_kept_apart(self._model)
        ):
            return 1
        together = self._per_update if compiled.training else self._total
        if limit is not None:
            return min(limit, together)
        single, budget = max(compiled.activation_bytes, 1), host.total_memory(self._device) // _FOLD_MEMORY_SHARE
        if self._device.type == "cpu":
            if single > _CPU_MICRO_BATCH_BYTES:
                return 1
            budget = min(budget, _CPU_FOLD_BYTES)
        fold = min(together, budget // single)
        return fold if fold >= _LEAST_FOLD else 1

    def _try_folded(self, arguments: Bound, first: int, count: int) -> int:
        """Runs `count` micro-batches together. If that fails, runs one and disables folding. Returns how many ran."""
        try:
            outputs, leaves, loss = self._forward_folded(arguments, first, count)
        except Exception as error:  # of any kind: an error of the program itself is raised again below
            logger.debug("Micro-batches cannot be folded and run one at a time: %s", error)
            self.fold = 1
            self._run_one(arguments, first)
            return 1
        if self.template is None:
            self.template = outputs
        for collector, leaf in zip(self._collectors, leaves):
            collector.add_folded(leaf, first, count)
        if self._update is not None:
            self._back_propagate(self._update, loss, count)
        return count

    def _forward_folded(self, arguments: Bound, first: int, count: int) -> Tuple[Any, List[torch.Tensor], Any]:
        """Runs forward for `count` micro-batches. Returns the outputs of one, the stacked outputs, and the losses."""
        pieces = self._compiled.inputs.pieces
        tensors = tensors_of(tuple(arguments))
        stacked = [
            tensor.view(pieces, tensor.shape[0] // pieces, *tensor.shape[1:])[first : first + count]
            for tensor in tensors
        ]
        returned: List[Any] = []

        def forward(*micro_batch: torch.Tensor) -> Tuple[torch.Tensor, ...]:
            bound = Bound(*replace_tensors(tuple(arguments), iter(micro_batch)))
            self._execution.begin_forward()
            if self._plain_attributes is not None:
                self._plain_attributes.rewind()
            outputs = self._model(*bound.positional, **bound.keywords)
            returned.append(outputs)
            loss = () if self._execution.loss is None else (self._execution.loss,)
            return (*tensors_of(outputs), *loss)

        self._ready = time.perf_counter()
        with _no_slow_vmap(), _attention_in_parts(), _no_hooks("hooks of saved tensors run after the fold"):
            results = list(torch.func.vmap(forward, randomness="different")(*stacked))
        if self._loss_leaf is not None:
            return returned[0], results, results[self._loss_leaf]
        if self._update is not None:
            return returned[0], results[:-1], results[-1]
        return returned[0], results, None


def _write_back(arguments: Bound, given: Bound) -> None:
    """Copies inputs that forward wrote to back to the caller's tensors, if they were converted."""
    with torch.inference_mode():  # allows writing to inference tensors and to leaves
        for sent, tensor in zip(tensors_of(tuple(arguments)), tensors_of(tuple(given))):
            if sent.data_ptr() != tensor.data_ptr() and tensor.is_contiguous():
                tensor.copy_(sent)


def _attention_in_parts() -> ContextManager[Any]:
    """Returns a context manager that disables fused attention kernels, which vmap does not support."""
    attention = getattr(torch.nn, "attention", None)
    return attention.sdpa_kernel(attention.SDPBackend.MATH) if attention is not None else _NOTHING


@contextlib.contextmanager
def _no_slow_vmap() -> Iterator[None]:
    """Makes vmap raise for operations without a batching rule, for which it would be as slow as the loop."""
    functorch: Any = torch._C._functorch
    enabled = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(enabled)
