# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Operations that PopTorch adds to PyTorch.

On a host each is the plain computation; inside the forward of a compiled model it also tells the execution what a
compiler has to know (see `context`). Hints about placement and memory are told there too and change nothing.
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

_REDUCTIONS: Dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": torch.Tensor.sum,
    "mean": torch.Tensor.mean,
    "none": torch.Tensor.clone,
}


# The loss and what is kept for its gradient.


def identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduces `x` and marks the result as the loss that training differentiates.

    Args:
        x: any shape.
        reduction: 'sum', 'mean' or 'none'; AssertionError for another.
    """
    check(
        reduction in _REDUCTIONS,
        f"Unsupported reduction type! identity_loss takes 'sum', 'mean' or 'none', not {reduction!r}",
    )
    loss = _REDUCTIONS[reduction](x)
    execution = current()
    if execution is not None:
        execution.mark_loss(loss, reduction)
    return loss


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Keeps the values of these tensors for the backward pass where a stage is otherwise computed again.

    Args:
        tensors: tensors, or one list or tuple of them.

    Returns:
        The tensors as they were given: one, a tuple of several, or the container.

    Raises:
        ValueError: for anything but tensors.
    """
    contained = len(tensors) == 1 and isinstance(tensors[0], (list, tuple))
    members = list(tensors[0]) if contained else list(tensors)
    for member in members:
        if not torch.is_tensor(member):
            raise ValueError(f"recomputationCheckpoint takes tensors, not {type(member).__name__}")
    execution = current()
    if execution is not None:
        execution.recomputation_checkpoint(members)
    if contained:
        return map_tensors(lambda tensor: tensor, tensors[0])
    return members[0] if len(members) == 1 else tuple(members)


# Hints, which leave values as they are.


