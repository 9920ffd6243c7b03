# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Arithmetic that a device does and a host may not, most of it on mixed or half-precision tensors.

Four things differ. A device casts the weights of convolutions and norms to the dtype of their input, and promotes the
operands of matrix products, where PyTorch refuses to mix. PyTorch lacks many float16 kernels on some hosts: those
operations are computed in float32 between float16 inputs and outputs, which is also what a device's float32 partial
sums amount to (`partials` has float16 ones). A device, whose integers have 32 bits, takes class labels and indices of
int32 where PyTorch wants int64. And it differentiates a division that rounds down, where PyTorch refuses.
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
# Functions whose weights a device casts to the dtype of their input, and the names and positions of those weights.
_WEIGHTS = {
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        {"weight": 1, "bias": 2},
    ),
    **dict.fromkeys(("layer_norm", "group_norm"), {"weight": 2, "bias": 3}),
    **dict.fromkeys(("batch_norm", "instance_norm"), {"weight": 3, "bias": 4}),
}
# Positions of running statistics, which the operation updates although its schema does not say so.
_RUNNING = dict.fromkeys(_BATCH_NORMS, (3, 4))
# Of these, only the first result is an activation; the others are statistics for the backward pass.
_FIRST_RESULT_ONLY = {"native_layer_norm", "native_group_norm", *_BATCH_NORMS}
# Arguments of operations, by their names in the schema, that PyTorch wants in int64; and functions of such arguments.
_INDICES = {"target", "index", "indices"}
_OF_INDICES = {"one_hot", "take_along_dim"}
# PyTorch does not differentiate them, but does torch.div, which can round down as well.
_FLOOR_DIVISIONS = {"floor_divide", "__floordiv__", "__rfloordiv__"}
# Products whose float16 kernels on CPUs take many times as long as float32 ones. (benchmarks/half_products.py)
_SLOW_ON_CPUS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "convolution", "convolution_backward"}
_PROMOTED = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "linear", "matmul"}


class _CastWeights(TorchFunctionMode):
    """Casts the weights of convolutions and norms to the dtype of their input, and indices to int64.

    Divisions that round down get their gradient, zero.
    """

    def __init__(self, arithmetic: "HalfArithmetic") -> None:
        super().__init__()
        self._arithmetic = arithmetic

    def __torch_function__(self, func: Any, types: Any, args: Tuple = (), kwargs: Optional[Dict] = None) -> Any:
        kwargs = kwargs or {}
        data = args[0] if args else kwargs.get("input")
        name = getattr(func, "__name__", "")
        if name in _FLOOR_DIVISIONS and any(tensor.requires_grad for tensor in tensors_in(args)):
            self._arithmetic.needed = True
            left, right = reversed(args) if name == "__rfloordiv__" else args
            return torch.div(left, right, rounding_mode="floor")
        if name in _OF_INDICES and torch.int32 in {tensor.dtype for tensor in tensors_in(args)}:
            self._arithmetic.needed = True
            return func(*map(_widen_index, args), **kwargs)
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
    """The arguments that are cast to the dtype of `data`. Of linear layers, only those of a single vector are.

    Under autocast PyTorch casts by rules of its own, and bfloat16 is known to no device.
    """
    if not isinstance(data, torch.Tensor) or data.dtype == torch.bfloat16 or torch._C._is_any_autocast_enabled():
        return None
    if name == "linear":
        return {"weight": 1, "bias": 2} if data.dim() == 1 else None
    return _WEIGHTS.get(name)


class HalfArithmetic(TorchDispatchMode):
    """Inside, operations follow a device's rules for dtypes and exist in float16.

    Args:
        partials: the products that are added up in float16.

    Attributes:
        needed: whether any operation so far would have failed, or come out otherwise, without.
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
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._cast_weights.__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Tuple = (), kwargs: Optional[Dict] = None) -> Any:
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

    def _with_indices(self, func: Any, name: str, args: Tuple, kwargs: Dict) -> Any:
        """An operation that has an int32 tensor, perhaps for an index."""
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

    def _in_half(self, func: Any, name: str, args: Tuple, kwargs: Dict) -> Any:
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
                self._missing.add(func)  # computed in float32 from here on
        self.needed = True
        return _in_float(func, name, args, kwargs)

    def _check_arguments(self, func: Any, name: str, args: Tuple, kwargs: Dict) -> None:
        """Has PyTorch itself compute the operation, once for arguments of these shapes: what it refuses raises."""
        signature = (func, str([_without_values(arg) for arg in args]), str(kwargs))
        if signature not in self._checked:
            _in_float(func, name, args, kwargs)
            self._checked.add(signature)


def _without_values(argument: Any) -> Any:
    return tuple(argument.shape) if isinstance(argument, torch.Tensor) else argument


def _on_cpu(args: Tuple) -> bool:
    return all(tensor.device.type == "cpu" for tensor in tensors_in(args))


def _says_half_is_missing(message: str) -> bool:
    """Whether an error means that PyTorch has no float16 kernel, rather than a mistake of the program."""
    signs = ("not implemented for 'Half'", "expected scalar type", "mixed dtype (CPU)")
    return any(words in message for words in signs) and "scalar type Long" not in message


def _says_int64_is_wanted(message: str) -> bool:
    return any(words in message for words in ("Long", "int64", "long"))


def _widen_index(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.int32:
        return value.long()
    return [_widen_index(item) for item in value] if isinstance(value, list) else value


def _in_float(func: Any, name: str, args: Tuple, kwargs: Dict) -> Any:
    """The operation in float32, its results in float16 where a device would return that."""
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


def _dtype_of_result(name: str, args: Tuple) -> torch.dtype:
    """A norm returns the dtype of its input, whatever its statistics have; other operations promote."""
    deciding = args[:1] if name in _FIRST_RESULT_ONLY else args
    mixed = any(tensor.dtype == torch.float32 and tensor.dim() > 0 for tensor in tensors_in(deciding))
    return torch.float32 if mixed else torch.float16


def _written(func: Any, name: str, args: Tuple, kwargs: Dict) -> List[torch.Tensor]:
    """The tensors that the operation writes: by its schema, and the running statistics, which the schema leaves out."""
    found = [args[index] for index in _RUNNING.get(name, ())]
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[index] if index < len(args) else kwargs.get(argument.name))
    return tensors_in(found)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != dtype:
        return value.to(dtype)
    return value
