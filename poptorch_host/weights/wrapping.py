# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What a training executor makes of the user's model: the same objects, which bring themselves up to date when read.

The model, its parameters and its buffers change class, to a subclass of their own whose name begins with "Poptorch".
Copies, pickles and state dicts hold objects of the original classes, which load without this package.
"""

import copy
import weakref
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import torch

from ..errors import createPoptorchError
from .device import ReplicaGrouping, parse_grouping, untouched

_OWNER = "_poptorch_executor"  # of a model: the executor that wraps it
_OWNERS = "_poptorch_executors"  # of a tensor: the executors of all models that have it

# How often a module's weights on the host were overwritten by a device's; kept after the executor that did it.
_host_versions: "weakref.WeakKeyDictionary[torch.nn.Module, int]" = weakref.WeakKeyDictionary()


# Whose copies the models of executors for inference are.
_originals: "weakref.WeakKeyDictionary[torch.nn.Module, weakref.ref]" = weakref.WeakKeyDictionary()

# Models that are plain for a while, and who wraps them again.
_set_aside: "weakref.WeakKeyDictionary[torch.nn.Module, weakref.ref]" = weakref.WeakKeyDictionary()


def host_version(model: torch.nn.Module) -> int:
    """How often weights were copied from a training device to this module, by itself or as part of another."""
    return _host_versions.get(_originals.get(model, lambda: None)() or model, 0)


def note_new_host_weights(model: torch.nn.Module) -> None:
    """A training device's weights were copied to this model."""
    for part in model.modules():
        _host_versions[part] = host_version(part) + 1


def fetch_trained_weights(model: torch.nn.Module) -> None:
    """Brings a module up to date that is, or is part of, or shares weights with a model in training."""
    with untouched():
        owners = {
            id(owner): owner
            for tensor in [*model.parameters(), *model.buffers()]
            for owner in vars(tensor).get(_OWNERS, ())
        }
    for owner in owners.values():
        owner.copyWeightsToHostIfNeeded()


class _Synchronised:
    """Mixed into the class of a wrapped tensor: every use of the tensor first fetches newer values."""

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Tuple = (), kwargs: Optional[Dict] = None) -> Any:
        for tensor in _wrapped_tensors(args + tuple((kwargs or {}).values())):
            _fetch(tensor)
        with untouched():
            return func(*args, **(kwargs or {}))

    def _plain(self) -> torch.Tensor:
        """A tensor of the original class that shares the values."""
        _fetch(self)
        with untouched():
            data = self.detach()
            if isinstance(self, torch.nn.Parameter):
                return torch.nn.Parameter(data, requires_grad=self.requires_grad)
            return data

    def __reduce_ex__(self, protocol: int) -> Any:
        return self._plain().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            memo[id(self)] = copy.deepcopy(self._plain())
        return memo[id(self)]

    def __repr__(self, *args: Any, **kwargs: Any) -> str:
        return repr(self._plain())


class PoptorchParameter(_Synchronised, torch.nn.Parameter):
    """A parameter of a model that is wrapped for training."""


class PoptorchBuffer(_Synchronised, torch.Tensor):
    """A buffer of a model that is wrapped for training."""


class _WrappedModel:
    """Mixed into the class of a wrapped model."""

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Fetches the weights if the device has newer ones; returns whether it did."""
        return vars(self)[_OWNER].copyWeightsToHostIfNeeded()

    def destroy(self) -> None:
        """Destroys the training executor that wraps this model."""
        vars(self)[_OWNER].destroy()

    def __getattribute__(self, name: str) -> Any:
        if name in ("_parameters", "_buffers"):
            owner = object.__getattribute__(self, "__dict__").get(_OWNER)
            if owner is not None:
                owner.copyWeightsToHostIfNeeded()
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def state_dict(
        self, *args: Any, destination: Optional[Dict] = None, prefix: str = "", keep_vars: bool = False
    ) -> Dict[str, Any]:
        """The state dict of the original class, with the newest weights, as tensors of the original classes."""
        self.copyWeightsToHostIfNeeded()
        return super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)

    def __reduce_ex__(self, protocol: int) -> Any:
        self.copyWeightsToHostIfNeeded()
        return plain_copy(self).__reduce_ex__(1)  # later protocols insist on the class of this very object


def is_wrapped(model: torch.nn.Module) -> bool:
    """Whether a training executor wraps this model."""
    return isinstance(model, _WrappedModel)


def plain_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A shallow copy of the original class: parameters, buffers and sub-modules are the model's own."""
    original = _original_class(model)
    copied = object.__new__(original)  # the class may make more than objects: torch.fx makes classes
    vars(copied).update({key: value for key, value in vars(model).items() if key != _OWNER})
    return copied


