# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Marks on the time line of a profiler."""

import functools
from typing import Any, Callable, ContextManager

import torch


class Channel:
    """A named source of marks. They appear in torch.profiler as `name.mark`; where nobody profiles, nothing happens.

    PopTorch writes them for the PopVision tools instead, and only where those are installed and switched on.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def instrument(self, obj: Any, *methods: str) -> Any:
        """Marks every call of these methods of `obj`, which is returned.

        Raises:
            AttributeError: when `obj` has no such method.
        """
        for method in methods:
            setattr(obj, method, self._marked(method, getattr(obj, method)))
        return obj

    def tracepoint(self, name: str) -> ContextManager:
        """A context manager: marks the time that passes inside."""
        return torch.profiler.record_function(f"{self._name}.{name}")

    def _marked(self, name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.tracepoint(name):
                return function(*args, **kwargs)

        return call
