# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The values of the user's optimizer that a device uses. They are checked and copied when the optimizer is set.

A value is compiled into the program (constant) or an input of it (variable). Only variable values can change later.
"""

import functools
import inspect
import logging
import math
import numbers
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Optional, Set, Tuple

import torch

from .. import optim
from .._logging import logger
from ..enums import MeanReductionStrategy
from ..errors import check, createPoptorchError
from ..options import Options

# Entries of schedulers and torch in parameter groups that are not hyper-parameters.
_SCHEDULER_KEYS = {"initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"}
_GROUP_KEYS = {"params", "param_names", "velocity_scaling"} | _SCHEDULER_KEYS
_EXTRA_ATTRIBUTES = {
    "defaults",
    "state",
    "param_groups",
    "loss_scaling",
    "velocity_scaling",
    "accum_type",
    "velocity_accum_type",
    "first_order_momentum_accum_type",
    "second_order_momentum_accum_type",
    "use_combined_accum",
    "max_grad_norm",
    "max_weight_norm",
    "bias_correction",
    "use_tf_variant",
    "variable_attrs",
    "ipu_state_is_dirty",
    "host_state_is_dirty",
}
# Constant for all optimizers of torch, whatever their values.
_TORCH_CONSTANTS = ("alpha", "nesterov", "betas")


@dataclass(frozen=True)
class Algorithm:
    """An update rule: its optimizer classes, and the attributes of its parameter groups."""

    name: str
    classes: Tuple[type, ...]
    attributes: Tuple[str, ...]
    types: Tuple[str, ...]  # attributes that name the type of a state


_MOMENT_TYPES = ("first_order_momentum_accum_type", "second_order_momentum_accum_type")
_ADAM_ATTRIBUTES = ("lr", "betas", "eps", "weight_decay")
# AdamW comes before Adam, from which recent versions of torch derive it.
ALGORITHMS = (
    Algorithm(
        "SGD",
        (optim.SGD, torch.optim.SGD),
        ("lr", "momentum", "dampening", "weight_decay", "nesterov"),
        ("velocity_accum_type",),
    ),
    Algorithm("AdamW", (optim.AdamW, torch.optim.AdamW), _ADAM_ATTRIBUTES, _MOMENT_TYPES),
    Algorithm("Adam", (optim.Adam, torch.optim.Adam), _ADAM_ATTRIBUTES, _MOMENT_TYPES),
    Algorithm(
        "RMSprop",
        (optim.RMSprop, torch.optim.RMSprop),
        ("lr", "alpha", "eps", "weight_decay", "momentum", "centered"),
        _MOMENT_TYPES,
    ),
    Algorithm("LAMB", (optim.LAMB,), (*_ADAM_ATTRIBUTES, "max_weight_norm"), _MOMENT_TYPES),
)


@dataclass(frozen=True)
class Attribute:
    """The value of a hyper-parameter, and whether it is constant."""

    value: Any
    constant: bool


@dataclass(frozen=True)
class Latched:
    """The values of an optimizer on the device.

    Attributes:
        algorithm: the name of the update rule.
        structure: the values that cannot change after compilation: types of states, variants, clipping.
        shared: the attributes of the whole optimizer.
        groups: the attributes of each parameter group.
        defaults: those of weights in no group: the optimizer's defaults.
        members: the parameters of each group in the user's model.
    """

    algorithm: str
    structure: Dict[str, Any]
    shared: Dict[str, Attribute]
    groups: Tuple[Dict[str, Attribute], ...]
    defaults: Dict[str, Attribute]
    members: Tuple[Tuple[torch.Tensor, ...], ...] = field(compare=False)

    @property
    def loss_scaling(self) -> float:
        """The factor of the loss gradient."""
        return float(self.shared["loss_scaling"].value)

    @property
    def all_groups(self) -> Tuple[Dict[str, Attribute], ...]:
        """The attributes of each parameter group, and at the end the defaults."""
        return (*self.groups, self.defaults)

    def group_values(self) -> List[Dict[str, Any]]:
        """Returns the hyper-parameters of `all_groups` by name."""
        return [{name: attribute.value for name, attribute in group.items()} for group in self.all_groups]

    def with_loss_scaling(self, value: float) -> "Latched":
        """Returns a copy with another factor of the loss gradient."""
        return replace(self, shared={**self.shared, "loss_scaling": replace(self.shared["loss_scaling"], value=value)})


class OptimizerLatch:
    """The optimizer of an executor, before and after compilation.

    Args:
        options: the executor's options. Their mean reduction strategy becomes Running with half accumulators.

    Attributes:
        optimizer: the user's optimizer that was set last. Like `latched`, there is none before the first `set`.
        latched: the values that were read from it.
        newer_than_state: whether the values were read after a state was loaded into the optimizer that the device does
            not have yet. They then take precedence over those in that state.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._known_attributes: Optional[Set[str]] = None
        self._known_group_keys: Set[str] = set()
        self._reported: Set[str] = set()
        self.optimizer: torch.optim.Optimizer
        self.latched: Latched
        self.newer_than_state = False

    def set(self, optimizer: torch.optim.Optimizer, compiled: bool = False) -> bool:
        """Copies and checks the values of `optimizer`. Returns whether any of them has changed.

        Args:
            optimizer: the optimizer.
            compiled: whether the model is compiled, so that only variable values may change.

        Raises:
            AssertionError: for an unsupported optimizer class, or a value of the wrong type.
            ValueError: for amsgrad, or accumulators that become half after compilation.
            Error: if a constant, a type, the class, or the parameters of the groups change after compilation.
        """
        latched = read(optimizer, self._automatic_loss_scaling())
        self._choose_reduction(latched, compiled)
        if compiled:
            _check_compatible(self.latched, latched)
        self._report_ineffective(optimizer, latched.algorithm)
        self._report_unexpected(optimizer)
        changed = latched != getattr(self, "latched", None)
        self.optimizer, self.latched = optimizer, latched
        self.newer_than_state = isinstance(optimizer, optim.Optimizer) and optimizer.host_state_is_dirty
        return changed

    def _automatic_loss_scaling(self) -> bool:
        return bool(self._options._Popart.options.get("automaticLossScalingSettings.enabled", False))

    def _choose_reduction(self, latched: Latched, compiled: bool) -> None:
        """Sets the strategy Running for half accumulators, as PopTorch does, since a sum could overflow."""
        training, running = self._options.Training, MeanReductionStrategy.Running
        strategy = training.meanAccumulationAndReplicationReductionStrategy
        if latched.structure["accum_type"] != torch.float16 or strategy == running:
            return
        if compiled:
            raise ValueError(
                "accum_type torch.float16 needs the mean reduction strategy Running, but the model is "
                f"already compiled with {strategy.name}: set the optimizer before compilation"
            )
        # The options are frozen for the user, not for the runtime.
        training._values["meanAccumulationAndReplicationReductionStrategy"] = running

    def _report_ineffective(self, optimizer: torch.optim.Optimizer, algorithm: str) -> None:
        """Warns, once each, of Python code and settings of the optimizer that have no effect on a device."""
        name, lines = type(optimizer).__name__, []
        if not any(type(optimizer) in known.classes for known in ALGORITHMS):
            lines.append(
                f"{name} derives from {algorithm}: the device runs the update rule of {algorithm}, not its Python code"
            )
        if any(group.get("maximize") for group in optimizer.param_groups):
            lines.append("maximize=True has no effect on a device: negate the loss instead")
        for line in lines:
            if line not in self._reported:
                logger.warning("%s", line)
        self._reported.update(lines)

    def _report_unexpected(self, optimizer: torch.optim.Optimizer) -> None:
        """Warns, once each, of unknown attributes that the first optimizer did not have."""
        attributes, group_keys = _unknown_attributes(optimizer), _unknown_group_keys(optimizer)
        if self._known_attributes is None:
            self._known_attributes = attributes
            self._known_group_keys = set().union(*group_keys)
            return
        level = logging.DEBUG if self._options._relax_optimizer_checks else logging.WARNING
        name = type(optimizer).__name__
        if attributes - self._known_attributes:
            logger.log(
                level,
                "Ignoring unexpected optimizer attribute in %s optimizer: %s",
                name,
                sorted(attributes - self._known_attributes),
            )
        for index, keys in enumerate(group_keys):
            if keys - self._known_group_keys:
                logger.log(
                    level,
                    "Ignoring unexpected group %d attribute in %s optimizer: %s",
                    index,
                    name,
                    sorted(keys - self._known_group_keys),
                )
        self._known_attributes.update(attributes)
        self._known_group_keys.update(*group_keys)


