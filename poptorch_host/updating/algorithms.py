# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The update rules of a device as torch optimizers on float32 tensors.

These are torch's own optimizers where they have the rule, fused where possible. Of the user's optimizer, only the
latched values are used.
"""

import inspect
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch

from .. import optim
from .latch import Latched


@dataclass(frozen=True)
class StateTensor:
    """A state tensor that a rule has for every weight.

    Attributes:
        key: the name in torch's optimizers.
        prefix: the prefix of the name on the device, in front of the weight's name.
        dtype: the dtype between updates; None for that of the weight.
        initial: the initial value.
    """

    key: str
    prefix: str
    dtype: Optional[torch.dtype]
    initial: float = 0.0


class FusedAdam(torch.optim.Optimizer):
    """Adam or AdamW that calls torch's fused kernel directly.

    For a small model, the overhead of torch.optim is several times the time of the kernel. Weights must be float32 and
    on one device. The caller creates the states `step`, `exp_avg` and `exp_avg_sq`.

    Attributes:
        grad_scale: a tensor that gradients are divided by; None for no division.
        found_inf: a tensor that is 1 if the update is to be left out, else 0; None for 0.
    """

    def __init__(self, groups: List[Dict[str, Any]], decoupled: bool) -> None:
        super().__init__(groups, {"fused": True})
        self._kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
        self.grad_scale: Optional[torch.Tensor] = None
        self.found_inf: Optional[torch.Tensor] = None

    def step(self) -> None:  # type: ignore[override]  # the engine has no closure
        """Updates all parameters that have a gradient. Call under torch.no_grad()."""
        counted = None if self.found_inf is None else 1 - self.found_inf
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            states = [self.state[parameter] for parameter in parameters]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1 if counted is None else [counted] * len(steps))
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
                found_inf=self.found_inf,
            )


class _GroupOptimizer(torch.optim.Optimizer):
    """An optimizer that updates the parameters of a group together."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # the engine has no closure
        """Updates all parameters that have a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step_group(group, parameters)

    def _step_group(self, group: Dict[str, Any], parameters: List[torch.Tensor]) -> None:
        """Updates parameters of one group, all of which have a gradient."""
        raise NotImplementedError


class Adam(_GroupOptimizer):
    """Adam or AdamW where torch has no fused kernel. In contrast to torch's, hyper-parameters may be any numbers.

    The caller creates the states `step`, `exp_avg` and `exp_avg_sq`.
    """

    def __init__(self, groups: List[Dict[str, Any]], decoupled: bool) -> None:
        super().__init__(groups, {})
        self._decoupled = decoupled

    def _step_group(self, group: Dict[str, Any], parameters: List[torch.Tensor]) -> None:
        rate, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if decay and self._decoupled:
            torch._foreach_mul_(parameters, 1 - rate * decay)
        elif decay:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        states = [self.state[parameter] for parameter in parameters]
        steps, firsts, seconds = ([state[key] for state in states] for key in ("step", "exp_avg", "exp_avg_sq"))
        torch._foreach_add_(steps, 1)
        torch._foreach_mul_(firsts, beta1)
        torch._foreach_add_(firsts, gradients, alpha=1 - beta1)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, gradients, gradients, value=1 - beta2)
        first, second = optim.bias_corrections(steps, group["betas"])
        denominators = torch._foreach_sqrt(seconds)
        torch._foreach_div_(denominators, second.sqrt().tolist())
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_addcdiv_(parameters, firsts, denominators, (-rate / first).tolist())


class RMSprop(_GroupOptimizer):
    """RMSprop as on a device: with momentum of any value wherever there is a buffer for it.

    The caller creates the states: `square_avg`, `grad_avg` if centred, and `momentum_buffer` with momentum.

    Args:
        groups: the parameter groups.
        inside_root: TensorFlow's variant: `eps` is inside the square root, and momentum includes the learning rate.
    """

    def __init__(self, groups: List[Dict[str, Any]], inside_root: bool) -> None:
        super().__init__(groups, {})
        self._inside_root = inside_root

    def _step_group(self, group: Dict[str, Any], parameters: List[torch.Tensor]) -> None:
        alpha, states = group["alpha"], [self.state[parameter] for parameter in parameters]
        gradients: Sequence[torch.Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if group["weight_decay"]:
            gradients = torch._foreach_add(list(gradients), parameters, alpha=group["weight_decay"])
        gradients = list(gradients)
        squares = [state["square_avg"] for state in states]
        torch._foreach_mul_(squares, alpha)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - alpha)
        variances: Sequence[torch.Tensor] = squares
        if group["centered"]:
            means = [state["grad_avg"] for state in states]
            torch._foreach_mul_(means, alpha)
            torch._foreach_add_(means, gradients, alpha=1 - alpha)
            variances = torch._foreach_addcmul(squares, means, means, value=-1.0)
        if self._inside_root:
            deviations = torch._foreach_sqrt(torch._foreach_add(list(variances), group["eps"]))
        else:
            deviations = torch._foreach_add(torch._foreach_sqrt(list(variances)), group["eps"])
        if "momentum_buffer" not in states[0]:
            torch._foreach_addcdiv_(parameters, gradients, deviations, value=-group["lr"])
            return
        in_buffer, of_buffer = (group["lr"], 1.0) if self._inside_root else (1.0, group["lr"])
        buffers = [state["momentum_buffer"] for state in states]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_addcdiv_(buffers, gradients, deviations, value=in_buffer)
        torch._foreach_add_(parameters, buffers, alpha=-of_buffer)


def state_tensors(latched: Latched) -> List[StateTensor]:
    """Returns the state tensors of a latched optimizer, except the step counts."""
    structure, groups = latched.structure, latched.all_groups
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
    """Returns whether the rule depends on the number of updates of a weight."""
    return latched.algorithm in ("Adam", "AdamW", "LAMB")


def build(latched: Latched, groups: List[Dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """Creates the rule as a torch optimizer of parameter groups of float32 tensors on `device`."""
    settings = _settings(latched, groups)
    if latched.algorithm == "LAMB":
        return optim.LAMB(settings, bias_correction=latched.structure["bias_correction"])
    if latched.algorithm == "RMSprop":
        return RMSprop(settings, inside_root=latched.structure["use_tf_variant"])
    rule: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, latched.algorithm)
    has_fused = _has_fused(rule, device)
    if latched.algorithm in ("Adam", "AdamW"):
        return (FusedAdam if has_fused else Adam)(settings, decoupled=latched.algorithm == "AdamW")
    # torch needs a default learning rate, although every group has one.
    return rule(settings, lr=0.0, **({"fused": True} if has_fused else {}))


def set_values(rule: torch.optim.Optimizer, latched: Latched, groups: List[Dict[str, Any]]) -> None:
    """Sets the parameter groups of a rule, with all of its parameters."""
    rule.param_groups = [{**rule.defaults, **group} for group in _settings(latched, groups)]


def new_step_count(rule: torch.optim.Optimizer, device: torch.device) -> torch.Tensor:
    """Returns a step count of 0 on the device where the rule reads it: fused kernels read it on the device."""
    return torch.zeros((), device=device if rule.defaults.get("fused") else "cpu")


def _settings(latched: Latched, groups: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Returns the groups with the values that the rule has to be given."""
    if latched.algorithm != "SGD":
        return groups
    settings = [{name: value for name, value in group.items() if name != "velocity_scaling"} for group in groups]
    for values in settings:
        # A device applies dampening also without momentum; torch applies it only with momentum.
        if values["momentum"] == 0:
            values["lr"] *= 1 - values["dampening"]
    return settings


def _has_fused(rule: Callable[..., torch.optim.Optimizer], device: torch.device) -> bool:
    if "fused" not in inspect.signature(rule).parameters:
        return False
    try:
        rule([torch.zeros(1, device=device, requires_grad=True)], lr=0.0, fused=True)
    except RuntimeError:  # torch has no fused kernel for this device
        return False
    return True
