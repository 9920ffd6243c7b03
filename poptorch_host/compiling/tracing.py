# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Traces a forward pass: records operations with their stages and inputs, and checks what a device does not support."""

import collections
import contextlib
from typing import Any, Dict, FrozenSet, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .._logging import logger
from ..context import Execution
from ..errors import createPoptorchError
from ..inputs.nested import tensors_in
from ..options import Options, PipelinedExecution, ShardedExecution
from . import losses
from .callers import asked_by_pytorch, line_of_program
from .host_tensors import is_forced_to_device, names_device, run_on_host
from .ipu_names import IPU
from .supported_ops import (
    MaskedShapeError,
    one_hot_without_classes,
    selects_by_mask,
    takes_function,
    takes_operation,
    unsupported_embedding,
    unsupported_form,
    unsupported_recurrence,
)

# Functions that copy a host value to the device.
_TRANSFERS = {"to", "tensor", "as_tensor", "asarray", "new_tensor", "cuda", "type_as"}
# Operations that may run outside blocks, since they compute nothing.
_BOOKKEEPING = {"aten::detach", "aten::alias", "aten::lift_fresh", "aten::lift"}
# Operations for which PyTorch converts a Python number to a tensor without a dispatched operation.
_FROM_NUMBERS = {
    "aten::index_put_",
    "aten::index_put",
    "aten::_index_put_impl_",
    "aten::fill_",
    "aten::masked_fill_",
    "aten::masked_fill",
    "aten::where",
    "aten::copy_",
}
# Functions that copy an index to the device of the indexed tensor.
_INDEXING = {"__getitem__", "__setitem__"}
_DEVICE_OF: Any = torch.Tensor.device.__get__
# Functions that read values without a dispatched operation.
_READS = {"tolist", "numpy", "__array__"}
_CONVOLUTIONS = {"aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::conv_transpose2d", "aten::convolution"}

_NONE: FrozenSet[int] = frozenset()


def is_pipelined(strategy: Any) -> bool:
    """Returns whether stages run in parallel."""
    return isinstance(strategy, PipelinedExecution) and not isinstance(strategy, ShardedExecution)


def first_stage(strategy: Any) -> int:
    """Returns the number of the first stage: AutoStage.AutoIncrement counts from 1, all else from 0."""
    return int(isinstance(strategy, PipelinedExecution) and strategy.counts_from_one)


class StageRecord(NamedTuple):
    """A stage of forward.

    Attributes:
        ipu: the IPU that it runs on.
        blocks: the ids of its blocks.
        run: its operations in order, each prefixed with its name scopes: 'outer/inner/aten::add'.
    """

    ipu: int
    blocks: Tuple[str, ...]
    run: Tuple[str, ...]

    @property
    def ops(self) -> Dict[str, int]:
        """The number of calls of each operation."""
        return collections.Counter(name.rsplit("/", 1)[-1] for name in self.run)


class MarkedLoss(NamedTuple):
    """A tensor that was marked as a loss, by identity_loss or a built-in loss; `ordinal` is its index among these."""

    identity: bool
    ordinal: int
    tensor: torch.Tensor


class _Value(NamedTuple):
    """What is known of a storage: whether it is a compile-time constant, the losses it depends on, and its stage."""

    constant: bool
    marks: FrozenSet[int] = _NONE
    stage: int = 0


