# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The operations that PopTorch adds to PyTorch.

On a host, they are ordinary computations. In a compiled model, they also report to the current execution (see
`context`). Hints about placement and memory have no effect on results.
"""

from typing import Any, Callable, Dict, List, Tuple, Union

import torch

from .context import current, own_op
from .custom_ops import custom_op
from .enums import MatMulSerializationMode, MultiConvPlanType, OverlapMode
from .errors import check, createPoptorchError
from .inputs.nested import map_tensors
from .operators import tensor_text
from .operators.blocks import BeginBlock, Block, BlockFunction, LegacyBeginBlockFn, removeBlocks
from .operators.searches import ctc_beam_search_decoder, fps, nearest

__all__ = [
    "CPU",
    "Attribute",
    "BeginBlock",
    "Block",
    "BlockFunction",
    "LegacyBeginBlockFn",
    "MultiConv",
    "NameScope",
    "cond",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "for_loop",
    "fps",
    "identity_loss",
    "ipu_print_tensor",
    "nearest",
    "nop",
    "recomputationCheckpoint",
    "removeBlocks",
    "serializedMatMul",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
]

_REDUCTIONS: Dict[str, Any] = {"sum": torch.Tensor.sum, "mean": torch.Tensor.mean, "none": torch.Tensor.clone}


# The loss and its gradient.


def identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduces `x` and marks the result as the loss to differentiate.

    Args:
        x: a tensor of any shape.
        reduction: 'sum', 'mean' or 'none'.

    Raises:
        AssertionError: for any other reduction.
    """
    check(
        reduction in _REDUCTIONS,
        f"Unsupported reduction type! identity_loss needs 'sum', 'mean' or 'none', not {reduction!r}",
    )
    loss = _REDUCTIONS[reduction](x)
    execution = current()
    if execution is not None:
        execution.mark_loss(loss, reduction)
    return loss


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Saves tensors for the backward pass of a stage that is otherwise recomputed.

    Args:
        tensors: tensors, or one list or tuple of tensors.

    Returns:
        One tensor, a tuple of several, or `type(container)(tensors)`: of one tensor, its rows, as in PopTorch.

    Raises:
        ValueError: for arguments other than tensors.
        TypeError: for a named tuple.
    """
    if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
        return type(tensors[0])(recomputationCheckpoint(*tensors[0]))
    for tensor in tensors:
        if not torch.is_tensor(tensor):
            raise ValueError(f"recomputationCheckpoint takes tensors, not {type(tensor).__name__}")
    execution = current()
    if execution is not None:
        execution.recomputation_checkpoint(list(tensors))
    return tensors[0] if len(tensors) == 1 else tensors


# Hints, which do not change values.


def nop(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy of `tensor` that the compiler does not optimise away."""
    return _annotate("nop", tensor)


def set_available_memory(tensor: torch.Tensor, available_memory_proportion: float) -> torch.Tensor:
    """Sets the proportion of a device's memory that the operation which computed `tensor` may use temporarily."""
    return _annotate("set_available_memory", tensor, proportion=available_memory_proportion)


def set_overlap_for_input(input_tensors: Any, mode: OverlapMode) -> Any:
    """Overlaps the transfer of inputs with computation.

    Args:
        input_tensors: a tensor, or tuples, lists and dictionaries of tensors, which must be inputs of the model and not
            be used otherwise: use the result.
        mode: the loop in which to overlap.
    """
    return _overlap("set_overlap_for_input", input_tensors, mode)


def set_overlap_for_output(output_tensors: Any, mode: OverlapMode) -> Any:
    """Overlaps the transfer of outputs with computation. The model must return the result."""
    return _overlap("set_overlap_for_output", output_tensors, mode)


def ipu_print_tensor(
    tensor: torch.Tensor,
    title: str = "",
    print_gradient: bool = True,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 80,
    digits: int = 4,
    float_format: str = "auto",
    separator: str = ", ",
    open_bracket: str = "(",
    close_bracket: str = ")",
) -> torch.Tensor:
    """Prints a tensor, and its gradient, to standard error whenever they are computed.

    Args:
        tensor: the tensor. Use the result in its place.
        title: the title, to which '_gradient' is appended for the gradient.
        print_gradient: whether to print the gradient.
        summarise_threshold: the number of elements above which only the edges are printed.
        edge_items: the number of elements at each edge.
        max_line_width: the maximum number of characters per line; 0 for no limit.
        digits: the number of digits of floating-point numbers.
        float_format: 'auto', 'fixed', 'scientific' or 'none'.
        separator: the separator of elements.
        open_bracket: the opening bracket of a row.
        close_bracket: the closing bracket of a row.

    Returns:
        A copy of `tensor`.

    Raises:
        Error: if `tensor` is not a tensor.
    """
    style = tensor_text.Style(
        summarise_threshold, edge_items, max_line_width, digits, float_format, separator, open_bracket, close_bracket
    )
    printed = _annotate("ipu_print_tensor", tensor)
    execution = current()
    if execution is None or not execution.compiling:
        name = title or "print_tensor"
        tensor_text.write(name, tensor, style)
        if print_gradient and printed.requires_grad:
            printed.register_hook(lambda gradient: tensor_text.write(f"{name}_gradient", gradient, style))
    return printed


