# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Wraps the user's model for training, so that reading a weight returns its current value.

The classes of the model, its parameters and its buffers are replaced in place by subclasses whose names begin with
"Poptorch". Copies, pickles and state dicts contain objects of the original classes, which load without this package.
"""

import copy
import weakref
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Tuple, Type

import torch

from .._logging import logger
from ..enums import CommGroupType, VariableRetrievalMode
from ..errors import createPoptorchError
from .device import ReplicaGrouping, parse_grouping, untouched

_OWNER = "_poptorch_executor"  # of a model: the executor that wraps it
_OWNERS = "_poptorch_executors"  # of a tensor: the executors of all models that contain it

# Models that are temporarily unwrapped, with their executors.
_set_aside: "weakref.WeakKeyDictionary[torch.nn.Module, weakref.ref[Any]]" = weakref.WeakKeyDictionary()

if TYPE_CHECKING:  # what the classes below are mixed into
    _TensorBase = torch.Tensor
    _ModuleBase = torch.nn.Module
else:
    _TensorBase = _ModuleBase = object


def trained_version(model: torch.nn.Module) -> int:
    """Copies newer weights to the host for a model that is in training, or was when this copy of it was made.

    Returns:
        How often its trained weights were copied to the host; 0 for other models.
    """
    trainer = vars(model).get(_OWNER)
    if trainer is None:
        return 0
    trainer.copyWeightsToHostIfNeeded()
    return int(trainer.host_weights_version)


def fetch_trained_weights(model: torch.nn.Module) -> None:
    """Copies weights to the host for a module that is in training, is part of such a model, or shares its weights."""
    with untouched():
        owners = {
            id(owner): owner
            for tensor in [*model.parameters(), *model.buffers()]
            for owner in vars(tensor).get(_OWNERS, ())
        }
    for owner in owners.values():
        owner.copyWeightsToHostIfNeeded()
    if owners and not is_wrapped(model):
        logger.warning(
            "The weights of this model are trained as part of another one, or since before it was given to "
            "inferenceModel: what is trained after now needs copyWeightsToHost() of the training model and "
            "copyWeightsToDevice() of this one"
        )


class _Synchronised(_TensorBase):
    """The mixin of wrapped tensors. Every use of the tensor first copies newer values from the device."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        for tensor in _wrapped_tensors(args + tuple((kwargs or {}).values())):
            _fetch(tensor)
        with untouched():
            return func(*args, **(kwargs or {}))

    def _plain(self) -> torch.Tensor:
        """Returns a tensor of the original class that shares the values."""
        _fetch(self)
        with untouched():
            data = self.detach()
            if isinstance(self, torch.nn.Parameter):
                return torch.nn.Parameter(data, requires_grad=self.requires_grad)
            return data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Dict[int, Any]) -> Any:
        if id(self) not in memo:
            memo[id(self)] = copy.deepcopy(self._plain())
        return memo[id(self)]

    def __repr__(self, *args: Any, **kwargs: Any) -> str:  # type: ignore[override]  # whatever torch passes
        return repr(self._plain())


class PoptorchParameter(_Synchronised, torch.nn.Parameter):
    """A parameter of a model that is wrapped for training."""


class PoptorchBuffer(_Synchronised, torch.Tensor):
    """A buffer of a model that is wrapped for training."""

    def __deepcopy__(self, memo: Dict[int, Any]) -> Any:
        """Raises RuntimeError, as PyTorch does for PopTorch's buffers."""
        raise RuntimeError(
            "buffers of a model in training cannot be deep-copied: copy the model before trainingModel or after "
            "destroy(), or its state_dict()"
        )