def nop(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of `tensor` that a compiler does not optimise away."""
    return _annotate("nop", tensor)


def set_available_memory(tensor: torch.Tensor, available_memory_proportion: float) -> torch.Tensor:
    """The share of a device's memory that the operation which made `tensor` may use while it runs."""
    return _annotate("set_available_memory", tensor, proportion=available_memory_proportion)


def set_overlap_for_input(input_tensors: Any, mode: OverlapMode) -> Any:
    """Overlaps the transfer of these inputs with computation.

    Args:
        input_tensors: a tensor, or tuples, lists and dictionaries of them. They must be inputs of the model and be used
            nowhere else: use what is returned.
        mode: the loop within which to overlap.
    """
    return _overlap("set_overlap_for_input", input_tensors, mode)


def set_overlap_for_output(output_tensors: Any, mode: OverlapMode) -> Any:
    """Overlaps the transfer of these outputs with computation; return what this returns."""
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
    """Prints `tensor` to standard error whenever it is computed, and its gradient when that is.

    Args:
        tensor: what to print; use what is returned.
        title: printed in front; the gradient's has '_gradient' at its end.
        print_gradient: whether the gradient is printed.
        summarise_threshold: from how many elements on only the edges are shown.
        edge_items: how many elements an edge has.
        max_line_width: where lines are broken, in characters; 0 for nowhere.
        digits: decimals of floating-point numbers.
        float_format: 'auto', 'fixed', 'scientific' or 'none'.
        separator: between elements.
        open_bracket: opens a row.
        close_bracket: closes a row.

    Raises:
        Error: when `tensor` is none.
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
    """A context manager: operations inside are named after it in reports.

    Args:
        name: the name; AssertionError unless a string.
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
    """A context manager: operations inside carry these attributes for the compiler.

    Args:
        kwargs: attributes by name.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._attributes = kwargs

    def __enter__(self) -> "Attribute":
        _note("attribute", attributes=self._attributes)
        return self

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        _note("attribute_end", attributes=self._attributes)


class MultiConv:
    """A context manager: the convolutions inside are independent of each other and may be planned together.

    Settings are one value for all convolutions, or a list with one for each.
    """

    def __init__(self) -> None:
        self.options: Dict[str, Any] = {}

    def availableMemoryProportions(self, value: Union[float, List[float]]) -> "MultiConv":
        """The share of a device's memory that each convolution may use while it runs."""
        return self._set("availableMemoryProportions", value, float, several=True)

    def partialsTypes(self, value: Union[torch.dtype, List[torch.dtype]]) -> "MultiConv":
        """The format of each convolution's partial sums: torch.float or torch.half, else ValueError."""
        for dtype in value if isinstance(value, (list, tuple)) else [value]:
            if dtype not in (torch.float, torch.half):
                raise ValueError(f"partialsTypes takes torch.float and torch.half, not {dtype!r}")
        return self._set("partialsTypes", value, torch.dtype, several=True)

    def enableConvDithering(self, value: Union[bool, List[bool]]) -> "MultiConv":
        """Spreads the first tile of each convolution."""
        return self._set("enableConvDithering", value, bool, several=True)

    def planType(self, value: MultiConvPlanType) -> "MultiConv":
        """Whether the convolutions run side by side or one after the other."""
        return self._set("planType", value, MultiConvPlanType)

    def perConvReservedTiles(self, value: int) -> "MultiConv":
        """Tiles kept for each convolution when they run side by side."""
        return self._set("perConvReservedTiles", value, int)

    def cycleBackOff(self, value: float) -> "MultiConv":
        """How much slower than the best plan a convolution may become to save tiles."""
        return self._set("cycleBackOff", value, float)

    def _set(self, option: str, value: Any, kind: type, several: bool = False) -> "MultiConv":
        values = value if several and isinstance(value, (list, tuple)) else [value]
        check(
            len(values) > 0 and all(isinstance(item, kind) for item in values),
            f"{option} takes values of type {kind.__name__}, not {value!r}",
        )
        self.options[option] = value
        return self

    def __enter__(self) -> "MultiConv":
        _note("multi_conv", options=self.options)
        return self

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        if type is None:  # else what went wrong inside is the news
            _note("multi_conv_end", options=self.options)


# Computations.


def serializedMatMul(
    lhs: torch.Tensor, rhs: torch.Tensor, mode: MatMulSerializationMode, factor: int = 0, keep_precision: bool = False
) -> torch.Tensor:
    """The product of two matrices (..., m, n) and (..., n, p), computed in parts on a device to save memory.

    Args:
        lhs: left factor.
        rhs: right factor.
        mode: the dimension that is cut: m (InputChannels), n (ReducingDim), p (OutputChannels) or none.
        factor: the number of parts.
        keep_precision: whether parts of half products are summed in single precision.

    Raises:
        AssertionError: for arguments of other types.
        Error: in a compiled model, when `factor` does not divide the dimension.
    """
    check(torch.is_tensor(lhs) and torch.is_tensor(rhs), "serializedMatMul multiplies tensors")
    check(isinstance(mode, MatMulSerializationMode), f"expected a poptorch.MatMulSerializationMode, not {mode!r}")
    check(isinstance(factor, int), f"the number of parts must be an int, not {factor!r}")
    check(isinstance(keep_precision, bool), f"keep_precision must be a bool, not {keep_precision!r}")
    size = {
        MatMulSerializationMode.InputChannels: lhs.shape[-2:][0],
        MatMulSerializationMode.ReducingDim: lhs.shape[-1],
        MatMulSerializationMode.OutputChannels: rhs.shape[-1],
    }.get(mode)
    if current() is not None and size is not None and (factor < 1 or size % factor):
        raise createPoptorchError(f"serializedMatMul cannot cut {size} {mode.value} into {factor} equal parts")
    return torch.matmul(lhs, rhs)


def dynamic_slice(tensor: torch.Tensor, dim: int, start: torch.Tensor, size: int, step: int) -> torch.Tensor:
    """A slice whose position is known only at run time: `tensor[..., start:start + size:step, ...]`.

    Args:
        tensor: what to slice.
        dim: along which dimension.
        start: one integer, as a tensor.
        size: how many positions the slice spans.
        step: how far its elements are apart.

    Raises:
        Error: for arguments of other types.
    """
    _check_slice("dynamic_slice", tensor, dim, start, size)
    _require(isinstance(step, int) and step > 0, f"dynamic_slice: step must be a positive int, not {step!r}")
    with own_op("dynamic_slice"):
        positions = start.reshape(()) + torch.arange(0, size, step, device=tensor.device)
        return tensor.index_select(dim, positions)


def dynamic_update(input: torch.Tensor, src: torch.Tensor, dim: int, start: torch.Tensor, size: int) -> torch.Tensor:
    """`input` with `src` in the place of its slice `start:start + size` along `dim`; `input` itself is not changed.

    Args:
        input: what to update.
        src: what to put there; `size` long along `dim`.
        dim: along which dimension.
        start: one integer, as a tensor.
        size: the length of the slice.

    Raises:
        Error: for arguments of other types, and for ranks, dtypes or sizes that do not fit.
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
    """Calls `body` `count` times, each time on what it returned the time before.

    Args:
        count: how often.
        body: takes as many tensors as `inputs` has, and returns as many of the same shapes.
        inputs: what the first call gets.

    Raises:
        ValueError: when `inputs` is no list of tensors.
        Error: when `body` returns another number of tensors, or other shapes or dtypes.
    """
    _check_tensor_list("for_loop", inputs)
    _note("for_loop", count=count)
    values = [value.clone() for value in inputs]
    for _ in range(count):
        results = _as_list(body(*values))
        _require(
            [_kind(value) for value in results] == [_kind(value) for value in values],
            f"for_loop: the body turns {[_kind(value) for value in values]} into "
            f"{[_kind(value) for value in results]}: shapes and dtypes must stay",
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
    """What `then_body` makes of its inputs where `condition` holds, else what the other makes of its own.

    Both are computed, for inference only.

    Args:
        condition: one boolean, as a tensor.
        then_body: takes the tensors of `then_inps`.
        then_inps: its inputs.
        else_body: takes the tensors of `else_inps`, and returns the same shapes as `then_body`.
        else_inps: its inputs.

    Raises:
        ValueError: when the inputs are no lists of tensors.
        Error: when the two return different shapes or dtypes.
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
        layer_to_call: takes and returns tensors.
        ID: a name of its own.
    """

    def __init__(self, layer_to_call: Callable[..., Any], ID: str) -> None:
        self._layer_to_call = layer_to_call
        self._ID = ID
        self.inputs: Tuple[Any, ...] = ()
        self.outputs: Any = None

    def execute(self) -> None:
        """Calls the function on `inputs` and keeps what it returns in `outputs`."""
        self.outputs = self._layer_to_call(*self.inputs)

    def registerPersistentData(self) -> None:
        """Tells a compiling execution of this call."""
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
    """Another tensor object with the values of `tensor`, after telling the execution of both."""
    _require(torch.is_tensor(tensor), f"{name} takes a tensor, not {type(tensor).__name__}")
    result = tensor.view_as(tensor)
    _note(name, tensor=tensor, result=result, **info)
    return result


def _overlap(name: str, tensors: Any, mode: OverlapMode) -> Any:
    check(isinstance(mode, OverlapMode), f"{name} takes a poptorch.OverlapMode, not {mode!r}")
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