def read(optimizer: torch.optim.Optimizer, automatic_loss_scaling: bool = False) -> Latched:
    """Returns the checked values of an optimizer. Raises the exceptions of `OptimizerLatch.set`."""
    algorithm = _algorithm_of(optimizer)
    groups = tuple(_read_group(optimizer, group, algorithm) for group in optimizer.param_groups)
    check(
        len({group["centered"].value for group in groups if "centered" in group}) <= 1,
        "All parameter groups of RMSprop must have the same value of centered",
    )
    shared = {"loss_scaling": _shared(optimizer, "loss_scaling", 1.0)}
    if automatic_loss_scaling:
        shared["loss_scaling"] = Attribute(shared["loss_scaling"].value, constant=False)
    check(shared["loss_scaling"].value > 0, f"loss_scaling must be positive, not {shared['loss_scaling'].value}")
    members = tuple(tuple(group["params"]) for group in optimizer.param_groups)
    defaults = _read_group(optimizer, optimizer.defaults, algorithm)
    return Latched(algorithm.name, _read_structure(optimizer, algorithm), shared, groups, defaults, members)


def _algorithm_of(optimizer: Any) -> Algorithm:
    for algorithm in ALGORITHMS:
        if isinstance(optimizer, algorithm.classes):
            return algorithm
    supported = ", ".join(algorithm.name for algorithm in ALGORITHMS)
    raise AssertionError(
        f"Unsupported optimizer type {type(optimizer).__module__}.{type(optimizer).__qualname__}: "
        f"use {supported} of poptorch.optim, or those of torch.optim"
    )


