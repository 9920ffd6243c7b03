# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Attributes of modules, such as counters, flags and tensors of the host, that forward changes.

A device's compiler runs forward once, with the values at that time. Here, forward runs for every micro-batch and must
find the same values.
"""

from typing import Any, Dict, List, NamedTuple, Tuple

import torch

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_MISSING = object()


class _Change(NamedTuple):
    """An attribute that forward changed: the attributes of its module, its name, and its former value or _MISSING."""

    attributes: Dict[str, Any]
    name: str
    before: Any


class PlainAttributes:
    """The plain attributes of a model's modules that forward changes, and the tensors that it writes to.

    These tensors are neither parameters nor buffers. As a context manager, restores the values of the host at exit.

    Args:
        model: the model before compilation.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._before = [(vars(part), dict(vars(part))) for part in model.modules()]
        self._changes: List[_Change] = []
        self._tensors = [
            (tensor, tensor._version, tensor.detach().clone())
            for _, attributes in self._before
            for tensor in attributes.values()
            if isinstance(tensor, torch.Tensor) and not tensor.is_inference()
        ]
        self._written: List[Tuple[torch.Tensor, torch.Tensor]] = []

    def note_changes(self) -> None:
        """Called after forward has run once."""
        for attributes, before in self._before:
            for name in {**before, **attributes}:
                old, new = before.get(name, _MISSING), attributes.get(name, _MISSING)
                if old is not new and _is_plain(old) and _is_plain(new):
                    self._changes.append(_Change(attributes, name, old))
        self._written = [(tensor, before) for tensor, version, before in self._tensors if tensor._version != version]
        self._before, self._tensors = [], []

    def __bool__(self) -> bool:
        return bool(self._changes or self._written)

    def rewind(self) -> None:
        """Restores the values from before compilation."""
        for change in self._changes:
            _set(change.attributes, change.name, change.before)
        _write(self._written)

    def __enter__(self) -> None:
        """Records the values of the host."""
        self._of_host = [change.attributes.get(change.name, _MISSING) for change in self._changes]
        self._tensors_of_host = [(tensor, tensor.detach().clone()) for tensor, _ in self._written]

    def __exit__(self, *exception: object) -> None:
        for change, value in zip(self._changes, self._of_host):
            _set(change.attributes, change.name, value)
        _write(self._tensors_of_host)


def _write(values: List[Tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Writes to the first of each pair what is in the second."""
    with torch.no_grad():
        for tensor, value in values:
            tensor.copy_(value)


def _is_plain(value: Any) -> bool:
    return value is _MISSING or isinstance(value, _PLAIN)


def _set(attributes: Dict[str, Any], name: str, value: Any) -> None:
    if value is _MISSING:
        attributes.pop(name, None)
    else:
        attributes[name] = value
