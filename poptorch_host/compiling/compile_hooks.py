# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Functions that are called before and after every compilation of any model."""

import collections
from typing import Callable

from torch.utils.hooks import RemovableHandle

_before: "collections.OrderedDict[int, Callable]" = collections.OrderedDict()
_after: "collections.OrderedDict[int, Callable]" = collections.OrderedDict()


def registerPreCompileHook(hook: Callable) -> RemovableHandle:
    """Calls `hook()` before every compilation of any model, in the order of registration.

    Returns:
        A handle whose remove() ends it.

    Raises:
        RuntimeError: when it cannot be called.
    """
    return _register(_before, hook)


def registerPostCompileHook(hook: Callable) -> RemovableHandle:
    """Calls `hook()` after every compilation of any model, a failed one as well. See `registerPreCompileHook`."""
    return _register(_after, hook)


def _register(hooks: "collections.OrderedDict[int, Callable]", hook: Callable) -> RemovableHandle:
    if not callable(hook):
        raise RuntimeError(f"a compile hook must be callable, not {hook!r}")
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def run_before() -> None:
    """A compilation begins."""
    for hook in list(_before.values()):
        hook()


def run_after() -> None:
    """A compilation has ended, well or not."""
    for hook in list(_after.values()):
        hook()
