# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Parsers for arguments and batches of custom types, which contain tensors."""

import abc
import copy
from typing import Any, Dict, Iterator, Optional, Type

import torch

from ..errors import createPoptorchError


class ICustomArgParser(abc.ABC):
    """Extracts the tensors from a value of a custom type, and rebuilds such a value from tensors."""

    @abc.abstractmethod
    def yieldTensors(self, struct: Any) -> Iterator[torch.Tensor]:
        """Yields every tensor of `struct`, always in the same order."""

    @abc.abstractmethod
    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[torch.Tensor]) -> Any:
        """Returns a copy of `original_structure` with its tensors replaced by those of `tensor_iterator`, in order."""


_parsers: Dict[type, ICustomArgParser] = {}


def registerCustomArgParser(arg_data_type: Type[Any], arg_parser: Optional[ICustomArgParser]) -> None:
    """Registers a parser for arguments and batches of `arg_data_type` and its subclasses; None removes it.

    Raises:
        Error: if `arg_parser` does not derive from `ICustomArgParser`.
    """
    if arg_parser is None:
        _parsers.pop(arg_data_type, None)
        return
    if not isinstance(arg_parser, ICustomArgParser):
        raise createPoptorchError(
            f"the parser of {arg_data_type.__name__} must derive from poptorch.ICustomArgParser, "
            f"not {type(arg_parser).__name__}"
        )
    _parsers[arg_data_type] = arg_parser


def parser_of(value: Any) -> Optional[ICustomArgParser]:
    """Returns the parser of the type of `value`, or of its nearest base class that has one; None if there is none."""
    for kind in type(value).__mro__:
        if kind in _parsers:
            return _parsers[kind]
    return None


class _GeometricParser(ICustomArgParser):
    """Parser for PyTorch Geometric's graphs: the tensors of all their stores."""

    def yieldTensors(self, struct: Any) -> Iterator[torch.Tensor]:
        for store in struct.stores:
            for value in store.values():
                if torch.is_tensor(value):
                    yield value

    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[torch.Tensor]) -> Any:
        rebuilt = copy.copy(original_structure)
        for store in rebuilt.stores:
            for key in [key for key, value in store.items() if torch.is_tensor(value)]:
                store[key] = next(tensor_iterator)
        return rebuilt


def registerGeometricCustomArgParsers() -> None:
    """Registers parsers for the graphs of PyTorch Geometric: Data, HeteroData and their batches.

    Raises:
        Error: if PyTorch Geometric is not installed.
    """
    try:
        from torch_geometric.data import Data, HeteroData  # type: ignore[import-not-found]  # optional
    except ImportError as error:
        raise createPoptorchError(
            f"registerGeometricCustomArgParsers needs PyTorch Geometric: pip install torch_geometric ({error})"
        ) from error
    for kind in (Data, HeteroData):
        registerCustomArgParser(kind, _GeometricParser())
