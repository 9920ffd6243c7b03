# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The hyper-parameters of a device by name, as in `ipu_param` of an optimizer's state dict.

Every weight has a float32 scalar "<scalar>___specific___<weight>" for each variable hyper-parameter; constant ones are
part of the program. SGD has the factors of its update instead, as PopART defines them, for one micro-batch and replica:

    without momentum:  w <- weightDecayScaleFactor0 * w - scaledLearningRate0 * g
    with momentum:     v <- scaledMomentum2 * v + dampeningScaleFactor2 * g + (1 - dampening) * sgdWeightDecay * w
                       w <- w - scaledLearningRate2 * v

With use_combined_accum they end in 1 and include the velocity scaling. PopART's separate scalars for Nesterov momentum
and for the loss scale in the gradients of other rules do not exist here: they follow from these. Weights of a group may
be given different values here, and any, such as negative decay rates.
"""

from typing import Any, Callable, Dict, Mapping, Sequence, Tuple

import torch

from .algorithms import state_tensors
from .latch import Attribute, Latched

LOSS_SCALING = "lossScaling_FLOAT"
_SPECIFIC = "___specific___"
_ADAM_NAMES = {
    "lr": "learningRate",
    "weight_decay": "weightDecay",
    "beta1": "adamBeta1",
    "beta2": "adamBeta2",
    "eps": "adamEps",
    "max_weight_norm": "maxWeightNorm",
}
_RMSPROP_NAMES = {
    "lr": "learningRate",
    "weight_decay": "weightDecay",
    "momentum": "adaptiveMomentum",
    "alpha": "adaptiveAlpha",
    "eps": "adaptiveEps",
}

Values = Dict[str, Any]  # of the hyper-parameters of a weight, named as in parameter groups
Scalars = Dict[str, float]  # on the device, by the first part of their names


def parameter_tensors(
    latched: Latched, weights: Sequence[Sequence[str]], own: Mapping[str, Values]
) -> Dict[str, torch.Tensor]:
    """Returns `ipu_param`.

    Args:
        latched: the latched optimizer.
        weights: the names of the weights of each of `latched.all_groups`.
        own: the values of weights that do not have those of their group.
    """
    entries = {} if latched.shared["loss_scaling"].constant else {LOSS_SCALING: latched.loss_scaling}
    for group, names in zip(latched.all_groups, weights):
        for name in names:
            scalars = _variable_scalars(latched, group, own.get(name, _values(group)))
            entries.update({scalar + _SPECIFIC + name: value for scalar, value in scalars.items()})
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in entries.items()}


def loaded_values(
    latched: Latched, weights: Sequence[Sequence[str]], own: Mapping[str, Values], tensors: Mapping[str, torch.Tensor]
) -> Tuple[Latched, Dict[str, Values]]:
    """Returns `latched` with the loss scaling of `ipu_param`, and the values of weights that have their own.

    A scalar that is missing, or equals the present one in float32 precision, keeps its value.
    """
    shared = latched.shared["loss_scaling"]
    scaling = latched.loss_scaling
    if not shared.constant:
        scaling = _stored(tensors, LOSS_SCALING, scaling)
    loaded: Dict[str, Values] = {}
    for group, names in zip(latched.all_groups, weights):
        for name in names:
            present = own.get(name, _values(group))
            scalars = _variable_scalars(latched, group, present)
            stored = {scalar: _stored(tensors, scalar + _SPECIFIC + name, value) for scalar, value in scalars.items()}
            if stored != scalars or scaling != latched.loss_scaling:
                present = _with_scalars(latched, present, stored, scaling)
            if present != _values(group):
                loaded[name] = present
    return latched.with_loss_scaling(scaling), loaded


def _values(group: Mapping[str, Attribute]) -> Values:
    return {name: attribute.value for name, attribute in group.items()}


def _variable_scalars(latched: Latched, group: Mapping[str, Attribute], values: Values) -> Scalars:
    if latched.algorithm == "SGD":
        return _sgd_scalars(latched, group, values)
    variable = {name for name, attribute in group.items() if not attribute.constant}
    plain = dict(values)
    if "betas" in plain:
        plain["beta1"], plain["beta2"] = plain["betas"]
        variable |= {"beta1", "beta2"} if "betas" in variable else set()
    return {scalar: plain[name] for name, scalar in _names(latched).items() if name in plain and name in variable}


def _with_scalars(latched: Latched, values: Values, scalars: Scalars, loss_scaling: float) -> Values:
    """Returns the values of a weight that give the scalars."""
    if latched.algorithm == "SGD":
        return {**values, **_SGD_VALUES[_sgd_kind(latched)](scalars, values, loss_scaling)}
    names = _names(latched)
    plain: Values = {name: scalars[scalar] for name, scalar in names.items() if scalar in scalars}
    if "beta1" in plain:
        plain["betas"] = (plain.pop("beta1"), plain.pop("beta2"))
    return {**values, **plain}


def _names(latched: Latched) -> Dict[str, str]:
    return _RMSPROP_NAMES if latched.algorithm == "RMSprop" else _ADAM_NAMES


# SGD


def _sgd_kind(latched: Latched) -> int:
    """Returns the number at the end of the names: 0 without momentum, 1 with combined accumulators, otherwise 2."""
    if not state_tensors(latched):
        return 0
    return 1 if latched.structure["use_combined_accum"] else 2


def _sgd_scalars(latched: Latched, group: Mapping[str, Attribute], values: Values) -> Scalars:
    rate, decay, fresh = values["lr"], values["weight_decay"], 1 - values["dampening"]
    velocity, scaling = values.get("velocity_scaling", 1.0), latched.loss_scaling
    kind = _sgd_kind(latched)
    decay_scalar = (
        ("weightDecayScaleFactor0", 1 - rate * fresh * decay, ("lr", "dampening", "weight_decay")),
        ("scaledWeightDecay1", fresh * decay * velocity, ("dampening", "weight_decay", "velocity_scaling")),
        ("sgdWeightDecay", decay, ("weight_decay",)),
    )[kind]
    scalars: Sequence[Tuple[str, float, Sequence[str]]]
    if kind == 0:
        scalars = [decay_scalar, ("scaledLearningRate0", rate * fresh / scaling, ("lr", "dampening", "loss_scaling"))]
    else:
        gradient = ("dampening", "velocity_scaling", "loss_scaling")
        scalars = [
            decay_scalar,
            (f"scaledMomentum{kind}", values["momentum"], ("momentum",)),
            (f"dampeningScaleFactor{kind}", fresh * velocity / scaling, gradient),
            (f"scaledLearningRate{kind}", rate / velocity, ("lr", "velocity_scaling")),
        ]
    attributes = {**group, **latched.shared}
    return {
        name: value
        for name, value, parts in scalars
        if any(part in attributes and not attributes[part].constant for part in parts)
    }


def _plain_values(scalars: Scalars, values: Values, loss_scaling: float) -> Values:
    fresh = 1 - values["dampening"]
    rate = values["lr"] * fresh
    if "scaledLearningRate0" in scalars:
        rate = scalars["scaledLearningRate0"] * loss_scaling
    decay = values["weight_decay"]
    if "weightDecayScaleFactor0" in scalars and rate:
        decay = (1 - scalars["weightDecayScaleFactor0"]) / rate
    return {"lr": rate, "dampening": 0.0, "weight_decay": decay}


def _combined_values(scalars: Scalars, values: Values, loss_scaling: float) -> Values:
    found = _momentum_values(1, scalars, values, loss_scaling)
    fresh = (1 - found["dampening"]) * values["velocity_scaling"]
    if "scaledWeightDecay1" in scalars and fresh:
        found["weight_decay"] = scalars["scaledWeightDecay1"] / fresh
    return found


def _separate_values(scalars: Scalars, values: Values, loss_scaling: float) -> Values:
    found = _momentum_values(2, scalars, values, loss_scaling)
    return {**found, "weight_decay": scalars.get("sgdWeightDecay", values["weight_decay"])}


def _momentum_values(kind: int, scalars: Scalars, values: Values, loss_scaling: float) -> Values:
    velocity = values.get("velocity_scaling", 1.0)
    found = {"lr": values["lr"], "momentum": scalars.get(f"scaledMomentum{kind}", values["momentum"])}
    found["dampening"] = values["dampening"]
    if f"dampeningScaleFactor{kind}" in scalars:
        found["dampening"] = 1 - scalars[f"dampeningScaleFactor{kind}"] * loss_scaling / velocity
    if f"scaledLearningRate{kind}" in scalars:
        found["lr"] = scalars[f"scaledLearningRate{kind}"] * velocity
    return found


_SGD_VALUES: Tuple[Callable[[Scalars, Values, float], Values], ...] = (
    _plain_values,
    _combined_values,
    _separate_values,
)


def _stored(tensors: Mapping[str, torch.Tensor], name: str, present: float) -> float:
    if name not in tensors:
        return present
    stored = float(tensors[name])
    return present if stored == torch.tensor(present, dtype=torch.float32).item() else stored
