# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The execution whose forward is running, and what operations tell it.

The compiler and the engine each run a model's forward under an `Execution` of their own. The operations of `ops` call
its hooks; outside any execution (the same module on the CPU) they do the plain computation and nothing else.
"""

import contextlib
import threading
from typing import Any, ContextManager, Iterator, NoReturn, Optional, Sequence

import torch

from .errors import createPoptorchError


class Execution:
    """Hooks that operations call while a forward runs under it. All are inert here: subclass to listen.

    A fresh forward starts by `activate`, which also restarts the automatic block ids.
    """

    #: True while a compiler listens to a forward that has no effects yet: nothing is printed, for example.
    compiling = False

    def __init__(self) -> None:
        self._next_block = 0
        self.own_op_depth = 0  # above 0, torch operations are the inside of one of PopTorch's own

    def begin_block(self, user_id: str, ipu_id: Optional[int]) -> None:
        """What runs from here on belongs to block `user_id`, until the next begins or this one ends."""

    def end_block(self) -> None:
        """From here on no block is active: an operation before the next block is an error of the program."""

    def mark_loss(self, tensor: torch.Tensor, reduction: str) -> None:
        """`tensor`, reduced already ('sum', 'mean' or 'none'), is where back-propagation starts."""

    def recomputation_checkpoint(self, tensors: Sequence[torch.Tensor]) -> None:
        """The values of `tensors` are to be kept for the backward pass rather than computed again."""

    def note_op(self, name: str, **info: Any) -> None:
        """One of PopTorch's own operations runs; `info` is what a compiler may check about it.

        The names, with their info: set_overlap_for_input and set_overlap_for_output (tensor, result, mode),
        set_available_memory (tensor, result, proportion), nop and ipu_print_tensor (tensor, result), for_loop (count),
        cond, cpu (id), name_scope and name_scope_end (scope), attribute and attribute_end (attributes), multi_conv and
        multi_conv_end (options); and as an `own_op`: custom_op (op, domain), cpu (id), dynamic_slice, dynamic_update,
        fps, nearest, ctc_beam_search_decoder.
        """

    @contextlib.contextmanager
    def own_op(self, name: str, **info: Any) -> Iterator[None]:
        """Runs the torch code inside as the implementation of PopTorch's operation `name`.

        A device has that operation whole, so the torch operations it is made of here are not the program's.
        """
        self.note_op(name, **info)
        self.own_op_depth += 1
        try:
            yield
        finally:
            self.own_op_depth -= 1

    def automatic_block_id(self) -> str:
        """The id of a block that names none: '0', '1', ... in order of execution."""
        self._next_block += 1
        return str(self._next_block - 1)

    def restart_block_ids(self) -> None:
        """The next automatic id is '0' again."""
        self._next_block = 0


class _Current(threading.local):
    execution: Optional[Execution] = None


_current = _Current()


def current() -> Optional[Execution]:
    """The execution whose forward is running in this thread; None outside."""
    return _current.execution


class activate:
    """Runs a forward under `execution`: a context. Every call enters one, so it is no generator."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def __enter__(self) -> Execution:
        self._outer, _current.execution = _current.execution, self._execution
        self._execution.restart_block_ids()
        return self._execution

    def __exit__(self, *exception: Any) -> None:
        _current.execution = self._outer


def own_op(name: str, **info: Any) -> ContextManager[None]:
    """`Execution.own_op` of the current execution; outside any, a context manager that does nothing."""
    execution = current()
    return contextlib.nullcontext() if execution is None else execution.own_op(name, **info)


def isRunningOnIpu() -> bool:
    """Whether this is inside the forward of a compiled model, rather than the same module called as plain PyTorch."""
    return current() is not None


def getIpuTensorId(x: torch.Tensor) -> NoReturn:
    """Refused: tensors of a model that runs on a host have no place in a device's graph."""
    raise createPoptorchError("getIpuTensorId: tensors have no ids in a device's graph on a host")