class NameScope:
    """A context manager that adds a scope to the names of operations in reports.

    Args:
        name: the name of the scope.

    Raises:
        AssertionError: if `name` is not a string.
    """

    def __init__(self, name: str) -> None:
        check(isinstance(name, str), f"the name of a NameScope must be a string, not {name!r}")
        self.name = name

    def __enter__(self) -> "NameScope":
        _note("name_scope", scope=self.name)
        return self

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        _note("name_scope_end", scope=self.name)


class Attribute:
    """A context manager that sets attributes of operations for the compiler.

    Args:
        kwargs: the attributes by name.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._attributes = kwargs

    def __enter__(self) -> "Attribute":
        _note("attribute", attributes=self._attributes)
        return self

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        _note("attribute_end", attributes=self._attributes)


class MultiConv:
    """A context manager for independent convolutions that are planned together.

    Options are one value for all convolutions, or a list with a value for each.
    """

    def __init__(self) -> None:
        self.options: Dict[str, Any] = {}

    def availableMemoryProportions(self, value: Union[float, List[float]]) -> "MultiConv":
        """Sets the proportion of a device's memory that each convolution may use temporarily."""
        return self._set("availableMemoryProportions", value, float, several=True)

    def partialsTypes(self, value: Union[torch.dtype, List[torch.dtype]]) -> "MultiConv":
        """Sets the type of the partial sums of each convolution: torch.float or torch.half.

        Raises:
            ValueError: for any other dtype.
        """
        for dtype in value if isinstance(value, (list, tuple)) else [value]:
            if dtype not in (torch.float, torch.half):
                raise ValueError(f"partialsTypes must be torch.float or torch.half, not {dtype!r}")
        return self._set("partialsTypes", value, torch.dtype, several=True)

    def enableConvDithering(self, value: Union[bool, List[bool]]) -> "MultiConv":
        """Whether to spread the first tile of each convolution. Raises ValueError unless they are bools."""
        if not all(isinstance(item, bool) for item in (value if isinstance(value, (list, tuple)) else [value])):
            raise ValueError(f"enableConvDithering takes a bool or a list of bools, not {value!r}")
        return self._set("enableConvDithering", value, bool, several=True)

    def planType(self, value: MultiConvPlanType) -> "MultiConv":
        """Sets whether the convolutions run in parallel or in sequence."""
        return self._set("planType", value, MultiConvPlanType)

    def perConvReservedTiles(self, value: int) -> "MultiConv":
        """Sets the number of tiles reserved for each convolution when they run in parallel."""
        return self._set("perConvReservedTiles", value, int)

    def cycleBackOff(self, value: float) -> "MultiConv":
        """Sets how much slower than the best plan a convolution may be in order to save tiles."""
        return self._set("cycleBackOff", value, float)

    def _set(self, option: str, value: Any, kind: type, several: bool = False) -> "MultiConv":
        values = value if several and isinstance(value, (list, tuple)) else [value]
        check(
            len(values) > 0 and all(isinstance(item, kind) for item in values),
            f"{option} must be of type {kind.__name__}, not {value!r}",
        )
        self.options[option] = value
        return self

    def __enter__(self) -> "MultiConv":
        _note("multi_conv", options=self.options)
        return self

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        if type is None:  # do not hide an exception of the body
            _note("multi_conv_end", options=self.options)


# Computations.


