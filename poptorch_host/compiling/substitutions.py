# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Substitutes for functions while forward runs, which libraries such as poptorch_geometric register."""

import contextlib
from typing import Any, Iterator, List

_registered: List[Any] = []


def register(manager: Any) -> None:
    """Registers a class whose objects `replace()` functions before forward runs and `restore()` them afterwards."""
    if manager not in _registered:
        _registered.append(manager)


def any_registered() -> bool:
    """Returns whether there are any substitutes."""
    return bool(_registered)


@contextlib.contextmanager
def substituted() -> Iterator[None]:
    """A context manager in which functions are replaced."""
    with contextlib.ExitStack() as stack:
        for manager in [kind() for kind in _registered]:
            manager.replace()
            stack.callback(manager.restore)
        yield
