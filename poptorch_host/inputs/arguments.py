# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The arguments of a call: bound to the parameters of forward, checked, and split into micro-batches."""

import inspect
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

import torch

from .._logging import logger
from ..errors import check, createPoptorchError
from .nested import (
    Signature,
    arranged,
    check_keys,
    check_signature,
    map_tensors,
    names_of,
    refuse,
    signature_of,
    tensors_of,
)

_Parameter = inspect.Parameter
_POSITIONAL = (_Parameter.POSITIONAL_ONLY, _Parameter.POSITIONAL_OR_KEYWORD)

# The dtypes that a device uses in place of those it does not support.
DEVICE_DTYPES = {torch.float64: torch.float32, torch.bfloat16: torch.float32}

_INPUT_DTYPES = frozenset(
    [
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.float32,
        torch.float64,
        torch.bfloat16,
        torch.bool,
    ]
)


_AS_THEY_ARE = _INPUT_DTYPES - set(DEVICE_DTYPES) - {torch.int64}


class Bound(NamedTuple):
    """The arguments of a call, bound to the parameters of forward."""

    positional: Tuple[Any, ...]
    keywords: Dict[str, Any]

    def named(self, names: List[str]) -> List[Tuple[str, Any]]:
        """Returns the name and the value of each argument."""
        extra = [f"argument {index}" for index in range(len(names), len(self.positional))]
        return list(zip(names + extra, self.positional)) + list(self.keywords.items())


