# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""PopTorch's optimizers: torch's, with what a device needs to know beside it.

Every argument defaults to None, "not given": torch's default is used and the attribute is constant, compiled into the
program. A given attribute is variable: it may change after compilation, through `setOptimizer`. The device does the
update; `step()` of these classes is for the same program run as plain PyTorch.
"""

import math
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch

from ._logging import logger

STATE_KEYS = ("ipu_state", "ipu_param")
_ACCUMULATION_TYPES = (torch.float16, torch.float32)
_NO_STATE = dict.fromkeys(STATE_KEYS)


class VariableAttributes:
    """Which attributes of an optimizer may change after compilation.

    Args:
        variable_attributes: names that are variable from the start.
        allowed_attributes: every name that can be marked.
    """

    def __init__(self, variable_attributes: List[str], allowed_attributes: List[str]) -> None:
        self._variable = list(variable_attributes)
        self._allowed = list(allowed_attributes)

    def isConstant(self, attr: str) -> bool:
        """Whether the value of `attr` is compiled into the program."""
        return attr not in self._variable

    def markAsConstant(self, attr: str) -> None:
        """Compiles the value in. To be called before compilation.

        Raises:
            AssertionError: when the optimizer has no such attribute.
        """
        self._check(attr)
        if attr in self._variable:
            self._variable.remove(attr)

    def markAsVariable(self, attr: str) -> None:
        """Lets the value change after compilation. To be called before it.

        Raises:
            AssertionError: when the optimizer has no such attribute.
        """
        self._check(attr)
        if attr not in self._variable:
            self._variable.append(attr)

    def _check(self, attr: str) -> None:
        if attr not in self._allowed:
            raise AssertionError(f"No optimizer attribute {attr!r}: use one of {sorted(self._allowed)}")


class Optimizer:
    """The part that all optimizers of this module share: the state that lives on the device.

    Attributes:
        ipu_state_is_dirty: the device has a newer state than this object; it is fetched when it is read.
        host_state_is_dirty: a state was loaded that the device has not got yet; it is sent at the next run or attach.
    """

    # Attributes beyond torch's, which copies and pickles keep.
    _kept: Tuple[str, ...] = ("loss_scaling", "accum_type", "variable_attrs")

    def __init__(self) -> None:
        self._state_dict: Dict[str, Any] = dict(_NO_STATE)
        self._device_state: Optional[Callable[[], Tuple[Dict, Dict]]] = None
        self.ipu_state_is_dirty = False
        self.host_state_is_dirty = False

    def state_dict(self) -> Dict[str, Any]:
        """torch's state dict, plus `ipu_state` and `ipu_param`: dicts of tensors by name, None before compilation.

        torch's own `state` stays empty unless `step()` is called on the host.
        """
        return {**self.get_state_dict(), **super().state_dict()}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Loads what `state_dict()` of an optimizer of this module returned; the device gets it at its next run.

        Raises:
            RuntimeError: when `state` is empty, or not from an optimizer that ran on a device.
        """
        self.set_state_dict(state)
        super().load_state_dict({key: state[key] for key in ("state", "param_groups")})

    def get_state_dict(self) -> Dict[str, Any]:
        """`ipu_state` and `ipu_param`, fetched if the device ran since they were last read."""
        if self.ipu_state_is_dirty and self._device_state is not None:
            logger.debug("Writing optimiser state tensors from IPU to host.")
            self._state_dict = dict(zip(STATE_KEYS, self._device_state()))
            self.ipu_state_is_dirty = False
        elif self._device_state is not None:
            logger.debug("Using cached optimiser state.")
        return dict(self._state_dict)

    def set_state_dict(self, state: Dict[str, Any]) -> None:
        """Takes over `ipu_state` and `ipu_param` of `state`, to be sent to the device at the next run.

        Raises:
            RuntimeError: when `state` is empty, or has no such entries.
        """
        if not state:
            raise RuntimeError("Cannot load optimizer state dictionary because it is empty.")
        missing = [key for key in STATE_KEYS if key not in state]
        if missing:
            raise RuntimeError(
                f"Only IPU optimizer states can be loaded onto the IPU. {', '.join(missing)} missing: "
                "use a state_dict() of a poptorch.optim optimizer"
            )
        self._state_dict = {key: state[key] for key in STATE_KEYS}
        self.ipu_state_is_dirty = False
        self.host_state_is_dirty = self.has_state()

    def has_state(self) -> bool:
        """Whether there is a state of a device here."""
        return any(part is not None for part in self._state_dict.values())

    def __getstate__(self) -> Dict[str, Any]:
        self.get_state_dict()
        kept = ("_state_dict", "host_state_is_dirty") + self._kept
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        if "_state_dict" not in vars(self):  # torch's load_state_dict comes here too, with an object that is complete
            Optimizer.__init__(self)
        super().__setstate__(state)

    def _set_types(self, loss_scaling: Optional[float], **types: Optional[torch.dtype]) -> None:
        self.loss_scaling = _or(loss_scaling, 1.0)
        for name, dtype in types.items():
            dtype = _or(dtype, torch.float32)
            if dtype not in _ACCUMULATION_TYPES:
                raise AssertionError(
                    f"Accumulation types must be either torch.float32 or torch.float16, but {name} is {dtype}"
                )
            setattr(self, name, dtype)

    def _keep_betas(self, betas: Optional[Tuple[float, float]]) -> None:
        """Keeps `betas` as given, where recent versions of torch make a tuple: a list is for the device to refuse."""
        if betas is not None:
            made, self.defaults["betas"] = self.defaults["betas"], betas
            for group in self.param_groups:
                group["betas"] = betas if group["betas"] is made else group["betas"]

    def _declare(self, given: Dict[str, Any], extra: Iterable[str] = ()) -> None:
        """Makes the attributes in `given` variable, all others that torch's class and `extra` have constant."""
        allowed = [*self.defaults, "loss_scaling", *extra]
        self.variable_attrs = VariableAttributes([name for name in given if name in allowed], allowed)


