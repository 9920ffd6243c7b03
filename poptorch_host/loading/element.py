# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""How the elements of a data set are made up: what an asynchronous accessor takes apart in one process and puts
together again in another."""

from typing import Any, Hashable, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import torch

from ..errors import createPoptorchError
from ..inputs.custom_args import parser_of


class TensorSpec(NamedTuple):
    """Format of a tensor."""

    dtype: torch.dtype
    shape: Tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "TensorSpec":
        """The format of `tensor`."""
        return cls(tensor.dtype, tuple(tensor.shape))

    def __str__(self) -> str:
        return f"{self.dtype} of shape {list(self.shape)}"


class ElementLayout:
    """The container, dtypes and shapes of a data set's elements, as the first of them has it.

    Args:
        element: a tensor, a flat list, tuple or dictionary of tensors, or an object whose type has a custom parser.
        rebatched_size: rows that are gathered into one element; None when elements are handed over as they come.

    Raises:
        Error: for any other element, for tensors that require grad, and where rows are to be gathered for tensors
            without them.
    """

    def __init__(self, element: Any, rebatched_size: Optional[int]) -> None:
        tensors = _tensors_of(element)
        if any(tensor.requires_grad for tensor in tensors):
            raise createPoptorchError("the first element has a tensor that requires grad, which no process can share")
        self._keys = _keys_of(element)
        self._is_sequence = isinstance(element, (list, tuple))
        self._custom = element if _is_custom(element) else None
        self.rebatched_size = rebatched_size
        self.specs = tuple(map(TensorSpec.of, tensors))
        if rebatched_size is not None:
            self._check_rows(tensors)
            self.specs = tuple(TensorSpec(dtype, (rebatched_size, *shape[1:])) for dtype, shape in self.specs)

    def take_apart(self, element: Any) -> List[torch.Tensor]:
        """The tensors of an element, in the order of the first one's. Whoever copies them converts their dtypes.

        Raises:
            Error: when it has other tensors, or tensors of other shapes, than the first one.
        """
        keys = _keys_of(element)
        if keys is not None and self._keys is not None and set(keys) == set(self._keys):
            element, keys = {key: element[key] for key in self._keys}, self._keys
        tensors = _tensors_of(element)
        if len(tensors) != len(self.specs) or keys != self._keys:
            first, this = _count(self._keys, len(self.specs)), _count(keys, len(tensors))
            raise createPoptorchError(f"every element must have the same tensors as the first one, {first}, not {this}")
        for index, (tensor, expected) in enumerate(zip(tensors, self.specs)):
            self._check_tensor(index, TensorSpec.of(tensor), expected)
        if self.rebatched_size is not None:
            self._check_rows(tensors)
        return tensors

    def put_together(self, tensors: Sequence[torch.Tensor]) -> Any:
        """An element of these tensors: a tensor, a list, a dictionary, or what the custom parser makes of them."""
        if self._custom is not None:
            return parser_of(self._custom).reconstruct(self._custom, iter(tensors))
        if self._keys is not None:
            return dict(zip(self._keys, tensors))
        return list(tensors) if self._is_sequence else tensors[0]

    def _check_tensor(self, index: int, actual: TensorSpec, expected: TensorSpec) -> None:
        compared = slice(0 if self.rebatched_size is None else 1, None)
        if actual.shape[compared] != expected.shape[compared]:
            raise createPoptorchError(
                f"every element must be like the first one: tensor {index} is {actual}, and was "
                f"{expected}" + ("" if self.rebatched_size is None else " (rows may differ)")
            )

    def _check_rows(self, tensors: Sequence[torch.Tensor]) -> None:
        if len({tensor.shape[:1] for tensor in tensors}) != 1 or not tensors[0].dim():
            shapes = [list(tensor.shape) for tensor in tensors]
            raise createPoptorchError(
                f"rebatching needs elements whose tensors have one batch dimension in common, not shapes {shapes}"
            )


def concatenate(batches: Sequence[Any]) -> Any:
    """One batch, made of several alike along dimension 0.

    Raises:
        Error: when a batch holds anything else than tensors.
    """
    first = batches[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(batches))
    if isinstance(first, dict):
        return {key: concatenate([batch[key] for batch in batches]) for key in first}
    if isinstance(first, (list, tuple)):
        return [concatenate(parts) for parts in zip(*batches)]
    parser = parser_of(first)
    if parser is None:
        raise createPoptorchError(
            f"the batches of a batch_sampler hold {_kind(first)}, and only tensors can be "
            "concatenated: register a parser of that type with poptorch.registerCustomArgParser"
        )
    columns = zip(*(parser.yieldTensors(batch) for batch in batches))
    return parser.reconstruct(first, iter([torch.cat(column) for column in columns]))


def _tensors_of(element: Any) -> List[torch.Tensor]:
    tensors = list(_members(element))
    if not tensors:
        raise createPoptorchError("an element of the data set holds no tensor")
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise createPoptorchError(
                f"an element holds {_kind(tensor)}: an asynchronous accessor takes tensors, flat "
                "lists, tuples and dictionaries of tensors, and types with a registered parser"
            )
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise createPoptorchError(
                "an asynchronous accessor takes dense tensors on the CPU, not a tensor of layout "
                f"{tensor.layout} on {tensor.device}"
            )
    return tensors


def _members(element: Any) -> Iterable[Any]:
    if isinstance(element, (list, tuple)):
        return element
    if isinstance(element, dict):
        return element.values()
    return parser_of(element).yieldTensors(element) if _is_custom(element) else [element]


def _count(keys: Optional[Tuple[Hashable, ...]], tensors: int) -> str:
    return str(tensors) if keys is None else str(list(keys))


def _keys_of(element: Any) -> Optional[Tuple[Hashable, ...]]:
    return tuple(element) if isinstance(element, dict) else None


def _is_custom(element: Any) -> bool:
    return not isinstance(element, (torch.Tensor, list, tuple, dict)) and parser_of(element) is not None


def _kind(value: Any) -> str:
    return type(value).__name__