class ForwardParameters:
    """The parameters of a model's forward.

    Args:
        forward: the bound method.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        parameters = inspect.signature(forward).parameters.values()
        self.positional = [p for p in parameters if p.kind in _POSITIONAL]
        self.names = [p.name for p in self.positional]
        self._keyword_only = [p for p in parameters if p.kind == _Parameter.KEYWORD_ONLY]
        self._any_positional = any(p.kind == _Parameter.VAR_POSITIONAL for p in parameters)
        self._any_keyword = any(p.kind == _Parameter.VAR_KEYWORD for p in parameters)

    def bind(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Bound:
        """Binds arguments to parameters and fills in defaults.

        Raises:
            AssertionError: for too many arguments, an unknown keyword, or an argument given twice.
            Error: for a missing argument.
            TypeError: for a forward with keyword-only parameters but no `*args`, since PopTorch passes all by position.
        """
        if not kwargs and len(args) == len(self.positional) and not self._keyword_only:
            return Bound(args, {})
        check(
            self._any_positional or len(args) <= len(self.positional),
            f"Too many arguments provided: forward takes {len(self.positional)}, got {len(args)}",
        )
        keywords = dict(kwargs)
        given_twice = [name for name in self.names[: len(args)] if name in keywords]
        check(not given_twice, f"Parameter {', '.join(given_twice)} was passed more than once: by position and by name")
        positional = list(args) + [self._value(parameter, keywords) for parameter in self.positional[len(args) :]]
        keyword_only = {p.name: self._value(p, keywords) for p in self._keyword_only}
        if keyword_only and not self._any_positional:
            raise TypeError(
                f"PopTorch passes {', '.join(keyword_only)} to forward by position, but forward takes it by keyword "
                "only: leave out the * before it"
            )
        check(
            self._any_keyword or not keywords, f"Invalid parameter {', '.join(keywords)}, expected one of {self.names}"
        )
        return Bound(tuple(positional), {**keyword_only, **dict(sorted(keywords.items()))})

    @staticmethod
    def _value(parameter: _Parameter, keywords: Dict[str, Any]) -> Any:
        if parameter.name in keywords:
            return keywords.pop(parameter.name)
        if parameter.default is _Parameter.empty:
            raise createPoptorchError(f"Mandatory parameter {parameter.name} missing: forward has no default for it")
        return parameter.default


class InputContract:
    """The inputs that a compiled program accepts, and how they are split into micro-batches.

    Args:
        bound: the arguments that the program is compiled for.
        names: the names of forward's positional parameters.
        pieces: the number of micro-batches that a call splits its inputs into: device iterations x groups of replicas x
            gradient accumulation.

    Raises:
        Error: for a tensor without elements, or of an unsupported dtype.
        AssertionError: for a batch size that is not a multiple of `pieces`.
    """

    def __init__(self, bound: Bound, names: List[str], pieces: int) -> None:
        named = bound.named(names)
        for name, value in named:
            for leaf, tensor in zip(names_of(name, value), tensors_of(value)):
                _check_tensor(leaf, tensor, pieces)
        self.pieces = pieces
        self._adopt([(name, signature_of(value)) for name, value in named], len(bound.positional))
        if any(isinstance(value, dict) for _, value in named):
            logger.warning("Dictionaries as inputs are read by the keys of the first call, in their order")

    def _adopt(self, signatures: List[Tuple[str, Signature]], positional: int) -> None:
        self.signatures = signatures
        self._positional = positional
        plain = all(signature[0] == "tensor" and signature[3] == str(torch.Tensor) for _, signature in signatures)
        self._plain: Optional[List[Tuple[torch.dtype, torch.Size]]] = (
            [(signature[1], torch.Size(signature[2])) for _, signature in signatures] if plain else None
        )

    def __getstate__(self) -> Dict[str, Any]:
        return {"pieces": self.pieces, "signatures": self.signatures, "positional": self._positional}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.pieces = state["pieces"]
        self._adopt(state["signatures"], state["positional"])

    @property
    def is_plain(self) -> bool:
        """Whether all arguments are tensors."""
        return self._plain is not None

    def check(self, bound: Bound, names: List[str]) -> Bound:
        """Compares arguments with those that the program was compiled for.

        Returns:
            The arguments, with the keys of dictionaries in the compiled order.

        Raises:
            Error: for the first difference.
        """
        if self._plain is not None and not bound.keywords and len(bound.positional) == len(self._plain):
            for value, (dtype, shape) in zip(bound.positional, self._plain):
                if not (type(value) is torch.Tensor and value.dtype is dtype and value.shape == shape):
                    break
            else:
                return bound
        if len(bound.positional) != self._positional:
            refuse(
                f"Number of positional arguments mismatch: expected {self._positional} arguments but got "
                f"{len(bound.positional)}"
            )
        check_keys("named arguments", [name for name, _ in self.signatures[self._positional :]], bound.keywords)
        for (name, value), (_, signature) in zip(bound.named(names), self.signatures):
            check_signature(name, signature, value)
        values = [arranged(signature, value) for (_, value), (_, signature) in zip(bound.named(names), self.signatures)]
        return Bound(tuple(values[: self._positional]), dict(zip(bound.keywords, values[self._positional :])))


def _check_tensor(name: str, tensor: torch.Tensor, pieces: int) -> None:
    if tensor.numel() == 0:
        raise createPoptorchError(f"Zero-sized tensors are unsupported (Got shape {list(tensor.shape)}): input {name}")
    if tensor.dtype not in _INPUT_DTYPES:
        raise createPoptorchError(f"input {name} has dtype {tensor.dtype}, which devices do not support: convert it")
    rows = tensor.shape[0] if tensor.dim() else 1
    check(
        rows % pieces == 0,
        f"Invalid batch dimension: In the input {tensor.shape} ({name}), the batch dimension ({rows}) must be a "
        f"multiple of {pieces}: Options.deviceIterations * groups of Options.replicationFactor * "
        "Options.Training.gradientAccumulation",
    )


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies `tensor` to a device: contiguous, detached, and in a dtype that devices have.

    float64 and bfloat16 become float32. int64 values wrap to 32 bits, but stay int64, since PyTorch indexes with it.
    """
    if (
        tensor.dtype in _AS_THEY_ARE
        and tensor.device == device
        and tensor.is_contiguous()
        and not tensor.requires_grad
        and not tensor.is_inference()
    ):
        return tensor
    if tensor.is_inference():
        tensor = tensor.clone()  # autograd cannot save inference tensors
    if tensor.requires_grad:
        tensor = tensor.detach()
    if not tensor.is_contiguous():
        _warn_once(
            "contiguous", "At least one input tensor is not contiguous: non-contiguous tensors will be converted."
        )
        tensor = tensor.contiguous()
    sent = tensor.to(device=device, dtype=DEVICE_DTYPES.get(tensor.dtype, tensor.dtype), non_blocking=True)
    return sent.int().long() if sent.dtype is torch.int64 else sent  # wrapped there: a copy would not be pinned


_warned: Set[str] = set()


def _warn_once(key: str, message: str) -> None:
    if key not in _warned:
        _warned.add(key)
        logger.warning(message)


def cut(value: Any, piece: int, pieces: int) -> Any:
    """Returns micro-batch `piece` of `pieces` of every tensor in `value`, as views."""
    if pieces == 1:
        return value
    return map_tensors(lambda tensor: _rows(tensor, piece, pieces), value)


def _rows(tensor: torch.Tensor, piece: int, pieces: int) -> torch.Tensor:
    rows = tensor.shape[0] // pieces
    return tensor.narrow(0, piece * rows, rows)
