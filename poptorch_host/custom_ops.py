# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Operations that a program brings along as device code, and what stands for them on a host.

A program says it with `implement`. For one that knows nothing of this package, the environment variable
POPTORCH_HOST_OPERATIONS names a Python file that does; it is run once, when the first operation is looked for.
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
    """A decorator for the host's own use: the function computes custom operation `name` of `domain`.

    It takes the input tensors and the attributes and returns the output tensors, in plain PyTorch.
    """

    def register(function: Implementation) -> Implementation:
        _implementations[domain, name] = function
        return function

    return register


def custom_op(
    inputs: Tuple[torch.Tensor],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: Tuple[torch.Tensor],
    attributes: Optional[Dict[str, Union[float, int, str, list, tuple]]] = None,
) -> List[torch.Tensor]:
    """Runs an operation that is written in device code.

    A host has no such code. Outside a compiled model the result is zeros, as with PopTorch; inside one it is what the
    function registered by `implement` computes.

    Args:
        inputs: its input tensors.
        name: its name.
        domain: the domain of the name.
        domain_version: the version of the domain.
        example_outputs: tensors of the shapes and dtypes of its outputs.
        attributes: numbers, strings, and lists of one of these kinds, by name.

    Returns:
        One tensor for each of `example_outputs`.

    Raises:
        ValueError: for other attributes, or text that is not ASCII.
        Error: in a compiled model, when nothing is registered for the operation.
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
        raise createPoptorchError(f"POPTORCH_HOST_OPERATIONS names {file}, which is no file") from error


def accessAttributes(attribute_id_str: str) -> NoReturn:
    """Refused: the attributes of a custom operation are kept for device code, which a host does not run."""
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