def serializedMatMul(
    lhs: torch.Tensor, rhs: torch.Tensor, mode: MatMulSerializationMode, factor: int = 0, keep_precision: bool = False
) -> torch.Tensor:
    """Multiplies matrices (..., m, n) and (..., n, p), in parts on a device to save memory.

    Args:
        lhs: the left matrix.
        rhs: the right matrix.
        mode: the dimension to split: m (InputChannels), n (ReducingDim), p (OutputChannels), or none (Disabled).
        factor: the number of parts.
        keep_precision: whether to sum parts of half products in float32.

    Raises:
        AssertionError: for arguments of other types.
        Error: in a compiled model, if the dimension is not a multiple of `factor`.
    """
    check(torch.is_tensor(lhs) and torch.is_tensor(rhs), "serializedMatMul needs two tensors")
    check(isinstance(mode, MatMulSerializationMode), f"expected a poptorch.MatMulSerializationMode, not {mode!r}")
    check(isinstance(factor, int), f"the number of parts must be an int, not {factor!r}")
    check(isinstance(keep_precision, bool), f"keep_precision must be a bool, not {keep_precision!r}")
    size = {
        MatMulSerializationMode.InputChannels: lhs.shape[-2:][0],
        MatMulSerializationMode.ReducingDim: lhs.shape[-1],
        MatMulSerializationMode.OutputChannels: rhs.shape[-1],
    }.get(mode)
    if current() is not None and size is not None and (factor < 1 or size % factor):
        raise createPoptorchError(f"serializedMatMul cannot split {size} {mode.value} into {factor} equal parts")
    return torch.matmul(lhs, rhs)


def dynamic_slice(tensor: torch.Tensor, dim: int, start: torch.Tensor, size: int, step: int) -> torch.Tensor:
    """Returns the slice `tensor[..., start:start + size:step, ...]`, whose start is known only at run time.

    Args:
        tensor: the tensor to slice.
        dim: the dimension to slice.
        start: the start, an integer tensor with one element.
        size: the size of the slice before `step` is applied.
        step: the step.

    Raises:
        Error: for arguments of other types.
    """
    _check_slice("dynamic_slice", tensor, dim, start, size)
    _require(isinstance(step, int) and step > 0, f"dynamic_slice: step must be a positive int, not {step!r}")
    with own_op("dynamic_slice"):
        positions = start.reshape(()) + torch.arange(0, size, step, device=tensor.device)
        execution = current()
        if execution is not None and execution.compiling:  # which is for whatever position: these may be out of range
            _require(tensor.shape[dim] % size == 0, f"dynamic_slice: {tensor.shape[dim]} is no multiple of size {size}")
            positions = positions.clamp(0, tensor.shape[dim] - 1)
        return tensor.index_select(dim, positions)


def dynamic_update(input: torch.Tensor, src: torch.Tensor, dim: int, start: torch.Tensor, size: int) -> torch.Tensor:
    """Returns a copy of `input` with the slice `start:start + size` along `dim` replaced by `src`.

    Args:
        input: the tensor to update.
        src: the values of the slice, of size `size` along `dim`.
        dim: the dimension to slice.
        start: the start, an integer tensor with one element.
        size: the size of the slice.

    Raises:
        Error: for arguments of other types, or if the ranks, dtypes or sizes do not match.
    """
    _check_slice("dynamic_update", input, dim, start, size)
    _require(torch.is_tensor(src), f"dynamic_update: src must be a tensor, not {type(src).__name__}")
    _require(input.dim() == src.dim(), f"dynamic_update: input has rank {input.dim()} but src has rank {src.dim()}")
    _require(input.dtype == src.dtype, f"dynamic_update: input is {input.dtype} but src is {src.dtype}")
    _require(src.shape[dim] == size, f"dynamic_update: src is {src.shape[dim]} long along dimension {dim}, not {size}")
    with own_op("dynamic_update"):
        offset = torch.arange(input.shape[dim], device=input.device) - start.reshape(())
        shape = [1] * input.dim()
        shape[dim] = -1
        spread = src.index_select(dim, offset.clamp(0, size - 1))
        return torch.where(((offset >= 0) & (offset < size)).view(shape), spread, input)


def for_loop(count: int, body: Callable[..., Any], inputs: List[torch.Tensor]) -> List[torch.Tensor]:
    """Calls `body` repeatedly, each time with the results of the previous call.

    Args:
        count: the number of calls.
        body: a function of as many tensors as `inputs` has, which returns tensors of the same shapes and dtypes.
        inputs: the arguments of the first call.

    Returns:
        The results of the last call.

    Raises:
        ValueError: if `inputs` is not a list of tensors.
        Error: if the number, shapes or dtypes of the results differ from those of the inputs.
    """
    _check_tensor_list("for_loop", inputs)
    _note("for_loop", count=count)
    values = [value.clone() for value in inputs]
    for _ in range(count):
        results = _as_list(body(*values))
        _require(
            [_kind(value) for value in results] == [_kind(value) for value in values],
            f"for_loop: the body turns {[_kind(value) for value in values]} into "
            f"{[_kind(value) for value in results]}: shapes and dtypes must not change",
        )
        values = results
    return values


