# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Annotations for profilers."""

import functools
from typing import Any, Callable, ContextManager

import torch


class Channel:
    """A named source of annotations, which torch.profiler shows as `name.annotation`.

    PopTorch records them for the PopVision tools instead, if those are installed and enabled.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def instrument(self, obj: Any, *methods: str) -> Any:
        """Annotates every call of the given methods of `obj`. Returns `obj`.

        Raises:
            AttributeError: if `obj` does not have one of the methods.
        """
        for method in methods:
            setattr(obj, method, self._marked(method, getattr(obj, method)))
        return obj

    def tracepoint(self, name: str) -> ContextManager[Any]:
        """Returns a context manager that annotates the code inside."""
        return torch.profiler.record_function(f"{self._name}.{name}")

    def _marked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.tracepoint(name):
                return function(*args, **kwargs)

        return call
