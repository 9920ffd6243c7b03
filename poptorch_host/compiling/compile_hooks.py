# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Hooks that are called before and after every compilation."""

import collections
import contextlib
from typing import Any, Callable, Iterator

from torch.utils.hooks import RemovableHandle

_before: "collections.OrderedDict[int, Callable[[], Any]]" = collections.OrderedDict()
_after: "collections.OrderedDict[int, Callable[[], Any]]" = collections.OrderedDict()


def registerPreCompileHook(hook: Callable[[], Any]) -> RemovableHandle:
    """Registers `hook()` to be called before every compilation, in the order of registration.

    Returns:
        A handle whose remove() removes the hook.

    Raises:
        RuntimeError: if `hook` is not callable.
    """
    return _register(_before, hook)


def registerPostCompileHook(hook: Callable[[], Any]) -> RemovableHandle:
    """Registers `hook()` to be called after every compilation, also a failed one; see `registerPreCompileHook`."""
    return _register(_after, hook)


def _register(hooks: "collections.OrderedDict[int, Callable[[], Any]]", hook: Callable[[], Any]) -> RemovableHandle:
    if not callable(hook):
        raise RuntimeError(f"a compile hook must be callable, not {hook!r}")
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


@contextlib.contextmanager
def around() -> Iterator[None]:
    """A context manager that calls the hooks before and after a compilation."""
    try:
        for hook in list(_before.values()):
            hook()
        yield
    finally:
        for hook in list(_after.values()):
            hook()
