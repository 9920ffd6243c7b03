# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Checks for in-place changes of the tensors that autograd saves, and traces without keeping these.

A device saves the values. PyTorch saves a reference to the tensor, which forward may overwrite before the backward
pass.
"""

import contextlib
import functools
from typing import Any, Callable, Iterator, Tuple

import torch
from torch.autograd import graph
from torch.utils._python_dispatch import _disable_current_modes

_FREE_OF_HOOKS = "disable_saved_tensors_hooks"  # of torch.autograd.graph, which torch.func calls
_PLAIN = (torch.Tensor, torch.nn.Parameter)


@contextlib.contextmanager
def noting(wanted: bool) -> Iterator[None]:
    """A context manager in which autograd notes the forms and versions of tensors instead of saving them, if `wanted`.

    A backward pass through the graph gets other values. torch.func saves as always, since it takes no hooks.
    """
    if not wanted:
        yield
        return
    free_of_hooks: Callable[[str], Any] = getattr(graph, _FREE_OF_HOOKS)

    @contextlib.contextmanager
    def free_of_ours(message: str) -> Iterator[None]:
        torch._C._autograd._pop_saved_tensors_default_hooks()
        setattr(graph, _FREE_OF_HOOKS, free_of_hooks)
        try:
            with free_of_hooks(message):
                yield
        finally:
            setattr(graph, _FREE_OF_HOOKS, free_of_ours)
            torch._C._autograd._push_saved_tensors_default_hooks(_Note, _Note.blank)

    setattr(graph, _FREE_OF_HOOKS, free_of_ours)
    try:
        with graph.saved_tensors_hooks(_Note, _Note.blank), _others_ignored():
            yield
    finally:
        setattr(graph, _FREE_OF_HOOKS, free_of_hooks)


@contextlib.contextmanager
def _others_ignored() -> Iterator[None]:
    """A context manager in which the model's own hooks do nothing; those of checkpoints would run it again."""
    kind = graph.saved_tensors_hooks
    methods = kind.__enter__, kind.__exit__
    for name in ("__enter__", "__exit__"):
        setattr(kind, name, lambda hooks, *exception: None)
    try:
        yield
    finally:
        kind.__enter__, kind.__exit__ = methods  # type: ignore[method-assign]


class _Overwritten(RuntimeError):
    """Raised where the graph asks for a tensor that was overwritten."""


class _Note:
    """What is noted of a tensor: all but its values, unless it is of a kind of its own."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._form = (tensor.shape, tensor.stride()) if tensor.layout is torch.strided else None
        self._tensor = tensor
        if type(tensor) in _PLAIN and self._form is not None:
            with _disable_current_modes(), torch.no_grad():
                self._tensor = tensor.detach()  # shares its version, and soon not its memory
                self._tensor.data = tensor.new_empty(0)
        self._version = self._tensor._version

    def blank(self) -> torch.Tensor:
        """Returns a tensor of the same form; integers are 0, which is an index of anything."""
        if self._tensor._version != self._version:
            raise _Overwritten
        if self._form is None or type(self._tensor) is not torch.Tensor:
            return self._tensor
        with _disable_current_modes():
            made = self._tensor.new_empty_strided(*self._form)
            return made if made.is_floating_point() else made.zero_()


def are_overwritten(loss: torch.Tensor) -> bool:
    """Returns whether a tensor that is needed for the gradient of `loss` was modified in place after it was noted."""
    met, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in met:
            continue
        met.add(node)
        waiting += [following for following, _ in node.next_functions]
        if _needs_overwritten(node):
            return True
    return False


def _needs_overwritten(node: Any) -> bool:
    kind: Any = type(node)
    try:
        for name in _names(kind):
            getattr(node, name)
    except _Overwritten:
        return True
    return False


@functools.lru_cache(maxsize=None)
def _names(kind: type) -> Tuple[str, ...]:
    """Returns the attributes of a type of node that hold its saved tensors."""
    return tuple(name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors")
