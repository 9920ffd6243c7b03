# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""PopTorch's optimizers: torch's optimizers with additional arguments for devices.

Arguments default to None. An attribute that is not given has torch's default value and is constant: it is compiled into
the program. A given attribute is variable: `setOptimizer` can change it after compilation. Weights are updated on the
device; `step()` of these classes is for running the same program as plain PyTorch.
"""

import math
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import torch

from ._logging import logger
from ._optim_impl import Optimizer, VariableAttributes, default_to, given_arguments

__all__ = ["LAMB", "SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "VariableAttributes"]


_MOMENT_TYPES = ("first_order_momentum_accum_type", "second_order_momentum_accum_type")


class SGD(Optimizer, torch.optim.SGD):
    """Stochastic gradient descent, with or without momentum.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        momentum, dampening, weight_decay, nesterov: as in torch; with dampening, the velocity is initialised to zeros.
        maximize, foreach, differentiable: have no effect on a device.
        loss_scaling: factor of the loss gradient, removed from the gradients before the update (default: 1).
        velocity_scaling: factor of the combined tensor against underflow (default: 1); needs `use_combined_accum`.
        use_combined_accum: use one tensor instead of two for accumulated gradient and velocity.
        accum_type: type of the gradient accumulators, torch.float16 or torch.float32 (default).
        velocity_accum_type: type of the velocities, likewise. Both types are ignored with `use_combined_accum`.
        max_grad_norm: limit of the global L2 norm of an update's gradients (default: no limit).

    Raises:
        AssertionError: for any other accumulation type.
    """

    _kept = Optimizer._kept + ("use_combined_accum", "velocity_accum_type", "max_grad_norm")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: Optional[float] = None,
        dampening: Optional[float] = None,
        weight_decay: Optional[float] = None,
        nesterov: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        velocity_scaling: Optional[float] = None,
        use_combined_accum: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        velocity_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        Optimizer.__init__(self)
        given = given_arguments(
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
        )
        torch.optim.SGD.__init__(self, params, **given)
        self.use_combined_accum = default_to(use_combined_accum, False)
        self._set_types(loss_scaling, accum_type=accum_type, velocity_accum_type=velocity_accum_type)
        self.max_grad_norm = default_to(max_grad_norm, math.inf)
        self._declare(
            {**given, **given_arguments(loss_scaling=loss_scaling, velocity_scaling=velocity_scaling)},
            ["velocity_scaling"] if self.use_combined_accum else [],
        )
        self._scale_velocity(velocity_scaling)

    def _scale_velocity(self, velocity_scaling: Optional[float]) -> None:
        if not self.use_combined_accum:
            if velocity_scaling is not None:
                logger.warning("velocity_scaling=%s is ignored: it needs use_combined_accum=True", velocity_scaling)
            return
        self.defaults["velocity_scaling"] = default_to(velocity_scaling, 1.0)
        for group in self.param_groups:
            group.setdefault("velocity_scaling", self.defaults["velocity_scaling"])


class Adam(Optimizer, torch.optim.Adam):
    """Adam, with weight decay as an L2 penalty.

    Args:
        params: parameters or parameter groups.
        lr, betas, eps, weight_decay: as in torch.
        amsgrad: not supported; an error when the optimizer is given to a model.
        foreach, maximize, capturable, differentiable, fused: have no effect on a device.
        loss_scaling: factor of the loss gradient, removed from the gradients before the update (default: 1).
        accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type: types of gradient accumulators,
            first and second moments; torch.float16 or torch.float32 (default).
        max_grad_norm: limit of the global L2 norm of an update's gradients (default: no limit).

    Raises:
        AssertionError: for any other accumulation type.
    """

    _kept = Optimizer._kept + _MOMENT_TYPES + ("max_grad_norm",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        amsgrad: Optional[bool] = None,
        foreach: Optional[bool] = None,
        maximize: Optional[bool] = None,
        capturable: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        fused: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        Optimizer.__init__(self)
        given = given_arguments(
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        torch.optim.Adam.__init__(self, params, **given)
        self._keep_betas(betas)
        self._set_types(
            loss_scaling,
            accum_type=accum_type,
            first_order_momentum_accum_type=first_order_momentum_accum_type,
            second_order_momentum_accum_type=second_order_momentum_accum_type,
        )
        self.max_grad_norm = default_to(max_grad_norm, math.inf)
        self._declare({**given, **given_arguments(loss_scaling=loss_scaling)})


class AdamW(Optimizer, torch.optim.AdamW):
    """Adam with decoupled weight decay (AdamW).

    Args:
        params: parameters or parameter groups.
        lr, betas, eps, weight_decay: as in torch.
        amsgrad: not supported; an error when the optimizer is given to a model.
        maximize, foreach, capturable, differentiable, fused: have no effect on a device.
        loss_scaling: factor of the loss gradient, removed from the gradients before the update (default: 1).
        bias_correction: has no effect (default: True): the bias is always corrected, as in PopTorch 3.4.
        accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type: types of gradient accumulators,
            first and second moments; torch.float16 or torch.float32 (default).
        max_grad_norm: limit of the global L2 norm of an update's gradients (default: no limit).

    Raises:
        AssertionError: for any other accumulation type.
    """

    _kept = Optimizer._kept + _MOMENT_TYPES + ("bias_correction", "max_grad_norm")

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        amsgrad: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        capturable: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        fused: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        bias_correction: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        Optimizer.__init__(self)
        given = given_arguments(
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        torch.optim.AdamW.__init__(self, params, **given)
        self._keep_betas(betas)
        self._set_types(
            loss_scaling,
            accum_type=accum_type,
            first_order_momentum_accum_type=first_order_momentum_accum_type,
            second_order_momentum_accum_type=second_order_momentum_accum_type,
        )
        self.bias_correction = default_to(bias_correction, True)
        self.max_grad_norm = default_to(max_grad_norm, math.inf)
        self._declare({**given, **given_arguments(loss_scaling=loss_scaling)})


class RMSprop(Optimizer, torch.optim.RMSprop):
    """RMSprop, optionally centred and with momentum.

    Args:
        params: parameters or parameter groups; `centered` must be the same in all groups.
        lr, alpha, eps, weight_decay, momentum, centered: as in torch.
        foreach, maximize, differentiable: have no effect on a device.
        loss_scaling: factor of the loss gradient, removed from the gradients before the update (default: 1).
        accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type: types of the gradient
            accumulators, of momentum and mean gradient, and of the squared average; torch.float16 or torch.float32
            (default).
        use_tf_variant: use TensorFlow's variant on the device (default: False): the squared average is initialised to
            ones, `eps` is inside the square root, and the momentum includes the learning rate. `step()` on the host is
            always torch's.

    Raises:
        AssertionError: for any other accumulation type.
    """

    _kept = Optimizer._kept + _MOMENT_TYPES + ("use_tf_variant",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        alpha: Optional[float] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        momentum: Optional[float] = None,
        centered: Optional[bool] = None,
        foreach: Optional[bool] = None,
        maximize: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        use_tf_variant: Optional[bool] = None,
    ) -> None:
        Optimizer.__init__(self)
        given = given_arguments(
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            foreach=foreach,
            maximize=maximize,
            differentiable=differentiable,
        )
        torch.optim.RMSprop.__init__(self, params, **given)
        self._set_types(
            loss_scaling,
            accum_type=accum_type,
            first_order_momentum_accum_type=first_order_momentum_accum_type,
            second_order_momentum_accum_type=second_order_momentum_accum_type,
        )
        self.use_tf_variant = default_to(use_tf_variant, False)
        self._declare({**given, **given_arguments(loss_scaling=loss_scaling)})


class LAMB(Optimizer, torch.optim.Optimizer):
    """LAMB (You et al. 2019, "Large Batch Optimization for Deep Learning", algorithm 2).

    The update of each tensor, that of Adam plus weight decay, is scaled by its trust ratio: the norm of the weights
    over the norm of the update, or 1 if either norm is 0.

    Args:
        params: parameters or parameter groups.
        lr, betas, eps, weight_decay: as in AdamW (defaults: 1e-3, (0.9, 0.999), 1e-8, 1e-2).
        bias_correction: whether to correct the bias of the moments (default: True).
        loss_scaling: factor of the loss gradient, removed from the gradients before the update (default: 1).
        max_weight_norm: limit of the norm of the weights in the trust ratio (default: 65500).
        accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type: types of gradient accumulators,
            first and second moments; torch.float16 or torch.float32 (default).

    Raises:
        AssertionError: for any other accumulation type.
    """

    _kept = Optimizer._kept + _MOMENT_TYPES + ("bias_correction", "max_weight_norm")

    def __init__(
        self,
        params: Iterable[Any],
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        bias_correction: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        max_weight_norm: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
    ) -> None:
        Optimizer.__init__(self)
        given = given_arguments(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, max_weight_norm=max_weight_norm)
        defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "max_weight_norm": 65500.0}
        defaults.update(given)
        torch.optim.Optimizer.__init__(self, params, defaults)
        self.bias_correction = default_to(bias_correction, True)
        self.max_weight_norm = defaults["max_weight_norm"]
        self._set_types(
            loss_scaling,
            accum_type=accum_type,
            first_order_momentum_accum_type=first_order_momentum_accum_type,
            second_order_momentum_accum_type=second_order_momentum_accum_type,
        )
        given.update(given_arguments(loss_scaling=loss_scaling))
        self._declare(given)

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch spells the two cases out
        self, closure: Optional[Callable[[], float]] = None
    ) -> Optional[float]:
        """Updates the parameters on the host. `closure`, if given, recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step_group(group, parameters)
        return loss

    def _step_group(self, group: Dict[str, Any], parameters: List[torch.Tensor]) -> None:
        states = [self._state_of(parameter) for parameter in parameters]
        for state in states:
            state["step"] += 1
        firsts, seconds = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(firsts, beta1)
        torch._foreach_add_(firsts, gradients, alpha=1 - beta1)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, gradients, gradients, value=1 - beta2)

        first, second = self._corrections([state["step"] for state in states], group["betas"])
        denominators = torch._foreach_sqrt(seconds)
        torch._foreach_div_(denominators, second.sqrt().tolist())
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(firsts, denominators)
        torch._foreach_div_(updates, first.tolist())
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        torch._foreach_mul_(updates, self._trust_ratios(parameters, updates, group["max_weight_norm"]))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _state_of(self, parameter: torch.Tensor) -> Dict[str, torch.Tensor]:
        state: Dict[str, torch.Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def _corrections(
        self, steps: Sequence[torch.Tensor], betas: Tuple[float, float]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        first, second = bias_corrections(steps, betas)
        return (first, second) if self.bias_correction else (torch.ones_like(first), torch.ones_like(second))

    @staticmethod
    def _trust_ratios(
        parameters: List[torch.Tensor], updates: Sequence[torch.Tensor], max_weight_norm: float
    ) -> List[float]:
        weight_norms = torch.stack(torch._foreach_norm(parameters)).clamp(max=max_weight_norm)
        update_norms = torch.stack(torch._foreach_norm(list(updates)))
        ratios = torch.where((weight_norms > 0) & (update_norms > 0), weight_norms / update_norms, 1.0)
        return list(ratios.tolist())


def bias_corrections(steps: Sequence[torch.Tensor], betas: Tuple[float, float]) -> Tuple[torch.Tensor, torch.Tensor]:
    """Returns 1 - beta**step in float64 for both moments: NaN where a power of a negative beta is not real."""
    counts = torch.stack(list(steps)).double()
    first, second = (1 - torch.full_like(counts, beta).pow(counts) for beta in betas)
    return first, second
