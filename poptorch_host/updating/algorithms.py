# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The update rules that a device has, as torch optimizers on float32 tensors.

torch's own where it has the rule, in its fused form where it has one for the device. Nothing of the user's optimizer
is used but the values that were latched.
"""

import inspect
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import torch

from .. import optim
from .latch import Latched


@dataclass(frozen=True)
class StateTensor:
    """A state that the rule keeps for every weight.

    Attributes:
        key: its name in torch's optimizers.
        prefix: its name on the device, in front of the weight's.
        dtype: the type it is kept in between updates; None: the weight's own.
        initial: the value it starts from.
    """

    key: str
    prefix: str
    dtype: Optional[torch.dtype]
    initial: float = 0.0


class FusedAdam(torch.optim.Optimizer):
    """Adam, or AdamW, by torch's fused kernel and nothing else.

    torch.optim takes several times as long to reach the kernel as the kernel takes for a small model. Weights are
    float32, on one device; states are made by the caller: `step`, `exp_avg` and `exp_avg_sq`.

    Attributes:
        grad_scale: a tensor that the gradients are divided by as they are read; None: by nothing.
    """

    def __init__(self, groups: List[Dict[str, Any]], decoupled: bool) -> None:
        super().__init__(groups, {"fused": True})
        self._kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
        self.grad_scale: Optional[torch.Tensor] = None

    def step(self) -> None:
        """Updates every parameter that has a gradient. To be called without gradient mode."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            states = [self.state[parameter] for parameter in parameters]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            self._kernel(
                parameters,
                [parameter.grad for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=self.grad_scale,
                found_inf=None,
            )


class TensorFlowRMSprop(torch.optim.Optimizer):
    """RMSprop by TensorFlow's rule: the average starts at ones, `eps` is inside the root, momentum holds the rate.

    States are made by the caller: `square_avg`, `grad_avg` when centred, `momentum_buffer` with momentum.
    """

    def __init__(self, groups: List[Dict[str, Any]]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self) -> None:
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step_group(group, parameters)

    def _step_group(self, group: Dict[str, Any], parameters: List[torch.Tensor]) -> None:
        alpha, states = group["alpha"], [self.state[parameter] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        squares = [state["square_avg"] for state in states]
        torch._foreach_mul_(squares, alpha)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - alpha)
        variances = squares
        if group["centered"]:
            means = [state["grad_avg"] for state in states]
            torch._foreach_mul_(means, alpha)
            torch._foreach_add_(means, gradients, alpha=1 - alpha)
            variances = torch._foreach_addcmul(squares, means, means, value=-1.0)
        deviations = torch._foreach_add(variances, group["eps"])
        torch._foreach_sqrt_(deviations)
        if group["momentum"] > 0:
            buffers = [state["momentum_buffer"] for state in states]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_addcdiv_(buffers, gradients, deviations, value=group["lr"])
            torch._foreach_sub_(parameters, buffers)
        else:
            torch._foreach_addcdiv_(parameters, gradients, deviations, value=-group["lr"])


def state_tensors(latched: Latched) -> List[StateTensor]:
    """The states of a latched optimizer, beside the count of its steps."""
    structure, groups = latched.structure, latched.groups
    may_have_momentum = any(
        group["momentum"].value != 0 or not group["momentum"].constant for group in groups if "momentum" in group
    )
    if latched.algorithm == "SGD":
        velocity = StateTensor("momentum_buffer", "Accl1___", structure["velocity_accum_type"])
        return [velocity] if may_have_momentum else []
    first, second = (structure[f"{order}_order_momentum_accum_type"] for order in ("first", "second"))
    if latched.algorithm != "RMSprop":
        return [StateTensor("exp_avg", "Accl1___", first), StateTensor("exp_avg_sq", "Accl2___", second)]
    initial = 1.0 if structure["use_tf_variant"] else 0.0
    tensors = [StateTensor("square_avg", "Accl1___", second, initial)]
    if any(group["centered"].value for group in groups):
        tensors.append(StateTensor("grad_avg", "Accl2___", first))
    if may_have_momentum:
        tensors.append(StateTensor("momentum_buffer", "Accl3___", first))
    return tensors


def counts_steps(latched: Latched) -> bool:
    """Whether the rule depends on how many updates a weight has had."""
    return latched.algorithm in ("Adam", "AdamW", "LAMB")


def build(latched: Latched, groups: Sequence[List[torch.Tensor]], device: torch.device) -> torch.optim.Optimizer:
    """The rule as a torch optimizer over `groups` of float32 tensors on `device`."""
    settings = [{"params": parameters, **values} for parameters, values in zip(groups, _group_settings(latched))]
    if latched.algorithm == "LAMB":
        rule = optim.LAMB(settings, bias_correction=latched.structure["bias_correction"])
        rule.max_weight_norm = latched.shared["max_weight_norm"].value
        return rule
    if latched.algorithm == "RMSprop" and latched.structure["use_tf_variant"]:
        return TensorFlowRMSprop(settings)
    rule = getattr(torch.optim, latched.algorithm)
    has_fused = _has_fused(rule, device)
    if has_fused and latched.algorithm in ("Adam", "AdamW"):
        return FusedAdam(settings, decoupled=latched.algorithm == "AdamW")
    # torch takes no optimizer without a learning rate of its own, though every group has one.
    return rule(settings, lr=0.0, **({"fused": True} if has_fused else {}))


def set_values(rule: torch.optim.Optimizer, latched: Latched) -> None:
    """Gives a built optimizer the present values of a latched one."""
    for group, values in zip(rule.param_groups, _group_settings(latched)):
        group.update(values)
    if latched.algorithm == "LAMB":
        rule.max_weight_norm = latched.shared["max_weight_norm"].value


def new_step_count(rule: torch.optim.Optimizer, device: torch.device) -> torch.Tensor:
    """A count of updates at 0, where the rule wants it: fused kernels read it on the device."""
    return torch.zeros((), device=device if rule.defaults.get("fused") else "cpu")


def _group_settings(latched: Latched) -> List[Dict[str, Any]]:
    settings = latched.group_values()
    if latched.algorithm == "SGD":
        for values in settings:
            values.pop("velocity_scaling", None)
            # A device dampens the gradient with or without momentum; torch does so only with.
            if values["momentum"] == 0:
                values["lr"] *= 1 - values["dampening"]
    return settings


def _has_fused(rule: type, device: torch.device) -> bool:
    if "fused" not in inspect.signature(rule.__init__).parameters:
        return False
    try:
        rule([torch.zeros(1, device=device, requires_grad=True)], lr=0.0, fused=True)
    except RuntimeError:  # torch's way to say that this device has no fused form of the rule
        return False
    return True
