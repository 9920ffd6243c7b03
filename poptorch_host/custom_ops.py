# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Custom operations: device code on an IPU, Python functions on a host.

A program registers these functions with `implement`. For a program that cannot be changed, the environment variable
POPTORCH_HOST_OPERATIONS names a Python file that registers them. It is run once, when it is first needed.
"""

import runpy
from functools import lru_cache
from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence, Tuple, Union

import torch

from . import host
from .context import current, own_op
from .errors import createPoptorchError

Implementation = Callable[[Sequence[torch.Tensor], Dict[str, Any]], Sequence[torch.Tensor]]

_implementations: Dict[Tuple[str, str], Implementation] = {}


def implement(name: str, domain: str) -> Callable[[Implementation], Implementation]:
    """A decorator that registers a function as the host's implementation of custom operation `name` of `domain`.

    The function takes the input tensors and the attributes and returns the output tensors. Not part of PopTorch.
    """

    def register(function: Implementation) -> Implementation:
        _implementations[domain, name] = function
        return function

    return register


def custom_op(
    inputs: Sequence[torch.Tensor],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: Sequence[torch.Tensor],
    attributes: Optional[Dict[str, Union[float, int, str, List[Any], Tuple[Any, ...]]]] = None,
) -> List[torch.Tensor]:
    """Runs a custom operation.

    Inside a compiled model, calls the function that was registered by `implement`. Outside one, returns zeros, as
    PopTorch does.

    Args:
        inputs: the input tensors.
        name: the name of the operation.
        domain: the domain of the operation.
        domain_version: the version of the domain.
        example_outputs: tensors with the shapes and dtypes of the outputs.
        attributes: numbers, strings, and lists of one of these types, by name.

    Returns:
        One tensor for each of `example_outputs`.

    Raises:
        ValueError: for attributes of other types, or text that is not ASCII.
        Error: in a compiled model, if no function is registered for the operation.
    """
    attributes = {} if attributes is None else attributes
    _check_attributes(attributes)
    if current() is None:
        return [torch.zeros_like(example) for example in example_outputs]
    implementation = _implementation(name, domain)
    if implementation is None:
        raise createPoptorchError(
            f"custom_op {domain}.{name} (version {domain_version}) is device code, which a host cannot run: register a "
            "function for it with poptorch_host.custom_ops.implement, in the program or in POPTORCH_HOST_OPERATIONS"
        )
    with own_op("custom_op", op=name, domain=domain):
        return list(implementation(inputs, attributes))


def _implementation(name: str, domain: str) -> Optional[Implementation]:
    if (domain, name) not in _implementations and host.operations_file() is not None:
        _run_once(host.operations_file())
    return _implementations.get((domain, name))


@lru_cache(maxsize=None)
def _run_once(file: str) -> None:
    try:
        runpy.run_path(file)
    except FileNotFoundError as error:
        raise createPoptorchError(f"POPTORCH_HOST_OPERATIONS is {file}, which does not exist") from error


def accessAttributes(attribute_id_str: str) -> NoReturn:
    """Raises Error: attributes are for device code, which a host does not run."""
    raise createPoptorchError(f"accessAttributes({attribute_id_str!r}): a host keeps no attributes for device code")


def _check_attributes(attributes: Dict[str, Any]) -> None:
    for key, value in attributes.items():
        if not isinstance(key, str) or not key.isascii():
            raise ValueError(f"the name of an attribute must be an ASCII string, not {key!r}")
        members = list(value) if isinstance(value, (list, tuple)) else [value]
        if not any(all(isinstance(member, kind) for member in members) for kind in (int, float, str)):
            raise ValueError(
                f"attribute {key} must be a float, an int, a string, or a list of one of these kinds, not {value!r}"
            )
        if not all(member.isascii() for member in members if isinstance(member, str)):
            raise ValueError(f"attribute {key} must be ASCII text, not {value!r}")
