# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""A device's arithmetic on half-precision and mixed tensors, where PyTorch's differs.

- A device casts the weights of convolutions and norms to the dtype of the input, and promotes the operands of matrix
  products. PyTorch does not mix dtypes.
- PyTorch has no float16 kernels for many operations on some hosts. They are computed in float32 with float16 inputs and
  outputs, which is equivalent to the float32 partial sums of a device (for float16 ones, see `partials`).
- A device accepts class labels and indices of int32, where PyTorch needs int64.
- A device differentiates floor division, which PyTorch does not.
"""

from typing import Any, Dict, List, Optional, Set, Tuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..inputs.nested import tensors_in
from .partials import HalfPartials

_BATCH_NORMS = (
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "_native_batch_norm_legit_no_training",
)
# Functions whose weights a device casts to the dtype of the input, with the names and positions of these weights.
_WEIGHTS = {
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        {"weight": 1, "bias": 2},
    ),
    **dict.fromkeys(("layer_norm", "group_norm"), {"weight": 2, "bias": 3}),
    **dict.fromkeys(("batch_norm", "instance_norm"), {"weight": 3, "bias": 4}),
}
# Positions of running statistics, which operations update although their schema does not declare it.
_RUNNING = dict.fromkeys(_BATCH_NORMS, (3, 4))
# Only the first result of these is an activation. The others are statistics for the backward pass.
_FIRST_RESULT_ONLY = {"native_layer_norm", "native_group_norm", *_BATCH_NORMS}
# Arguments that must be int64 in PyTorch, by their names in the schema, and functions with such arguments.
_INDICES = {"target", "index", "indices"}
_OF_INDICES = {"one_hot", "take_along_dim"}
# PyTorch does not differentiate these, but torch.div with rounding_mode="floor".
_FLOOR_DIVISIONS = {"floor_divide", "__floordiv__", "__rfloordiv__"}
# Products whose float16 kernels on CPUs are many times slower than the float32 ones. (benchmarks/half_products.py)
_SLOW_ON_CPUS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "convolution", "convolution_backward"}
# Losses of which PyTorch does not differentiate operands of different dtypes.
_PROMOTED_LOSSES = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}
# All functions that `_CastWeights` concerns itself with; most calls are of others.
_CASTING = {*_FLOOR_DIVISIONS, *_OF_INDICES, *_PROMOTED_LOSSES, *_WEIGHTS, "linear"}
_PROMOTED = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "linear", "matmul"}


class _CastWeights(TorchFunctionMode):
    """Casts the weights of convolutions and norms to the dtype of the input, and indices to int64.

    Also promotes the operands of losses, and makes floor division differentiable, with a gradient of zero.
    """

    def __init__(self, arithmetic: "HalfArithmetic") -> None:
        super().__init__()
        self._arithmetic = arithmetic

    def __torch_function__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in _CASTING:
            return func(*args, **kwargs)
        data: Any = args[0] if args else kwargs.get("input")
        if name in _FLOOR_DIVISIONS and any(tensor.requires_grad for tensor in tensors_in(args)):
            self._arithmetic.needed = True
            left, right = reversed(args) if name == "__rfloordiv__" else args
            return torch.div(left, right, rounding_mode="floor")
        if name in _OF_INDICES and torch.int32 in {tensor.dtype for tensor in tensors_in(args)}:
            self._arithmetic.needed = True
            return func(*map(_widen_index, args), **kwargs)
        if name in _PROMOTED_LOSSES and len({tensor.dtype for tensor in tensors_in((*args, *kwargs.values()))}) > 1:
            self._arithmetic.needed = True
            args = tuple(_cast(arg, torch.float32) for arg in args)
            return func(*args, **{name: _cast(arg, torch.float32) for name, arg in kwargs.items()})
        weights = _weights_of(name, data)
        if weights is None:
            return func(*args, **kwargs)
        given = [args[index] for index in weights.values() if index < len(args)]
        given += [kwargs.get(name) for name in weights]
        if any(tensor.dtype != data.dtype for tensor in tensors_in(given)):
            self._arithmetic.needed = True
            args = tuple(_cast(arg, data.dtype) if index in weights.values() else arg for index, arg in enumerate(args))
            kwargs = {name: _cast(arg, data.dtype) if name in weights else arg for name, arg in kwargs.items()}
        return func(*args, **kwargs)


def _weights_of(name: str, data: Any) -> Optional[Dict[str, int]]:
    """Returns the arguments to cast to the dtype of `data`; for linear layers, only if `data` is a vector.

    None under autocast, where PyTorch's own rules apply, and for bfloat16, which devices do not support.
    """
    if not isinstance(data, torch.Tensor) or data.dtype == torch.bfloat16 or torch._C._is_any_autocast_enabled():
        return None
    if name == "linear":
        return {"weight": 1, "bias": 2} if data.dim() == 1 else None
    return _WEIGHTS.get(name)


class HalfArithmetic(TorchDispatchMode):
    """A context manager in which operations follow a device's rules for dtypes, and all support float16.

    Args:
        partials: computes the products with float16 partial sums.

    Attributes:
        needed: whether an operation so far would have failed, or given another result, in plain PyTorch.
    """

    def __init__(self, partials: HalfPartials) -> None:
        super().__init__()
        self.needed = False
        self._partials = partials
        self._checked: Set[Any] = set()
        self._missing: Set[Any] = set()
        self._wants_int64: Set[Any] = set()
        self._cast_weights = _CastWeights(self)

    def __enter__(self) -> "HalfArithmetic":
        self._cast_weights.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._cast_weights.__exit__(*exception)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        tensors = tensors_in(args)
        dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        if len(dtypes) > 1 and name in _PROMOTED:
            self.needed = True
            return func(*[_cast(arg, torch.float32) for arg in args], **kwargs)
        if any(tensor.dtype == torch.int32 for tensor in tensors):
            return self._with_indices(func, name, args, kwargs)
        return self._in_half(func, name, args, kwargs) if torch.float16 in dtypes else func(*args, **kwargs)

    def _with_indices(self, func: Any, name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """Runs an operation with an int32 tensor, which may be an index."""
        if func not in self._wants_int64:
            try:
                return self._in_half(func, name, args, kwargs)
            except (RuntimeError, IndexError) as error:
                if not _says_int64_is_wanted(str(error)):
                    raise
                self._wants_int64.add(func)
        self.needed = True
        indices = [argument.name in _INDICES for argument in func._schema.arguments]
        args = tuple(_widen_index(arg) if is_index else arg for arg, is_index in zip(args, indices))
        return self._in_half(func, name, args, kwargs)

    def _in_half(self, func: Any, name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        replacement = self._partials.replacement(name, args)
        if replacement is not None:
            self.needed = True
            self._check_arguments(func, name, args, kwargs)
            return replacement(*args, **kwargs)
        if func not in self._missing and not (name in _SLOW_ON_CPUS and _on_cpu(args)):
            try:
                return func(*args, **kwargs)
            except (RuntimeError, NotImplementedError) as error:
                if not _says_half_is_missing(str(error)):
                    raise
                self._missing.add(func)  # computed in float32 from now on
        self.needed = True
        return _in_float(func, name, args, kwargs)

    def _check_arguments(self, func: Any, name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        """Has PyTorch itself compute the operation, once for arguments of these shapes: what it refuses raises."""
        signature = (func, str([_without_values(arg) for arg in args]), str(kwargs))
        if signature not in self._checked:
            _in_float(func, name, args, kwargs)
            self._checked.add(signature)


def _without_values(argument: Any) -> Any:
    return tuple(argument.shape) if isinstance(argument, torch.Tensor) else argument


def _on_cpu(args: Tuple[Any, ...]) -> bool:
    return all(tensor.device.type == "cpu" for tensor in tensors_in(args))


def _says_half_is_missing(message: str) -> bool:
    """Returns whether an error means that PyTorch has no float16 kernel, rather than an error in the program."""
    signs = ("not implemented for 'Half'", "expected scalar type", "mixed dtype (CPU)")
    return any(words in message for words in signs) and "scalar type Long" not in message


def _says_int64_is_wanted(message: str) -> bool:
    return any(words in message for words in ("Long", "int64", "long"))


def _widen_index(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.int32:
        return value.long()
    return [_widen_index(item) for item in value] if isinstance(value, list) else value


def _in_float(func: Any, name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
    """Runs an operation in float32, and converts its results to the dtypes that a device returns."""
    wide_of: Dict[int, torch.Tensor] = {}

    def widen(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype == torch.float16:
            return wide_of.setdefault(id(value), value.float())
        if value is torch.float16:
            return torch.float32
        return type(value)(map(widen, value)) if isinstance(value, (list, tuple)) else value

    dtype = _dtype_of_result(name, args)
    result = func(*map(widen, args), **{key: widen(value) for key, value in kwargs.items()})
    written = [tensor for tensor in _written(func, name, args, kwargs) if id(tensor) in wide_of]
    for tensor in written:
        tensor.copy_(wide_of[id(tensor)])
    if isinstance(result, torch.Tensor):
        same = [tensor for tensor in written if wide_of[id(tensor)] is result]
        if same:
            return same[0]
        return result if kwargs.get("dtype") not in (None, torch.float16) else _cast(result, dtype)
    if name in _FIRST_RESULT_ONLY:
        return (_cast(result[0], dtype), *result[1:])
    return type(result)(_cast(item, dtype) for item in result) if isinstance(result, (list, tuple)) else result


def _dtype_of_result(name: str, args: Tuple[Any, ...]) -> torch.dtype:
    """Returns the dtype of the result: for a norm, that of its input; for other operations, the promoted one."""
    deciding = args[:1] if name in _FIRST_RESULT_ONLY else args
    mixed = any(tensor.dtype == torch.float32 and tensor.dim() > 0 for tensor in tensors_in(deciding))
    return torch.float32 if mixed else torch.float16


def _written(func: Any, name: str, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> List[torch.Tensor]:
    """Returns the tensors that an operation writes to: those in its schema, and running statistics."""
    found = [args[index] for index in _RUNNING.get(name, ())]
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[index] if index < len(args) else kwargs.get(argument.name))
    return tensors_in(found)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != dtype:
        return value.to(dtype)
    return value