def own_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A `plain_copy` that still gets the weights which a training device brings to `model`."""
    copied = plain_copy(model)
    _originals[copied] = _originals.get(model) or weakref.ref(model)
    return copied


def wrap(model: torch.nn.Module, executor: Any) -> None:
    """Changes the classes of a model, its parameters and its buffers.

    Raises:
        RuntimeError: when it is wrapped already.
        Error: for a buffer of another class than torch.Tensor.
    """
    if is_wrapped(model):
        raise RuntimeError(
            f"{_original_class(model).__name__} has already been wrapped in 'poptorch.trainingModel'. "
            "Call model.destroy() on the model to unwrap before wrapping again."
        )
    for name, buffer in model.named_buffers():
        if type(buffer) not in (torch.Tensor, PoptorchBuffer):
            raise createPoptorchError(
                f"buffer {name} is a {type(buffer).__name__}: buffers of a trained model must be "
                "plain torch.Tensor objects"
            )
    for tensor, kind in _tensors(model):
        vars(tensor).setdefault(_OWNERS, []).append(executor)
        tensor.__class__ = kind
    original = type(model)
    model.__class__ = type(
        f"Poptorch{original.__name__}", (_WrappedModel, original), {"__module__": original.__module__}
    )
    vars(model)[_OWNER] = executor


def set_aside(model: torch.nn.Module) -> None:
    """Fetches the newest weights and gives a wrapped model its own classes, until `wrap_again`. Others stay as is."""
    if is_wrapped(model):
        executor = vars(model)[_OWNER]
        executor.copyWeightsToHostIfNeeded()
        unwrap(model, executor)
        _set_aside[model] = weakref.ref(executor)


def wrap_again(model: torch.nn.Module) -> None:
    """Undoes `set_aside`. No effect on a model that is wrapped, was not set aside, or whose executor is destroyed."""
    executor = _set_aside.pop(model, lambda: None)()
    if executor is not None and not is_wrapped(model):
        wrap(model, executor)


def unwrap(model: torch.nn.Module, executor: Any) -> None:
    """Gives a model of `executor` its own class back, and its tensors theirs unless another executor has them too."""
    if vars(model).get(_OWNER) is not executor:  # set aside, and perhaps wrapped for another
        _set_aside.pop(model, None)
        return
    del vars(model)[_OWNER]
    for tensor, _ in _tensors(model):
        owners = vars(tensor).get(_OWNERS, [])
        if executor in owners:
            owners.remove(executor)
            if not owners:
                tensor.__class__ = torch.nn.Parameter if isinstance(tensor, torch.nn.Parameter) else torch.Tensor
                del vars(tensor)[_OWNERS]
    model.__class__ = _original_class(model)


class ParameterProxy:
    """A parameter as an attribute of an executor: the parameter, and how replicas share it."""

    def __init__(self, executor: Any, name: str, parameter: torch.nn.Parameter) -> None:
        vars(self).update(_executor=executor, _name=name, _parameter=parameter)

    def replicaGrouping(self, comm_group_type, shards, variable_retrieval_mode) -> None:
        """Gives groups of replicas values of their own. The parameter has one row in front for each group.

        Args:
            comm_group_type: how replicas are grouped.
            shards: the number of replicas in a group; of no meaning for All and NoGrouping.
            variable_retrieval_mode: whether the host gets a row for each group or for each replica.

        Raises:
            AssertionError: for arguments of another kind.
            Error: when the model is compiled already.
        """
        grouping: ReplicaGrouping = parse_grouping(comm_group_type, shards, variable_retrieval_mode)
        self._executor._group_replicas(self._name, grouping)

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Tuple = (), kwargs: Optional[Dict] = None) -> Any:
        return func(*_bare(args), **_bare(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parameter, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._parameter, name, value)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._parameter[index]

    def __len__(self) -> int:
        return len(self._parameter)

    def __float__(self) -> float:
        return float(self._parameter)

    def __repr__(self) -> str:
        return repr(self._parameter)


def _forward_operator(name: str) -> Callable:
    def operator(self: ParameterProxy, *args: Any) -> Any:
        return getattr(self._parameter, name)(*_bare(args))

    operator.__name__ = name
    return operator


for _name in (
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "rtruediv",
    "matmul",
    "rmatmul",
    "pow",
    "neg",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
):
    setattr(ParameterProxy, f"__{_name}__", _forward_operator(f"__{_name}__"))
ParameterProxy.__hash__ = object.__hash__


def _bare(value: Any) -> Any:
    """`value` with parameters in place of proxies."""
    if isinstance(value, ParameterProxy):
        return value._parameter
    if isinstance(value, (list, tuple)):
        return type(value)(map(_bare, value))
    return {key: _bare(item) for key, item in value.items()} if type(value) is dict else value


def _original_class(model: torch.nn.Module) -> type:
    return type(model).__mro__[2] if isinstance(model, _WrappedModel) else type(model)


def _tensors(model: torch.nn.Module) -> List[Tuple[torch.Tensor, type]]:
    parameters = [(parameter, PoptorchParameter) for parameter in model.parameters()]
    return parameters + [(buffer, PoptorchBuffer) for buffer in model.buffers()]


def _fetch(tensor: torch.Tensor) -> None:
    for owner in vars(tensor).get(_OWNERS, ()):
        owner.copyWeightsToHostIfNeeded()


def _wrapped_tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, _Synchronised):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _wrapped_tensors(item)
