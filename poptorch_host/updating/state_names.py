# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The hyper-parameters of a device by name, as in `ipu_param` of an optimizer's state dict.

Every weight has entries "<attribute>___specific___<weight>", each a float32 scalar. For SGD, these include two products
of attributes that its update uses.
"""

from typing import Any, Dict, Mapping, Sequence

import torch

from .latch import Latched

LOSS_SCALING = "lossScaling_FLOAT"
_SPECIFIC = "___specific___"
_NAMES = {
    "lr": "learningRate",
    "weight_decay": "weightDecay",
    "momentum": "momentum",
    "dampening": "dampening",
    "velocity_scaling": "velocityScaling",
    "eps": "eps",
    "alpha": "alpha",
    "beta1": "beta1",
    "beta2": "beta2",
    "max_weight_norm": "maxWeightNorm",
}


def parameter_tensors(latched: Latched, weights: Sequence[Sequence[str]]) -> Dict[str, torch.Tensor]:
    """Returns `ipu_param` for the names of the weights in each group."""
    entries = {LOSS_SCALING: latched.loss_scaling}
    for values, names in zip(latched.group_values(), weights):
        scalars = _scalars(latched, values)
        entries.update({attribute + _SPECIFIC + name: value for name in names for attribute, value in scalars.items()})
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in entries.items()}


def with_parameter_tensors(
    latched: Latched, weights: Sequence[Sequence[str]], tensors: Mapping[str, torch.Tensor]
) -> Latched:
    """Returns a copy of `latched` with the variable values of `ipu_param`, for a group those of its first weight.

    A value that equals the current one in float32 precision is not changed.
    """
    groups = []
    for values, names in zip(latched.group_values(), weights):
        scalars = _plain_scalars(latched, values)
        stored: Dict[str, Any] = {
            attribute: _stored(tensors, title + _SPECIFIC + names[0], scalars[attribute])
            for attribute, title in _NAMES.items()
            if names and attribute in scalars
        }
        if "beta1" in stored:
            stored["betas"] = (stored.pop("beta1"), stored.pop("beta2"))
        groups.append(stored)
    shared: Dict[str, Any] = {"loss_scaling": _stored(tensors, LOSS_SCALING, latched.loss_scaling)}
    return latched.with_values(shared, groups)


def _scalars(latched: Latched, values: Dict[str, Any]) -> Dict[str, float]:
    plain = _plain_scalars(latched, values)
    scalars = {_NAMES[attribute]: value for attribute, value in plain.items()}
    if latched.algorithm == "SGD":
        rate = plain["lr"] * (1 - plain["dampening"])
        scalars["scaledLearningRate0"] = rate / latched.loss_scaling
        scalars["weightDecayScaleFactor0"] = 1 - rate * plain["weight_decay"]
    return scalars


def _plain_scalars(latched: Latched, values: Dict[str, Any]) -> Dict[str, float]:
    """Returns the scalar hyper-parameters of a group."""
    scalars = {name: value for name, value in values.items() if name in _NAMES}
    if "betas" in values:
        scalars["beta1"], scalars["beta2"] = values["betas"]
    return scalars


def _stored(tensors: Mapping[str, torch.Tensor], name: str, present: float) -> float:
    if name not in tensors:
        return present
    stored = float(tensors[name])
    return present if stored == torch.tensor(present, dtype=torch.float32).item() else stored
