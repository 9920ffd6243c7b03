# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The operations under the names that PopTorch registers with PyTorch: `torch.ops.poptorch.NAME`.

Programs call a few of them for want of a public function (push_name_scope, pop_name_scope, internal_cast). Loading this
module puts all of them there, as loading PopTorch does. Those that are one half of a public function are refused: on a
host only the whole runs.
"""

from typing import Any, Callable, NoReturn

import torch

from . import ops
from .context import current
from .enums import OverlapMode
from .errors import createPoptorchError

_REDUCTIONS = ("sum", "mean", "none")
_FLOAT_FORMATS = ("auto", "fixed", "scientific", "none")
_TYPES = {
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FLOAT16": torch.float16,
    "FLOAT": torch.float32,
    "DOUBLE": torch.float64,
    "BOOL": torch.bool,
    "BFLOAT16": torch.bfloat16,
}
_WHOLE = {
    "begin_ipu_block": "Block",
    "end_ipu_block": "Block",
    "start_for_loop": "for_loop",
    "end_for_loop": "for_loop",
    "start_if_block": "cond",
    "start_else_block": "cond",
    "end_if_block": "cond",
    "begin_multi_conv": "MultiConv",
    "end_multi_conv": "MultiConv",
    "set_attribute": "Attribute",
    "clear_attribute": "Attribute",
    "call_cpu_op": "CPU",
    "end_cpu_op": "CPU",
    "custom_operation": "custom_op",
    "optimizer_group": "trainingModel",
}


def push_name_scope(name: str) -> None:
    """Operations from here on are named after `name` in reports, until pop_name_scope."""
    ops.NameScope(name).__enter__()


def pop_name_scope() -> None:
    """Ends the innermost name scope."""
    ops.NameScope("").__exit__(None, None, None)


def internal_cast(self: torch.Tensor, dtype: str) -> torch.Tensor:
    """`self` as the type that PopART calls `dtype`, such as 'FLOAT16'. Outside a compiled model halves are float32."""
    if current() is None:
        return self.float() if dtype in ("FLOAT16", "FLOAT32") else self
    if dtype not in _TYPES:
        raise createPoptorchError(f"internal_cast: no type is called {dtype!r}: use one of {', '.join(_TYPES)}")
    return self.to(_TYPES[dtype])


def ipu_print_tensor(
    self: torch.Tensor,
    title: str,
    print_gradient: int,
    threshold: int,
    edge: int,
    width: int,
    digits: int,
    float_format: int,
    *marks: str,
) -> torch.Tensor:
    """The public function, with the format by its number."""
    style = (threshold, edge, width, digits, _FLOAT_FORMATS[float_format], *marks)
    return ops.ipu_print_tensor(self, title, bool(print_gradient), *style)


def recomputation_checkpoint(self: torch.Tensor) -> torch.Tensor:
    """`recomputationCheckpoint` of one tensor."""
    return ops.recomputationCheckpoint(self)


def set_matmul_serialization(matmul: torch.Tensor, mode: str, factor: int, keep_precision: bool) -> torch.Tensor:
    """A hint about memory for the product that made `matmul`; without effect on a host."""
    return matmul


def set_overlap_for_input(t: torch.Tensor, mode: str) -> torch.Tensor:
    """The public function, with the mode by its value."""
    return ops.set_overlap_for_input(t, OverlapMode(mode))


def set_overlap_for_output(t: torch.Tensor, mode: str) -> torch.Tensor:
    """The public function, with the mode by its value."""
    return ops.set_overlap_for_output(t, OverlapMode(mode))


def identity_loss(x: torch.Tensor, reduction: int) -> torch.Tensor:
    """The public function, with the reduction by its number: sum, mean or none."""
    return ops.identity_loss(x, _REDUCTIONS[reduction])


def nearest_batch_list(x: torch.Tensor, y: torch.Tensor, batch_x: Any, batch_y: Any) -> torch.Tensor:
    """The public `nearest`, with batches as lists."""
    return ops.nearest(x, y, batch_x, batch_y)


def _refusing(name: str, whole: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise createPoptorchError(f"torch.ops.poptorch.{name} alone cannot run on a host: use poptorch.{whole}")

    return refuse


def _register() -> None:
    here = [push_name_scope, pop_name_scope, internal_cast, ipu_print_tensor, recomputation_checkpoint]
    here += [set_matmul_serialization, set_overlap_for_input, set_overlap_for_output, identity_loss, nearest_batch_list]
    same = [ops.nop, ops.set_available_memory, ops.dynamic_slice, ops.dynamic_update]
    same += [ops.fps, ops.nearest, ops.ctc_beam_search_decoder]
    for function in here + same:
        setattr(torch.ops.poptorch, function.__name__, function)
    for name, whole in _WHOLE.items():
        setattr(torch.ops.poptorch, name, _refusing(name, whole))


_register()
