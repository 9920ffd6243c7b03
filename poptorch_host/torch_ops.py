# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""`torch.ops.poptorch`: the operations that PopTorch registers with PyTorch, under their names and signatures.

Programs call those that have no public function. Importing this module registers all of them. They do the same as the
functions in `ops`. Those that begin or end loops, branches and host calls raise Error, since they only make sense to a
compiler.
"""

from typing import Any, Callable, Dict, List, NoReturn, Optional

import torch

from . import ops
from .context import current
from .enums import OverlapMode
from .errors import createPoptorchError
from .operators.blocks import Block

_NAMESPACE = "poptorch"
_REDUCTIONS = ("sum", "mean", "none")
_PRINT_FORMATS = ("auto", "fixed", "scientific", "none")
# The dtypes of a device by ONNX name: 64-bit integers and doubles have 32 bits.
_CASTS = {
    "FLOAT16": torch.float16,
    "FLOAT": torch.float32,
    "DOUBLE": torch.float32,
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int32,
}
_HALVES = {
    "start_for_loop(Tensor[] inputs) -> ()": "for_loop",
    "end_for_loop(Tensor[] outputs, Tensor[] inputs, int trip_count) -> Tensor[]": "for_loop",
    "start_if_block(Tensor condition) -> ()": "cond",
    "start_else_block(Tensor[] outputs_true) -> ()": "cond",
    "end_if_block(Tensor[] outputs, Tensor condition) -> Tensor[]": "cond",
    "call_cpu_op(Tensor[] inputs, str name) -> ()": "CPU",
    "end_cpu_op(Tensor[] output) -> Tensor[]": "CPU",
}


def _note(name: str, **info: Any) -> None:
    execution = current()
    if execution is not None:
        execution.note_op(name, **info)


def _begin_ipu_block(stage_id: int, phase_id: int, ipu_id: int) -> None:
    Block.start(None, ipu_id)


def _end_ipu_block() -> None:
    execution = current()
    if execution is not None:
        execution.end_block()


def _optimizer_group(group: int, inputs: List[torch.Tensor]) -> None:
    """No effect: the optimizer defines the groups."""


def _begin_multi_conv() -> None:
    _note("multi_conv", options={})


def _end_multi_conv(
    available_memory_proportions: Optional[List[float]],
    partials_types: Optional[List[int]],
    plan_type: Optional[int],
    per_conv_reserved_tiles: Optional[int],
    cycle_back_off: Optional[float],
    enableConvDithering: Optional[List[int]],
) -> None:
    lists = {
        "availableMemoryProportions": available_memory_proportions,
        "partialsTypes": partials_types,
        "enableConvDithering": enableConvDithering,
    }
    _note("multi_conv_end", options={name: value for name, value in lists.items() if value})


def _push_name_scope(name: str) -> None:
    _note("name_scope", scope=name)


def _pop_name_scope() -> None:
    _note("name_scope_end", scope="")


def _set_attribute(attribute: str, key: str, value: str) -> None:
    _note("attribute", attributes={attribute: {key: value}})


def _clear_attribute(attribute: str, key: str) -> None:
    _note("attribute_end", attributes={attribute: {key: None}})


def _ipu_print_tensor(
    tensor: torch.Tensor, title: str, print_gradient: int, threshold: int, edges: int, width: int, digits: int,
    float_format: int, separator: str, opening: str, closing: str,
) -> torch.Tensor:  # fmt: skip
    style = _PRINT_FORMATS[float_format]
    return ops.ipu_print_tensor(
        tensor, title, bool(print_gradient), threshold, edges, width, digits, style, separator, opening, closing
    )


def _set_matmul_serialization(matmul: torch.Tensor, mode: str, factor: int, keep_precision: bool) -> torch.Tensor:
    return matmul.view_as(matmul)


def _recomputation_checkpoint(tensor: torch.Tensor) -> torch.Tensor:
    return ops.recomputationCheckpoint(tensor.view_as(tensor))


def _custom_operation(
    inputs: List[torch.Tensor],
    name: str,
    domain: str,
    domain_version: int,
    num_outputs: int,
    outputs: List[torch.Tensor],
    attributes: str,
) -> List[torch.Tensor]:
    if attributes:
        raise createPoptorchError("torch.ops.poptorch.custom_operation has no attributes: use poptorch.custom_op")
    return ops.custom_op(inputs, name, domain, domain_version, outputs)


def _internal_cast(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    if current() is None:  # as PopTorch's CPU kernel, which has no half arithmetic
        return tensor.float() if dtype in ("FLOAT16", "FLOAT32") else tensor.view_as(tensor)
    if dtype not in _CASTS:
        raise createPoptorchError(f"internal_cast: unknown type {dtype!r}: use one of {', '.join(_CASTS)}")
    return tensor.to(_CASTS[dtype])


def _identity_loss(x: torch.Tensor, reduction: int) -> torch.Tensor:
    if reduction not in range(len(_REDUCTIONS)):
        raise createPoptorchError(f"identity_loss: reduction must be sum (0), mean (1) or none (2), not {reduction}")
    return ops.identity_loss(x, _REDUCTIONS[reduction])


_FUNCTIONS: Dict[str, Callable[..., Any]] = {
    "begin_ipu_block(int stage_id, int phase_id, int ipu_id) -> ()": _begin_ipu_block,
    "end_ipu_block() -> ()": _end_ipu_block,
    "optimizer_group(int group, Tensor[] inputs) -> ()": _optimizer_group,
    "begin_multi_conv() -> ()": _begin_multi_conv,
    "end_multi_conv(float[]? available_memory_proportions, int[]? partials_types, int? plan_type, "
    "int? per_conv_reserved_tiles, float? cycle_back_off, int[]? enableConvDithering) -> ()": _end_multi_conv,
    "push_name_scope(str name) -> ()": _push_name_scope,
    "pop_name_scope() -> ()": _pop_name_scope,
    "set_attribute(str attribute, str key, str value) -> ()": _set_attribute,
    "clear_attribute(str attribute, str key) -> ()": _clear_attribute,
    "ipu_print_tensor(Tensor self, str title, int print_gradient, int summarize_threshold, int edge_items, "
    "int max_line_width, int digits, int float_format, str separator, str open_bracket, str close_bracket) "
    "-> Tensor": _ipu_print_tensor,
    "nop(Tensor self) -> Tensor": ops.nop,
    "set_matmul_serialization(Tensor matmul, str mode, int factor, bool keep_precision) "
    "-> Tensor": _set_matmul_serialization,
    "set_overlap_for_input(Tensor t, str mode) -> Tensor": (
        lambda tensor, mode: ops.set_overlap_for_input(tensor, OverlapMode(mode))
    ),
    "set_overlap_for_output(Tensor t, str mode) -> Tensor": (
        lambda tensor, mode: ops.set_overlap_for_output(tensor, OverlapMode(mode))
    ),
    "recomputation_checkpoint(Tensor self) -> Tensor": _recomputation_checkpoint,
    "set_available_memory(Tensor t, float mem) -> Tensor": ops.set_available_memory,
    "custom_operation(Tensor[] inputs, str name, str domain, int domain_version, int num_outputs, Tensor[] outputs, "
    "str attributes) -> Tensor[]": _custom_operation,
    "ctc_beam_search_decoder(Tensor probs, Tensor lengths, int blank, int beam_width, int top_paths) "
    "-> (Tensor, Tensor, Tensor)": lambda *arguments: tuple(ops.ctc_beam_search_decoder(*arguments)),
    "dynamic_slice(Tensor self, int dim, Tensor start, int size, int step) -> Tensor": ops.dynamic_slice,
    "dynamic_update(Tensor self, Tensor src, int dim, Tensor start, int size) -> Tensor": ops.dynamic_update,
    "identity_loss(Tensor x, int reduction) -> Tensor": _identity_loss,
    "internal_cast(Tensor self, str dtype) -> Tensor": _internal_cast,
    "fps(Tensor src, int[] ptr, float ratio, bool random_start) -> Tensor": ops.fps,
    "nearest(Tensor x, Tensor y, Tensor batch_x, Tensor batch_y) -> Tensor": ops.nearest,
    "nearest_batch_list(Tensor x, Tensor y, int[] batch_x, int[] batch_y) -> Tensor": ops.nearest,
}


def _refusal(name: str, instead: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any) -> NoReturn:
        raise createPoptorchError(f"torch.ops.poptorch.{name} is not supported on a host: use poptorch.{instead}")

    return refuse


def _register() -> Optional[torch.library.Library]:
    """Defines the operations, unless PopTorch itself has."""
    if hasattr(getattr(torch.ops, _NAMESPACE), "push_name_scope"):
        return None
    library = torch.library.Library(_NAMESPACE, "DEF")
    halves = {schema: _refusal(schema.split("(")[0], instead) for schema, instead in _HALVES.items()}
    for schema, function in {**_FUNCTIONS, **halves}.items():
        # Composite: autograd, vmap and a tracing compiler see the operations that it consists of.
        library.impl(library.define(schema), function, "CompositeImplicitAutograd")
    return library


_library = _register()  # lives as long as the module: without it the operations are gone