def _given(**arguments: Any) -> Dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _check_moments(lr: float, betas: Tuple[float, float], eps: float, weight_decay: float) -> None:
    """ValueError for what torch's Adam refuses."""
    for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not value >= 0:
            raise ValueError(f"Invalid {name}: {value}, it must be at least 0")
    for beta in betas:
        if not 0 <= beta < 1:
            raise ValueError(f"Invalid betas: {betas}, they must be at least 0 and below 1")


_MOMENT_TYPES = ("first_order_momentum_accum_type", "second_order_momentum_accum_type")


class SGD(Optimizer, torch.optim.SGD):
    """Stochastic gradient descent, with or without momentum.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        momentum, dampening, weight_decay, nesterov: as torch's; with dampening, the velocity starts from zeros.
        maximize, foreach, differentiable: have no effect on a device.
        loss_scaling: factor of the loss gradient, divided out of the gradients before they are used (default 1).
        velocity_scaling: factor of the combined tensor against underflow (default 1); needs `use_combined_accum`.
        use_combined_accum: one tensor for accumulated gradient and velocity rather than two.
        accum_type: type of gradient accumulators, torch.float16 or torch.float32 (default).
        velocity_accum_type: type of velocities, likewise. Both types are ignored with `use_combined_accum`.
        max_grad_norm: largest global L2 norm of the gradients of an update (default: no limit).

    Raises:
        AssertionError: for another accumulation type.
    """

    _kept = Optimizer._kept + ("use_combined_accum", "velocity_accum_type", "max_grad_norm")

    def __init__(
        self,
        params: Iterable,
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
        given = _given(
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
        self.use_combined_accum = _or(use_combined_accum, False)
        self._set_types(loss_scaling, accum_type=accum_type, velocity_accum_type=velocity_accum_type)
        self.max_grad_norm = _or(max_grad_norm, math.inf)
        self._declare(
            {**given, **_given(loss_scaling=loss_scaling, velocity_scaling=velocity_scaling)},
            ["velocity_scaling"] if self.use_combined_accum else [],
        )
        self._scale_velocity(velocity_scaling)

    def _scale_velocity(self, velocity_scaling: Optional[float]) -> None:
        if not self.use_combined_accum:
            if velocity_scaling is not None:
                logger.warning("velocity_scaling=%s is ignored: it needs use_combined_accum=True", velocity_scaling)
            return
        self.defaults["velocity_scaling"] = _or(velocity_scaling, 1.0)
        for group in self.param_groups:
            group.setdefault("velocity_scaling", self.defaults["velocity_scaling"])


class Adam(Optimizer, torch.optim.Adam):
    """Adam; weight decay is an L2 term added to the gradient.

    Args:
        params: parameters or parameter groups.
        lr, betas, eps, weight_decay: as torch's.
        amsgrad: refused when the optimizer is given to a model.
        foreach, maximize, capturable, differentiable, fused: have no effect on a device.
        loss_scaling: factor of the loss gradient, divided out of the gradients before they are used (default 1).
        accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type: types of gradient accumulators,
            first and second moments; torch.float16 or torch.float32 (default).
        max_grad_norm: largest global L2 norm of the gradients of an update (default: no limit).

    Raises:
        AssertionError: for another accumulation type.
    """

    _kept = Optimizer._kept + _MOMENT_TYPES + ("max_grad_norm",)

    def __init__(
        self,
        params: Iterable,
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
        given = _given(
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
        self.max_grad_norm = _or(max_grad_norm, math.inf)
        self._declare({**given, **_given(loss_scaling=loss_scaling)})


class AdamW(Optimizer, torch.optim.AdamW):
    """Adam with decoupled weight decay.

    Args:
        params: parameters or parameter groups.
        lr, betas, eps, weight_decay: as torch's.
        amsgrad: refused when the optimizer is given to a model.
        maximize, foreach, capturable, differentiable, fused: have no effect on a device.
        loss_scaling: factor of the loss gradient, divided out of the gradients before they are used (default 1).
        bias_correction: recorded (default True). PopTorch 3.4 corrects the bias whatever it says, and so does this.
        accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type: types of gradient accumulators,
            first and second moments; torch.float16 or torch.float32 (default).
        max_grad_norm: largest global L2 norm of the gradients of an update (default: no limit).

    Raises:
        AssertionError: for another accumulation type.
    """

    _kept = Optimizer._kept + _MOMENT_TYPES + ("bias_correction", "max_grad_norm")

    def __init__(
        self,
        params: Iterable,
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
        given = _given(
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
        self.bias_correction = _or(bias_correction, True)
        self.max_grad_norm = _or(max_grad_norm, math.inf)
        self._declare({**given, **_given(loss_scaling=loss_scaling)})


class RMSprop(Optimizer, torch.optim.RMSprop):
    """RMSprop, centred or not, with or without momentum.

    Args:
        params: parameters or parameter groups; all groups need the same `centered`.
        lr, alpha, eps, weight_decay, momentum, centered: as torch's.
        foreach, maximize, differentiable: have no effect on a device.
        loss_scaling: factor of the loss gradient, divided out of the gradients before they are used (default 1).
        accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type: types of gradient accumulators,
            of momentum and mean gradient, and of the squared average; torch.float16 or torch.float32 (default).
        use_tf_variant: TensorFlow's rule on the device (default False): the squared average starts at ones, `eps` is
            inside the root, and the learning rate is part of the momentum. `step()` on the host is torch's either way.

    Raises:
        AssertionError: for another accumulation type.
    """

    _kept = Optimizer._kept + _MOMENT_TYPES + ("use_tf_variant",)

    def __init__(
        self,
        params: Iterable,
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
        given = _given(
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
        self.use_tf_variant = _or(use_tf_variant, False)
        self._declare({**given, **_given(loss_scaling=loss_scaling)})


class LAMB(Optimizer, torch.optim.Optimizer):
    """Layer-wise adaptive moments (You et al. 2019, "Large Batch Optimization for Deep Learning", algorithm 2).

    The step of every tensor is scaled by its trust ratio, the norm of the weights over the norm of the update (Adam's,
    plus weight decay); by 1 where either norm is 0.

    Args:
        params: parameters or parameter groups.
        lr, betas, eps, weight_decay: as AdamW's; defaults 1e-3, (0.9, 0.999), 1e-8, 1e-2.
        bias_correction: whether the moments are corrected for their start at zero (default True).
        loss_scaling: factor of the loss gradient, divided out of the gradients before they are used (default 1).
        max_weight_norm: upper limit of the norm of the weights in the trust ratio (default 65500).
        accum_type, first_order_momentum_accum_type, second_order_momentum_accum_type: types of gradient accumulators,
            first and second moments; torch.float16 or torch.float32 (default).

    Raises:
        AssertionError: for another accumulation type.
        ValueError: for a negative value, or betas that are not below 1.
    """

    _kept = Optimizer._kept + _MOMENT_TYPES + ("bias_correction", "max_weight_norm")

    def __init__(
        self,
        params: Iterable,
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
        given = _given(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, **given}
        _check_moments(**defaults)
        torch.optim.Optimizer.__init__(self, params, defaults)
        self.bias_correction = _or(bias_correction, True)
        self.max_weight_norm = _or(max_weight_norm, 65500.0)
        self._set_types(
            loss_scaling,
            accum_type=accum_type,
            first_order_momentum_accum_type=first_order_momentum_accum_type,
            second_order_momentum_accum_type=second_order_momentum_accum_type,
        )
        self._declare(
            {**given, **_given(loss_scaling=loss_scaling, max_weight_norm=max_weight_norm)}, ["max_weight_norm"]
        )

    @torch.no_grad()
    def step(self, closure: Optional[Callable] = None) -> Optional[float]:
        """Updates the parameters on the host; `closure`, if given, computes the loss, which is returned."""
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
        gradients = [parameter.grad for parameter in parameters]
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(firsts, beta1)
        torch._foreach_add_(firsts, gradients, alpha=1 - beta1)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, gradients, gradients, value=1 - beta2)

        corrections = [self._corrections(float(state["step"]), beta1, beta2) for state in states]
        denominators = torch._foreach_sqrt(seconds)
        torch._foreach_div_(denominators, [math.sqrt(second) for _, second in corrections])
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(firsts, denominators)
        torch._foreach_div_(updates, [first for first, _ in corrections])
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        torch._foreach_mul_(updates, self._trust_ratios(parameters, updates))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _state_of(self, parameter: torch.Tensor) -> Dict[str, torch.Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def _corrections(self, step: float, beta1: float, beta2: float) -> Tuple[float, float]:
        return (1 - beta1**step, 1 - beta2**step) if self.bias_correction else (1.0, 1.0)

    def _trust_ratios(self, parameters: List[torch.Tensor], updates: List[torch.Tensor]) -> List[float]:
        weight_norms = torch.stack(torch._foreach_norm(parameters)).clamp(max=self.max_weight_norm)
        update_norms = torch.stack(torch._foreach_norm(updates))
        ratios = torch.where((weight_norms > 0) & (update_norms > 0), weight_norms / update_norms, 1.0)
        return ratios.tolist()