def cond(
    condition: torch.Tensor,
    then_body: Callable[..., Any],
    then_inps: List[torch.Tensor],
    else_body: Callable[..., Any],
    else_inps: List[torch.Tensor],
) -> List[torch.Tensor]:
    """Computes both bodies; returns the results of `then_body` if `condition` is true, else the others. Inference only.

    Args:
        condition: a tensor with one boolean.
        then_body: a function of the tensors in `then_inps`.
        then_inps: its arguments.
        else_body: a function of the tensors in `else_inps`, with results like those of `then_body`.
        else_inps: its arguments.

    Raises:
        ValueError: if the inputs are not lists of tensors.
        Error: if the shapes or dtypes of the results differ.
    """
    _check_tensor_list("cond", then_inps)
    _check_tensor_list("cond", else_inps)
    _note("cond")
    then_results, else_results = _as_list(then_body(*then_inps)), _as_list(else_body(*else_inps))
    _require(
        [_kind(value) for value in then_results] == [_kind(value) for value in else_results],
        f"cond: the branches return {[_kind(value) for value in then_results]} and "
        f"{[_kind(value) for value in else_results]}: shapes and dtypes must agree",
    )
    chosen = condition.reshape(()).bool()
    return [torch.where(chosen, yes, no) for yes, no in zip(then_results, else_results)]


class CPU:
    """A function that an inference model calls on the host while it runs.

    Args:
        layer_to_call: a function of tensors that returns tensors.
        ID: a unique name.
    """

    def __init__(self, layer_to_call: Callable[..., Any], ID: str) -> None:
        self._layer_to_call = layer_to_call
        self._ID = ID
        self.inputs: Tuple[Any, ...] = ()
        self.outputs: Any = None

    def execute(self) -> None:
        """Calls the function with `inputs` and stores its results in `outputs`."""
        self.outputs = self._layer_to_call(*self.inputs)

    def registerPersistentData(self) -> None:
        """Reports the call to the current execution."""
        _note("cpu", id=self._ID)

    def __call__(self, *input: Any, **kwargs: Any) -> Any:
        with own_op("cpu", id=self._ID):
            self.inputs = input
            self.outputs = self._layer_to_call(*input, **kwargs)
        return self.outputs


def _note(name: str, **info: Any) -> None:
    execution = current()
    if execution is not None:
        execution.note_op(name, **info)


def _annotate(name: str, tensor: torch.Tensor, **info: Any) -> torch.Tensor:
    """Returns a view of `tensor`, and reports both to the current execution."""
    _require(torch.is_tensor(tensor), f"{name} needs a tensor, not {type(tensor).__name__}")
    result = tensor.view_as(tensor)
    _note(name, tensor=tensor, result=result, **info)
    return result


def _overlap(name: str, tensors: Any, mode: OverlapMode) -> Any:
    check(isinstance(mode, OverlapMode), f"{name} needs a poptorch.OverlapMode, not {mode!r}")
    return map_tensors(lambda tensor: _annotate(name, tensor, mode=mode), tensors)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise createPoptorchError(message)


def _check_slice(name: str, tensor: Any, dim: Any, start: Any, size: Any) -> None:
    _require(torch.is_tensor(tensor), f"{name}: expected a tensor, not {type(tensor).__name__}")
    _require(isinstance(dim, int), f"{name}: dim must be an int, not {dim!r}")
    _require(torch.is_tensor(start), f"{name}: start must be a tensor, not {type(start).__name__}")
    _require(
        not start.is_floating_point() and start.dtype != torch.bool,
        f"{name}: start must be of an integer dtype, not {start.dtype}",
    )
    _require(start.numel() == 1, f"{name}: start must have one element, not shape {tuple(start.shape)}")
    _require(isinstance(size, int) and size > 0, f"{name}: size must be a positive int, not {size!r}")


def _check_tensor_list(name: str, values: Any) -> None:
    if not isinstance(values, list):
        raise ValueError(f"{name}: inputs must be a list of tensors, not {type(values).__name__}")
    for index, value in enumerate(values):
        if not torch.is_tensor(value):
            raise ValueError(f"{name}: inputs must be a list of tensors, but element {index} is {type(value).__name__}")


def _as_list(values: Any) -> List[torch.Tensor]:
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _kind(tensor: torch.Tensor) -> Tuple[Tuple[int, ...], torch.dtype]:
    return tuple(tensor.shape), tensor.dtype