class Tracer(Execution):
    """The execution that traces forward.

    Args:
        options: the executor's options.
        device_tensors: parameters and floating-point buffers.
        constants: integer buffers, which are compiled into the program.
        inputs: the tensors of the micro-batch.
    """

    compiling = True

    def __init__(
        self,
        options: Options,
        device_tensors: Iterable[torch.Tensor],
        constants: Iterable[torch.Tensor],
        inputs: List[torch.Tensor],
    ) -> None:
        super().__init__()
        self._strategy = options._execution_strategy
        self._pipelined = is_pipelined(self._strategy)
        self._values: Dict[int, _Value] = {}
        self._identities: Dict[int, Any] = {}  # what keeps the key of a value from being that of a later tensor
        for tensor in list(device_tensors) + inputs:
            self._learn(tensor, _Value(constant=False))
        for tensor in constants:
            self._learn(tensor, _Value(constant=True))
        self.inputs = inputs
        self._input_uses = {id(tensor): 0 for tensor in inputs}
        self._input_memory = {_storage(tensor) for tensor in inputs}
        self.writes_inputs = False
        self.stages: List[Tuple[int, List[str], List[str]]] = [(0, [], [])]
        self._name_scopes: List[str] = []
        self.ipus: Set[int] = set()
        self._stage_index = 0
        self._in_block: Optional[bool] = None  # None before the first block, False between blocks
        self._whole_functions = 0
        self.marks: List[MarkedLoss] = []
        self._superseded: Set[int] = set()
        self.unsupported: Dict[str, str] = {}  # operations, and the line of the program that has the first of each
        self.draws_random_numbers = False
        self._factories: Set[str] = set()
        self.makes_on_device = False  # where the function that runs makes tensors; outside of any, on the host
        self.activation_bytes = 0
        self.overlaps: List[Tuple[str, Dict[str, Any]]] = []
        self._convolutions_before_group: Optional[int] = None

    @contextlib.contextmanager
    def listening(self, model: torch.nn.Module) -> Iterator[None]:
        """A context manager that records and checks every operation. The modules of `model` are name scopes."""
        self._strategy.onStartTracing()
        checks = torch.distributions.Distribution._validate_args
        torch.distributions.Distribution.set_default_validate_args(False)  # they would read values
        try:
            with self._scopes_of_parts(model), _FunctionListener(self), _OperationListener(self):
                yield
        finally:
            torch.distributions.Distribution.set_default_validate_args(checks)
            self._strategy.onEndTracing()

    @contextlib.contextmanager
    def _scopes_of_parts(self, model: torch.nn.Module) -> Iterator[None]:
        names = {part: name.rpartition(".")[2] for name, part in model.named_modules() if name}

        def enter(part: torch.nn.Module, _: Any) -> None:
            if part in names:
                self._name_scopes.append(names[part])

        def leave(part: torch.nn.Module, *_: Any) -> None:
            if part in names:
                del self._name_scopes[-1:]  # empty if the call began earlier in another thread

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    # Hooks for PopTorch's operations.

    def begin_block(self, user_id: str, ipu_id: Optional[int]) -> None:
        """See `Execution`."""
        place = self._strategy.place(user_id, ipu_id)
        self._in_block = True
        if place.ipu != self.stages[-1][0]:
            self.stages.append((place.ipu, [], []))
        self.stages[-1][1].append(user_id)
        self._stage_index = place.stage

    def end_block(self) -> None:
        """See `Execution`."""
        self._in_block = False

    def mark_loss(self, tensor: torch.Tensor, reduction: str) -> None:
        """See `Execution`."""
        self._mark(tensor, identity=True)

    def note_op(self, name: str, **info: Any) -> None:
        """See `Execution`."""
        if name.startswith("set_overlap"):
            self.overlaps.append((name, info))
        elif name.startswith("multi_conv"):
            self._group_convolutions(name, info["options"])
        elif name == "name_scope":
            self._name_scopes.append(info["scope"])
        elif name == "name_scope_end":
            del self._name_scopes[-1:]  # a program may end more than it began
        if "result" in info and isinstance(info.get("tensor"), torch.Tensor):
            self._learn(info["result"], self._value(info["tensor"]) or _Value(False))
        self._count(f"poptorch::{name}")

    def _group_convolutions(self, name: str, settings: Dict[str, Any]) -> None:
        """Called when a MultiConv begins or ends. Raises Error if its convolutions cannot be planned together."""
        count = sum(stage.ops.get(op, 0) for stage in self.stage_records() for op in _CONVOLUTIONS)
        if name == "multi_conv":
            if self._convolutions_before_group is not None:
                raise createPoptorchError("A poptorch.MultiConv cannot be inside another")
            self._convolutions_before_group = count
            return
        inside, self._convolutions_before_group = count - (self._convolutions_before_group or 0), None
        if inside == 0:
            raise createPoptorchError("A poptorch.MultiConv has no convolution inside")
        for option, value in settings.items():
            if isinstance(value, (list, tuple)) and len(value) != inside:
                raise createPoptorchError(f"MultiConv.{option} has {len(value)} values for {inside} convolutions")

    # Losses.

    def mark_built_in(self, tensor: torch.Tensor) -> None:
        """Called for the result of a PyTorch loss function."""
        self._mark(tensor, identity=False)

    def _mark(self, tensor: torch.Tensor, identity: bool) -> None:
        before = self._value(tensor) or _Value(False)
        self._superseded |= before.marks
        ordinal = sum(mark.identity == identity for mark in self.marks)
        self._learn(tensor, before._replace(constant=False, marks=before.marks | {len(self.marks)}))
        self.marks.append(MarkedLoss(identity, ordinal, tensor))

    def final_losses(self) -> List[MarkedLoss]:
        """Returns the marked losses that no other marked loss depends on."""
        return [mark for index, mark in enumerate(self.marks) if index not in self._superseded]

    # PyTorch's operations.

    def is_constant(self, tensor: torch.Tensor) -> bool:
        """Returns whether a tensor has the same value in every micro-batch."""
        value = self._value(tensor)
        return value is not None and value.constant

    def is_known(self, tensor: torch.Tensor) -> bool:
        """Returns whether a tensor was created on the device or copied to it."""
        return self._value(tensor) is not None

    def uses_of_input(self, tensor: torch.Tensor) -> int:
        """Returns the number of operations that read an input of the model."""
        return self._input_uses[id(tensor)]

    def bring_to_device(self, tensor: torch.Tensor) -> None:
        """Called for a host tensor that is copied to the device, as a constant of the program."""
        if not self.is_known(tensor):
            self._learn(tensor, _Value(constant=True))

    def check_function(self, name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        """Called before a PyTorch function runs. Raises Error, or records it, if it is not supported."""
        if one_hot_without_classes(name, args, kwargs):
            raise createPoptorchError("one_hot needs num_classes on a device: shapes cannot depend on data")
        lacking = unsupported_recurrence(name, args) or unsupported_embedding(name, kwargs)
        if lacking is not None:
            raise createPoptorchError(f"{name} is not supported on a device with {lacking}")
        if name in _INDEXING and self.is_known(args[0]):
            for index in tensors_in(args[1:2]):
                self.bring_to_device(index)
        read = args[0] if name in _READS and self.own_op_depth == 0 else None
        if read is not None and self.is_known(read) and not self.is_constant(read):
            self.unsupported.setdefault("aten::_local_scalar_dense", line_of_program())
        if losses.smooths_mean_of_indices(name, args, kwargs):
            self.unsupported.setdefault("aten::masked_select", line_of_program())
        if is_forced_to_device(name, args, kwargs):
            if name not in self._factories and self.own_op_depth == 0:
                logger.warning("No device set in torch.%s(): forcing to IPU", name)
            self._factories.add(name)

    def is_on_device(self, name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
        """Returns whether what a function makes is on the device."""
        if kwargs.get("device") is not None:
            return bool(kwargs["device"] != "cpu")
        values = tensors_in((*args, *kwargs.values()))
        return is_forced_to_device(name, args, kwargs) or any(map(self.is_known, values))

    @property
    def makes_tensors(self) -> bool:
        """Whether forward creates tensors without specifying a device."""
        return bool(self._factories)

    def enter_function(self, name: str) -> None:
        """Called when a function begins that devices support as a whole."""
        self._whole_functions += 1
        self._count(f"aten::{name}")

    def leave_function(self) -> None:
        """Called when such a function ends."""
        self._whole_functions -= 1

    def run(self, func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """Checks, runs and records an operation."""
        name = func._schema.name
        # A query such as the device of a tensor without values, or an operation that reports itself.
        if func.namespace in ("prim", "poptorch"):
            return func(*args, **kwargs)
        inputs = tensors_in(args) + tensors_in(tuple(kwargs.values()))
        reads = name == "aten::_local_scalar_dense"  # such as the bounds of a slice
        if not any(map(self.is_known, inputs)) and (reads or not self.makes_on_device):
            return run_on_host(func, args, kwargs, inputs)
        self._count_uses(name, inputs)
        whole = self.own_op_depth > 0 or self._whole_functions > 0
        if name in ("aten::lift_fresh", "aten::lift"):
            self.bring_to_device(inputs[0])
        elif self.own_op_depth == 0:
            self._check_place(name)
            self._check_inputs(name, inputs)
        random = torch.Tag.nondeterministic_seeded in func.tags and not name.startswith("aten::_scaled_dot")
        constant = not random and all(self.is_constant(tensor) for tensor in inputs)
        if self.own_op_depth == 0 and not constant:
            self._check_form(name, args)
        if not whole:
            self._check_operation(func, args, constant)
        self.draws_random_numbers |= random
        result = func(*args, **kwargs)
        read = [self._value(tensor) or _Value(False) for tensor in inputs]
        marks = frozenset().union(*[value.marks for value in read])
        stage = self._stage_of_result(func, read, constant)
        written = _written(func, args, kwargs)
        self.writes_inputs |= any(_storage(tensor) in self._input_memory for tensor in written)
        # What an operation of PopTorch's, such as a custom one, writes in place stays a result of its stage.
        kept = {_storage(tensor): self._value(tensor) for tensor in written} if self.own_op_depth > 0 else {}
        for tensor in tensors_in((result,)) + written:
            before = kept.get(_storage(tensor))
            self._learn(tensor, _Value(constant, marks, stage if before is None else before.stage))
        if all(returned.alias_info is None for returned in func._schema.returns):  # neither views nor in place
            self.activation_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors_in((result,)))
        return result

    def _stage_of_result(self, func: Any, read: List[_Value], constant: bool) -> int:
        """Returns the stage that computes the result. Raises Error if an input is computed by a later stage."""
        if constant:
            return 0
        latest = max([value.stage for value in read], default=0)
        if any(
            returned.alias_info is not None and not returned.alias_info.is_write for returned in func._schema.returns
        ):
            return latest  # a view can be created anywhere
        if self._pipelined and latest > self._stage_index:
            raise createPoptorchError(
                f"{func._schema.name} in block {self.stages[-1][1][-1]} of stage "
                f"{self._stage_index} reads a result of stage {latest}: a pipeline stage cannot depend on a later one"
            )
        return self._stage_index

    def _count_uses(self, name: str, inputs: List[torch.Tensor]) -> None:
        for tensor in inputs:
            if id(tensor) in self._input_uses and name not in _BOOKKEEPING:
                self._input_uses[id(tensor)] += 1

    def _check_place(self, name: str) -> None:
        if self._in_block is False and name not in _BOOKKEEPING:
            raise createPoptorchError(
                f"No active Block: {name} runs after a poptorch.Block has ended and before the "
                "next begins; put it into a block"
            )

    def _check_inputs(self, name: str, inputs: List[torch.Tensor]) -> None:
        if name in ("aten::copy_", "aten::index"):  # may read from the host: x[index] moves its index
            inputs = inputs[:1]
        made_here = self.makes_on_device and not any(map(self.is_known, inputs))
        for tensor in inputs:
            made_inside = made_here or tensor.dim() == 0 and (self._whole_functions > 0 or name in _FROM_NUMBERS)
            if not made_inside and not self.is_known(tensor):
                raise createPoptorchError(
                    f"Expected an IPU tensor but got a tensor of the host, of shape {list(tensor.shape)}, in {name}: "
                    "register it as a buffer or parameter, make it inside forward, or pass it as an input"
                )

    def _check_form(self, name: str, args: Tuple[Any, ...]) -> None:
        lacking = unsupported_form(name, args)
        if lacking is not None:
            raise createPoptorchError(f"{name} is not supported on a device with {lacking}")

    def _check_operation(self, func: Any, args: Tuple[Any, ...], constant: bool) -> None:
        name = func._schema.name
        if selects_by_mask(name, args):
            raise MaskedShapeError(func)
        if not constant and not takes_operation(name):
            self.unsupported.setdefault(name, line_of_program())
        self._count(name)

    def _count(self, name: str) -> None:
        ipu, _, run = self.stages[-1]
        self.ipus.add(ipu)
        run.append("/".join([*self._name_scopes, name]))

    def _value(self, tensor: torch.Tensor) -> Optional[_Value]:
        return self._values.get(_storage(tensor))

    def _learn(self, tensor: torch.Tensor, value: _Value) -> None:
        key = _storage(tensor)
        self._values[key] = value
        if key not in self._identities:
            strided = tensor.layout == torch.strided
            self._identities[key] = StorageWeakRef(tensor.untyped_storage()) if strided else tensor

    def stage_records(self) -> Tuple[StageRecord, ...]:
        """Returns the stages in order of execution."""
        return tuple(StageRecord(ipu, tuple(blocks), tuple(run)) for ipu, blocks, run in self.stages)


class _FunctionListener(TorchFunctionMode):
    """Reports calls of PyTorch's functions to a tracer."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tracer = self._tracer
        if func == _DEVICE_OF and tracer.own_op_depth == 0 and tracer.is_known(args[0]) and not asked_by_pytorch():
            return IPU
        tracer.check_function(name, args, kwargs)
        around, tracer.makes_on_device = tracer.makes_on_device, tracer.is_on_device(name, args, kwargs)
        whole = takes_function(name) and tracer.makes_on_device
        if whole:
            tracer.enter_function(name)
        try:
            if name in losses.BUILT_IN and tracer.makes_on_device:
                return losses.compute(func, args, kwargs, tracer.mark_built_in)
            result = func(*args, **kwargs)
            if name in _TRANSFERS and isinstance(result, torch.Tensor):
                if names_device(args[1:], kwargs) if name == "to" else tracer.makes_on_device:
                    tracer.bring_to_device(result)
        finally:
            tracer.makes_on_device = around
            if whole:
                tracer.leave_function()
        return result


class _OperationListener(TorchDispatchMode):
    """Reports dispatched operations to a tracer."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        return self._tracer.run(func, args, kwargs or {})


def _storage(tensor: torch.Tensor) -> int:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def _written(func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> List[torch.Tensor]:
    """Returns the tensors that an operation writes to, by its schema."""
    written = [
        args[index] if index < len(args) else kwargs.get(argument.name)
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return tensors_in(written)