class _WrappedModel(_ModuleBase):
    """The mixin of wrapped models."""

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Copies the weights to the host if the device has newer ones. Returns whether it did."""
        return bool(vars(self)[_OWNER].copyWeightsToHostIfNeeded())

    def destroy(self) -> None:
        """Destroys the training executor that wraps this model."""
        vars(self)[_OWNER].destroy()

    @property
    def _host_weights_version(self) -> int:
        """How often the weights were copied to the host, under PopTorch's private name."""
        return int(vars(self)[_OWNER].host_weights_version)

    def __getattribute__(self, name: str) -> Any:
        if name in ("_parameters", "_buffers"):
            owner = object.__getattribute__(self, "__dict__").get(_OWNER)
            if owner is not None:
                owner.copyWeightsToHostIfNeeded()
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def state_dict(  # type: ignore[override]  # torch spells out how `destination` sets the type of the result
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Dict[str, Any]:
        """Returns the state dict of the original class with the current weights, as tensors of the original classes."""
        self.copyWeightsToHostIfNeeded()
        entries: Dict[str, Any] = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        return entries

    def __copy__(self) -> torch.nn.Module:
        return shallow_copy(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.copyWeightsToHostIfNeeded()
        return plain_copy(self).__reduce_ex__(1)  # later protocols use the class of the object itself


def is_wrapped(model: torch.nn.Module) -> bool:
    """Returns whether the model is wrapped by a training executor."""
    return isinstance(model, _WrappedModel)


def plain_copy(model: torch.nn.Module) -> torch.nn.Module:
    """Returns a shallow copy of the original class, with the same parameters, buffers and submodules."""
    original = _original_class(model)
    copied = object.__new__(original)  # the class may make more than objects: torch.fx makes classes
    vars(copied).update({key: value for key, value in vars(model).items() if key != _OWNER})
    return copied


def unwrapped_view(model: torch.nn.Module) -> torch.nn.Module:
    """Returns a wrapped model under its original class, with the attributes of the model itself; others as they are."""
    if not is_wrapped(model):
        return model
    view = plain_copy(model)
    view.__dict__ = vars(model)
    return view


def shallow_copy(model: torch.nn.Module) -> torch.nn.Module:
    """Returns a `plain_copy`, which is wrapped if the model is: it still gets the weights that are trained."""
    copied = plain_copy(model)
    if is_wrapped(model):
        vars(copied)[_OWNER] = vars(model)[_OWNER]
        copied.__class__ = type(model)
    return copied


def wrap(model: torch.nn.Module, executor: Any) -> None:
    """Replaces the classes of a model, its parameters and its buffers.

    Raises:
        RuntimeError: if the model is already wrapped.
        Error: for a buffer of a class other than torch.Tensor.
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
    """Copies the current weights to the host and unwraps a model until `wrap_again`. No effect on other models."""
    if is_wrapped(model):
        executor = vars(model)[_OWNER]
        executor.copyWeightsToHostIfNeeded()
        unwrap(model, executor)
        _set_aside[model] = weakref.ref(executor)


def wrap_again(model: torch.nn.Module) -> None:
    """Reverts `set_aside`. No effect on a model that is wrapped, was not set aside, or whose executor is destroyed."""
    executor = _set_aside.pop(model, lambda: None)()
    if executor is not None and not is_wrapped(model):
        wrap(model, executor)


def unwrap(model: torch.nn.Module, executor: Any) -> None:
    """Restores the original class of a model, and those of its tensors unless another executor has them too."""
    if vars(model).get(_OWNER) is not executor:  # set aside, and possibly wrapped by another executor
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
    """A parameter as an attribute of an executor, with the additional method `replicaGrouping`."""

    def __init__(self, executor: Any, name: str, parameter: torch.nn.Parameter) -> None:
        vars(self).update(_executor=executor, _name=name, _parameter=parameter)

    def replicaGrouping(
        self, comm_group_type: CommGroupType, shards: int, variable_retrieval_mode: VariableRetrievalMode
    ) -> None:
        """Sets the groups of replicas that have values of their own. The parameter has one row for each group.

        Args:
            comm_group_type: how replicas are grouped.
            shards: the number of replicas in a group; unused for All and NoGrouping.
            variable_retrieval_mode: whether to copy a row for each group or for each replica to the host.

        Raises:
            AssertionError: for arguments of other types.
            Error: if the model is already compiled.
        """
        grouping: ReplicaGrouping = parse_grouping(comm_group_type, shards, variable_retrieval_mode)
        self._executor._group_replicas(self._name, grouping)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        return func(*_bare(args), **_bare(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parameter, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._parameter, name, value)

    def __getitem__(self, index: Any) -> Any:
        return self._parameter[index]

    def __len__(self) -> int:
        return len(self._parameter)

    def __float__(self) -> float:
        return float(self._parameter)

    def __repr__(self) -> str:
        return repr(self._parameter)

    __hash__ = object.__hash__


def _forward_operator(name: str) -> Callable[..., Any]:
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


def _bare(value: Any) -> Any:
    """Replaces proxies in `value` by their parameters."""
    if isinstance(value, ParameterProxy):
        return value._parameter
    if isinstance(value, (list, tuple)):
        return type(value)(map(_bare, value))
    return {key: _bare(item) for key, item in value.items()} if type(value) is dict else value


def _original_class(model: torch.nn.Module) -> Type[torch.nn.Module]:
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