def _read_group(optimizer: Any, group: Dict[str, Any], algorithm: Algorithm) -> Dict[str, Attribute]:
    if group.get("amsgrad"):
        raise ValueError("Only non-amsgrad Adam/AdamW optimizers are supported: use amsgrad=False")
    missing = [name for name in algorithm.attributes if name not in group]
    check(not missing, f"Mandatory attribute {', '.join(missing)} not found in optimizer group")
    values = {name: _value(name, group[name]) for name in algorithm.attributes}
    attributes = {
        name: Attribute(value, _is_constant(optimizer, algorithm, name, value)) for name, value in values.items()
    }
    if algorithm.name == "SGD" and getattr(optimizer, "use_combined_accum", False):
        scaling = _value("velocity_scaling", group.get("velocity_scaling", 1.0))
        constant = optimizer.variable_attrs.isConstant("velocity_scaling")
        attributes["velocity_scaling"] = Attribute(scaling, constant)
    return attributes


def _value(name: str, value: Any) -> Any:
    if name == "betas":
        check(isinstance(value, tuple) and len(value) == 2, f"betas must be a tuple of two numbers, not {value!r}")
        return tuple(_value("beta", beta) for beta in value)
    check(isinstance(value, numbers.Real), f"Expected a number for the optimizer attribute {name}, got {value!r}")
    return value if isinstance(value, (int, float)) else float(value)  # of NumPy


