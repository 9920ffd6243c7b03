# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The layout of the elements of a dataset, to split them into tensors in one process and rebuild them in another."""

from typing import Any, Hashable, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import torch

from ..errors import createPoptorchError
from ..inputs.custom_args import parser_of


class TensorSpec(NamedTuple):
    """The dtype and shape of a tensor."""

    dtype: torch.dtype
    shape: Tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "TensorSpec":
        """Returns the dtype and shape of `tensor`."""
        return cls(tensor.dtype, tuple(tensor.shape))

    def __str__(self) -> str:
        return f"{self.dtype} of shape {list(self.shape)}"


class ElementLayout:
    """The container, dtypes and shapes of the elements of a dataset.

    Args:
        element: the first element: a tensor, a flat list, tuple or dictionary of tensors, or an object of a type with a
            custom parser.
        rebatched_size: the number of rows to gather into one element; None to not gather rows.

    Raises:
        Error: for any other element, for tensors that require grad, or for tensors without a common batch dimension if
            rows are gathered.
    """

    def __init__(self, element: Any, rebatched_size: Optional[int]) -> None:
        tensors = _tensors_of(element)
        if any(tensor.requires_grad for tensor in tensors):
            raise createPoptorchError("tensors that require grad cannot be shared with another process: detach() them")
        self._keys = _keys_of(element)
        self._is_sequence = isinstance(element, (list, tuple))
        self._custom = element if _is_custom(element) else None
        self.rebatched_size = rebatched_size
        self.specs = tuple(map(TensorSpec.of, tensors))
        if rebatched_size is not None:
            self._check_rows(tensors)
            self.specs = tuple(TensorSpec(dtype, (rebatched_size, *shape[1:])) for dtype, shape in self.specs)

    def take_apart(self, element: Any) -> List[torch.Tensor]:
        """Returns the tensors of an element in the order of the first one. The caller converts their dtypes.

        Raises:
            Error: if the tensors or their shapes differ from those of the first element.
        """
        keys = _keys_of(element)
        if keys is not None and self._keys is not None and set(keys) == set(self._keys):
            element, keys = {key: element[key] for key in self._keys}, self._keys
        tensors = _tensors_of(element)
        if len(tensors) != len(self.specs) or keys != self._keys:
            first, this = _count(self._keys, len(self.specs)), _count(keys, len(tensors))
            raise createPoptorchError(f"all elements must have the same tensors: the first has {first}, this {this}")
        for index, (tensor, expected) in enumerate(zip(tensors, self.specs)):
            self._check_tensor(index, TensorSpec.of(tensor), expected)
        if self.rebatched_size is not None:
            self._check_rows(tensors)
        return tensors

    def put_together(self, tensors: Sequence[torch.Tensor]) -> Any:
        """Rebuilds an element from tensors: a tensor, a list, a dictionary, or an object of a custom type."""
        parser = None if self._custom is None else parser_of(self._custom)
        if parser is not None:
            return parser.reconstruct(self._custom, iter(tensors))
        if self._keys is not None:
            return dict(zip(self._keys, tensors))
        return list(tensors) if self._is_sequence else tensors[0]

    def _check_tensor(self, index: int, actual: TensorSpec, expected: TensorSpec) -> None:
        compared = slice(0 if self.rebatched_size is None else 1, None)
        if actual.shape[compared] != expected.shape[compared]:
            raise createPoptorchError(
                f"all elements must have the same layout: tensor {index} is {actual}, but was "
                f"{expected} in the first" + ("" if self.rebatched_size is None else " (rows may differ)")
            )

    def _check_rows(self, tensors: Sequence[torch.Tensor]) -> None:
        if len({tensor.shape[:1] for tensor in tensors}) != 1 or not tensors[0].dim():
            shapes = [list(tensor.shape) for tensor in tensors]
            raise createPoptorchError(
                f"rebatching needs elements whose tensors have the same batch dimension, not shapes {shapes}"
            )


def concatenate(batches: Sequence[Any]) -> Any:
    """Concatenates batches along dimension 0.

    Raises:
        Error: if a batch contains anything other than tensors.
    """
    first = batches[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(batches))
    if isinstance(first, dict):
        return {key: concatenate([batch[key] for batch in batches]) for key in first}
    if isinstance(first, (list, tuple)):
        parts = [concatenate(items) for items in zip(*batches)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    parser = parser_of(first)
    if parser is None:
        raise createPoptorchError(
            f"the batches of a batch_sampler contain {_kind(first)}, but only tensors can be "
            "concatenated: register a parser for this type with poptorch.registerCustomArgParser"
        )
    columns = zip(*(parser.yieldTensors(batch) for batch in batches))
    return parser.reconstruct(first, iter([torch.cat(column) for column in columns]))


def _tensors_of(element: Any) -> List[torch.Tensor]:
    tensors = list(_members(element))
    if not tensors:
        raise createPoptorchError("an element of the dataset contains no tensor")
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise createPoptorchError(
                f"an element contains {_kind(tensor)}: an asynchronous accessor supports tensors, flat "
                "lists, tuples and dictionaries of tensors, and types with a registered parser"
            )
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise createPoptorchError(
                "an asynchronous accessor supports dense tensors on the CPU, not a tensor of layout "
                f"{tensor.layout} on {tensor.device}"
            )
    return tensors


def _members(element: Any) -> Iterable[Any]:
    if isinstance(element, (list, tuple)):
        return element
    if isinstance(element, dict):
        return element.values()
    parser = parser_of(element) if _is_custom(element) else None
    return [element] if parser is None else parser.yieldTensors(element)


def _count(keys: Optional[Tuple[Hashable, ...]], tensors: int) -> str:
    return str(tensors) if keys is None else str(list(keys))


def _keys_of(element: Any) -> Optional[Tuple[Hashable, ...]]:
    return tuple(element) if isinstance(element, dict) else None


def _is_custom(element: Any) -> bool:
    return not isinstance(element, (torch.Tensor, list, tuple, dict)) and parser_of(element) is not None


def _kind(value: Any) -> str:
    return type(value).__name__
