# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The current execution: the object that PopTorch's operations report to while a model's forward runs.

The compiler and the engine each run forward under an `Execution` of their own, and the operations of `ops` call its
hooks. Outside an execution, where the same module runs as plain PyTorch, operations only compute.
"""

import contextlib
import threading
from typing import Any, ContextManager, Iterator, NoReturn, Optional, Sequence

import torch

from .errors import createPoptorchError


class Execution:
    """The hooks that operations call while forward runs. They do nothing here; subclasses override them.

    Each run of forward is entered through `activate`, which also restarts the automatic block ids.
    """

    #: True while forward runs for compilation only, without side effects such as printing.
    compiling = False

    def __init__(self) -> None:
        self._next_block = 0
        self.own_op_depth = 0  # above 0 inside the implementation of one of PopTorch's operations

    def begin_block(self, user_id: str, ipu_id: Optional[int]) -> None:
        """Called when block `user_id` begins. It lasts until the next one begins or it ends."""

    def end_block(self) -> None:
        """Called when a block ends. No operation may follow before the next block begins."""

    def mark_loss(self, tensor: torch.Tensor, reduction: str) -> None:
        """Called for the tensor that back-propagation starts from, after its reduction ('sum', 'mean' or 'none')."""

    def recomputation_checkpoint(self, tensors: Sequence[torch.Tensor]) -> None:
        """Called for tensors to keep for the backward pass rather than recompute."""

    def note_op(self, name: str, **info: Any) -> None:
        """Called for each of PopTorch's own operations. `info` holds what a compiler may check.

        The names and their info: set_overlap_for_input and set_overlap_for_output (tensor, result, mode),
        set_available_memory (tensor, result, proportion), nop and ipu_print_tensor (tensor, result), for_loop (count),
        cond, cpu (id), name_scope and name_scope_end (scope), attribute and attribute_end (attributes), multi_conv and
        multi_conv_end (options); and through `own_op`: custom_op (op, domain), cpu (id), dynamic_slice, dynamic_update,
        fps, nearest, ctc_beam_search_decoder.
        """

    @contextlib.contextmanager
    def own_op(self, name: str, **info: Any) -> Iterator[None]:
        """A context manager for the implementation of PopTorch's operation `name` in terms of torch operations.

        On a device it is a single operation, so the compiler does not check the torch operations inside.
        """
        self.note_op(name, **info)
        self.own_op_depth += 1
        try:
            yield
        finally:
            self.own_op_depth -= 1

    def automatic_block_id(self) -> str:
        """Returns the id of a block without a user id: '0', '1', ... in order of execution."""
        self._next_block += 1
        return str(self._next_block - 1)

    def restart_block_ids(self) -> None:
        """Makes the next automatic id '0' again."""
        self._next_block = 0


class _Current(threading.local):
    execution: Optional[Execution] = None


_current = _Current()


def current() -> Optional[Execution]:
    """Returns the execution whose forward is running in this thread, or None."""
    return _current.execution


class activate:
    """A context manager that makes `execution` current. A class, since it is faster than a generator."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def __enter__(self) -> Execution:
        self._outer, _current.execution = _current.execution, self._execution
        self._execution.restart_block_ids()
        return self._execution

    def __exit__(self, *exception: Any) -> None:
        _current.execution = self._outer


def own_op(name: str, **info: Any) -> ContextManager[None]:
    """Returns `Execution.own_op` of the current execution, or a context manager that does nothing."""
    execution = current()
    return contextlib.nullcontext() if execution is None else execution.own_op(name, **info)


def isRunningOnIpu() -> bool:
    """Returns whether a compiled model is running, rather than the same module as plain PyTorch."""
    return current() is not None


def getIpuTensorId(x: torch.Tensor) -> NoReturn:
    """Raises Error: on a host, tensors are not part of a device's graph."""
    raise createPoptorchError("getIpuTensorId: tensors have no ids in a device's graph on a host")