def _is_constant(optimizer: Any, algorithm: Algorithm, name: str, value: Any) -> bool:
    """PopTorch's optimizers declare it. In torch's, attributes with their default value are constant."""
    if name == "centered":
        return True
    if isinstance(optimizer, optim.Optimizer):
        return optimizer.variable_attrs.isConstant(name)
    return name != "lr" and (name in _TORCH_CONSTANTS or value == _torch_default(algorithm.classes[-1], name))


@functools.lru_cache(maxsize=None)
def _torch_default(torch_class: type, name: str) -> Any:
    return inspect.signature(torch_class).parameters[name].default


def _shared(optimizer: Any, name: str, default: float) -> Attribute:
    value = _value(name, getattr(optimizer, name, default))
    if isinstance(optimizer, optim.Optimizer):
        return Attribute(value, optimizer.variable_attrs.isConstant(name))
    return Attribute(value, value == default)


def _read_structure(optimizer: Any, algorithm: Algorithm) -> Dict[str, Any]:
    """What is part of the program: for attributes that torch's optimizers lack, PopTorch's defaults."""
    structure = {name: getattr(optimizer, name, torch.float32) for name in ("accum_type",) + algorithm.types}
    structure["max_grad_norm"] = _value("max_grad_norm", getattr(optimizer, "max_grad_norm", math.inf))
    if algorithm.name == "SGD":
        structure["use_combined_accum"] = getattr(optimizer, "use_combined_accum", False)
        if structure["use_combined_accum"]:  # one tensor, of the weight's own type
            structure.update(accum_type=None, velocity_accum_type=None)
    elif algorithm.name == "RMSprop":
        structure["use_tf_variant"] = getattr(optimizer, "use_tf_variant", False)
    elif algorithm.name == "LAMB":
        structure["bias_correction"] = optimizer.bias_correction
    return structure


def _check_compatible(old: Latched, new: Latched) -> None:
    """Raises Error for a change that a compiled program cannot adopt."""
    if new.algorithm != old.algorithm:
        raise _compiled_in("optimizer class", old.algorithm, new.algorithm)
    for name, value in new.structure.items():
        if value != old.structure[name]:
            raise _compiled_in(name, old.structure[name], value)
    if [list(map(id, group)) for group in new.members] != [list(map(id, group)) for group in old.members]:
        raise createPoptorchError("The number of parameter groups and their parameters cannot change after compilation")
    for name, attribute in new.shared.items():
        _check_attribute(name, old.shared[name], attribute)
    titles = [*(f"group {index}" for index in range(len(new.groups))), "the defaults"]
    for title, before, after in zip(titles, old.all_groups, new.all_groups):
        for name, attribute in after.items():
            _check_attribute(f"{name} of {title}", before[name], attribute)


def _check_attribute(name: str, old: Attribute, new: Attribute) -> None:
    if old.constant != new.constant:
        kinds = ["constant" if attribute.constant else "variable" for attribute in (old, new)]
        raise createPoptorchError(f"Optimizer attribute {name} was compiled as {kinds[0]} and cannot become {kinds[1]}")
    if old.constant and old.value != new.value:
        raise _compiled_in(f"attribute {name}", old.value, new.value)


def _compiled_in(what: str, old: Any, new: Any) -> Exception:
    return createPoptorchError(
        f"The optimizer's constant {what} cannot change from {old} to {new} after compilation: "
        "make it variable before compilation (pass it to the constructor of a poptorch.optim optimizer, or "
        "call variable_attrs.markAsVariable), or wrap the model again"
    )


def _unknown_attributes(optimizer: Any) -> Set[str]:
    own = {name for name in vars(optimizer) if not name.startswith("_") and not hasattr(type(optimizer), name)}
    return own - _EXTRA_ATTRIBUTES


def _unknown_group_keys(optimizer: Any) -> List[Set[str]]:
    known = _GROUP_KEYS | set(optimizer.defaults)
    return [set(group) - known for group in optimizer.param_groups]
