# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Nested arguments and outputs: tuples, named tuples, lists, dictionaries and custom types that contain tensors."""

from typing import Any, Callable, Dict, Iterable, Iterator, List, NoReturn, Tuple

import torch

from ..errors import createPoptorchError
from .custom_args import parser_of

Signature = Tuple[Any, ...]


def tensors_of(value: Any) -> List[torch.Tensor]:
    """Returns the tensors in `value`, depth first."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_of(item)]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    parser = parser_of(value)
    return [] if parser is None else list(parser.yieldTensors(value))


def tensors_in(arguments: Iterable[Any]) -> List[torch.Tensor]:
    """Returns the tensors among the arguments or results of an operation, also in lists and tuples."""
    found: List[torch.Tensor] = []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            found.append(argument)
        elif isinstance(argument, (list, tuple)):
            found.extend(tensors_in(argument))
    return found


def map_tensors(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Returns a copy of `value` with `function` applied to each tensor. Other values are not copied."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return _remake(value, {key: map_tensors(function, item) for key, item in value.items()})
    parser = parser_of(value)
    if parser is None:
        return value
    return parser.reconstruct(value, iter([function(tensor) for tensor in parser.yieldTensors(value)]))


def replace_tensors(value: Any, tensors: Iterator[Any]) -> Any:
    """Returns a copy of `value` with its tensors replaced, in the order of `tensors_of`, by those of `tensors`."""
    return map_tensors(lambda _: next(tensors), value)


def names_of(name: str, value: Any) -> List[str]:
    """Returns a name for each tensor of `tensors_of(value)`, such as x[1]["mask"]."""
    if isinstance(value, torch.Tensor):
        return [name]
    if isinstance(value, (list, tuple)):
        return [leaf for index, item in enumerate(value) for leaf in names_of(f"{name}[{index}]", item)]
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in names_of(f"{name}[{key!r}]", item)]
    return [f"{name}.{index}" for index in range(len(tensors_of(value)))]


def signature_of(value: Any) -> Signature:
    """Returns the properties of `value` that a program is compiled for: containers, dtypes, shapes, other values."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, tuple(value.shape), _kind(value))
    if isinstance(value, (list, tuple)):
        return ("sequence", _kind(value), tuple(map(signature_of, value)))
    if isinstance(value, dict):
        return ("mapping", _kind(value), tuple(value), tuple(map(signature_of, value.values())))
    parser = parser_of(value)
    if parser is not None:
        return ("custom", _kind(value), tuple(map(signature_of, parser.yieldTensors(value))))
    return ("constant", value)


def check_signature(name: str, compiled: Signature, value: Any) -> None:
    """Compares `value` with the signature that a program was compiled for.

    Raises:
        Error: for the first difference.
    """
    actual = signature_of(value)
    if compiled[0] != actual[0]:
        _require_equal(f"Type mismatch for {name}", _words(compiled), _words(actual))
    if compiled[0] == "tensor":
        _require_equal(f"Type mismatch for {name}", compiled[3], actual[3])
        _require_equal(f"Data type mismatch for {name}", compiled[1], actual[1])
        _require_equal(f"Shape mismatch for {name}", torch.Size(compiled[2]), torch.Size(actual[2]))
    elif compiled[0] == "constant":
        if not _same_constant(name, compiled[1], value):
            refuse(f"Value mismatch for {name}: expected {compiled[1]!r} but got {value!r}")
    else:
        _check_container(name, compiled, actual, value)


def check_keys(name: str, compiled: Iterable[Any], actual: Iterable[Any]) -> None:
    """Raises Error unless the keys are the same, in any order."""
    compiled, actual = list(compiled), list(actual)
    extra = [str(key) for key in actual if key not in compiled]
    missing = [str(key) for key in compiled if key not in actual]
    words = [f"Unexpected arguments: {', '.join(extra)}"] if extra else []
    words += [f"Missing arguments: {', '.join(missing)}"] if missing else []
    if words:
        refuse(f"Keys mismatch for {name}: {'. '.join(words)}")


def arranged(compiled: Signature, value: Any) -> Any:
    """`value`, which passed `check_signature`, with dictionaries in the order of keys that the program has."""
    if compiled[0] == "sequence":
        items = [arranged(part, item) for part, item in zip(compiled[2], value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if compiled[0] == "mapping":
        return _remake(value, {key: arranged(part, value[key]) for key, part in zip(compiled[2], compiled[3])})
    return value


def _remake(container: Dict[Any, Any], items: Dict[Any, Any]) -> Any:
    """Returns a dictionary of the same type with other items, made by its constructor, as PopTorch makes it."""
    try:
        return type(container)(items)
    except TypeError as error:
        kind = type(container).__name__
        raise TypeError(f"a {kind} cannot be made again as {kind}(items): pass and return a dict ({error})") from error


def _same_constant(name: str, compiled: Any, value: Any) -> bool:
    """Returns whether a value equals the one that was compiled into the program.

    Raises:
        ValueError: for arrays of several elements, which PopTorch cannot compare either.
    """
    if type(compiled) is not type(value):
        return False
    try:
        return bool(compiled == value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be compared with what was compiled: pass a tensor ({error})") from error


def _check_container(name: str, compiled: Signature, actual: Signature, value: Any) -> None:
    _require_equal(f"Type mismatch for {name}", compiled[1], actual[1])
    if compiled[0] == "mapping":
        check_keys(name, compiled[2], actual[2])
        items = [(key, value[key]) for key in compiled[2]]
    else:
        items = list(enumerate(value if compiled[0] == "sequence" else tensors_of(value)))
        if len(compiled[-1]) != len(items):
            refuse(f"Length mismatch for {name}: expected {len(compiled[-1])} elements but got {len(items)}")
    for part, (key, item) in zip(compiled[-1], items):
        check_signature(f"{name}[{key!r}]", part, item)


def _kind(value: Any) -> str:
    return str(type(value))


def _words(signature: Signature) -> str:
    """Returns the type of value that a signature describes, for error messages."""
    if signature[0] == "tensor":
        return str(signature[3])
    return str(type(signature[1])) if signature[0] == "constant" else signature[1]


def _require_equal(what: str, compiled: Any, actual: Any) -> None:
    if compiled != actual:
        refuse(f"{what}: expected {compiled} but got {actual}")


def refuse(difference: str) -> NoReturn:
    """Raises Error for inputs unlike those of the compiled program."""
    raise createPoptorchError(
        f"{difference}. A compiled model takes only inputs like those it was compiled "
        "for: call destroy() on it to compile again, or make a new inferenceModel or trainingModel"
    )
