# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The update rule with its states: updates in float32, of weights and states that are stored in their own dtypes."""

import inspect
import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch

from .._logging import logger
from ..errors import createPoptorchError
from ..precision.rounding import store
from . import algorithms
from .algorithms import StateTensor
from .gradients import Slot
from .latch import Latched

STEP_PREFIX = "Step___"


class UpdateRule:
    """An update rule for the weights of `slots`.

    float32 weights with float32 states are updated in place by torch's optimizer. Half values are converted to float32
    for the update, and rounded when they are stored.
    """

    def __init__(self, latched: Latched, slots: Sequence[Slot], device: torch.device) -> None:
        self._slots = slots
        self._optimizer = algorithms.build(latched, self._groups(latched, {}), device)
        # Without torch's wrapper of step() for profiling and hooks, which takes a tenth of an update of a small model.
        self._plain_step = inspect.unwrap(type(self._optimizer).step)
        self._tensors = algorithms.state_tensors(latched)
        self._counts_steps = algorithms.counts_steps(latched)
        self._in_half = {
            slot.name: [tensor for tensor in self._tensors if _kept_type(tensor, slot) == torch.float16]
            for slot in slots
        }
        self._converted = {slot.name for slot in slots if slot.master is not slot.weight or self._in_half[slot.name]}
        self._velocity_scalings = _velocity_scalings(latched)
        for slot in slots:
            state = self._optimizer.state[slot.master]
            if latched.algorithm != "SGD":
                state["step"] = algorithms.new_step_count(self._optimizer, device)
            for tensor in self._tensors:
                state[tensor.key] = torch.full_like(
                    slot.weight, tensor.initial, dtype=_kept_type(tensor, slot), requires_grad=False
                )

    def set_values(self, latched: Latched, own: Mapping[str, Dict[str, Any]]) -> None:
        """Sets new hyper-parameters: those of the groups, and for the weights named in `own` their own."""
        algorithms.set_values(self._optimizer, latched, self._groups(latched, own))
        scalings = _velocity_scalings(latched)
        for slot in self._slots:
            ratio = scalings[slot.group] / self._velocity_scalings[slot.group]
            if ratio != 1.0 and self._in_half[slot.name]:
                self._optimizer.state[slot.master]["momentum_buffer"].mul_(ratio)
        self._velocity_scalings = scalings

    def _groups(self, latched: Latched, own: Mapping[str, Dict[str, Any]]) -> List[Dict[str, Any]]:
        """Returns the parameter groups: those of the optimizer, and one of each weight of `own`."""
        groups = [{"params": [], **values} for values in latched.group_values()]
        for slot in self._slots:
            if slot.name in own:
                groups.append({"params": [slot.master], **own[slot.name]})
            else:
                groups[slot.group]["params"].append(slot.master)
        defaults = len(latched.groups)
        return groups if groups[defaults]["params"] else groups[:defaults] + groups[defaults + 1 :]

    def step(
        self,
        slots: Sequence[Slot],
        gradients: Sequence[torch.Tensor],
        factor: Union[float, torch.Tensor],
        generator: Optional[torch.Generator],
        left_out: Optional[torch.Tensor] = None,
    ) -> None:
        """Updates the weights of `slots`. Call under torch.no_grad().

        Args:
            slots: the weights to update.
            gradients: float32 gradients of the shapes of the weights, which may be overwritten.
            factor: a factor of all gradients; a scalar tensor only if the rule `decides_on_device`.
            generator: the generator for stochastic rounding of half values; None to round to nearest.
            left_out: a scalar tensor that is 1 to leave the update out, else 0, if the rule `decides_on_device`.
        """
        converted = [slot for slot in slots if slot.name in self._converted]
        for slot in converted:
            self._widen(slot)
        self._give(slots, gradients)
        self._multiply(gradients, factor)
        if isinstance(self._optimizer, algorithms.FusedAdam):
            self._optimizer.found_inf = left_out
        self._plain_step(self._optimizer)
        if converted:
            self._narrow(converted, generator)

    def unscale(self, slots: Sequence[Slot], gradients: Sequence[torch.Tensor], scaler: Any) -> None:
        """Divides gradients of float32 weights by the scale of a torch.amp.GradScaler, which checks them."""
        self._give(slots, gradients)
        scaler.unscale_(self._optimizer)

    @staticmethod
    def _give(slots: Sequence[Slot], gradients: Sequence[torch.Tensor]) -> None:
        """Sets the gradients that the optimizer sees."""
        for slot, gradient in zip(slots, gradients):
            if slot.master.grad is not gradient:  # an assignment is slow, since it checks the gradient
                slot.master.grad = gradient

    @property
    def decides_on_device(self) -> bool:
        """Whether the device alone can scale the gradients and leave an update out, unknown to the host."""
        return isinstance(self._optimizer, algorithms.FusedAdam)

    def _multiply(self, gradients: Sequence[torch.Tensor], factor: Union[float, torch.Tensor]) -> None:
        """Multiplies gradients by a factor. Fused updates do it themselves, as for torch.amp.GradScaler."""
        if isinstance(factor, torch.Tensor):
            setattr(self._optimizer, "grad_scale", factor.reciprocal())  # noqa: B010 (as below)
            return
        needed = factor != 1.0 and len(gradients) > 0
        if self._optimizer.defaults.get("fused"):
            divisor = 1 / factor if factor else math.inf
            scale = torch.full((), divisor, device=gradients[0].device) if needed else None
            setattr(self._optimizer, "grad_scale", scale)  # noqa: B010 (torch's fused optimizers read it, undeclared)
        elif needed:
            torch._foreach_mul_(list(gradients), factor)

    def _widen(self, slot: Slot) -> None:
        """Converts a half weight and half states to float32 for an update."""
        if slot.master is not slot.weight:
            slot.master.data = slot.weight.float()
        state = self._optimizer.state[slot.master]
        for tensor in self._in_half[slot.name]:
            state[tensor.key] = state[tensor.key].float()
            if tensor.dtype is None:
                state[tensor.key].div_(self._velocity_scalings[slot.group])

    def _narrow(self, slots: Sequence[Slot], generator: Optional[torch.Generator]) -> None:
        """Stores the results of an update in the dtypes of the weights and states."""
        targets, values = [], []
        for slot in slots:
            if slot.master is not slot.weight:
                targets.append(slot.weight)
                values.append(slot.master.data)
            state = self._optimizer.state[slot.master]
            for tensor in self._in_half[slot.name]:
                value = state[tensor.key]
                if tensor.dtype is None:
                    value = value * self._velocity_scalings[slot.group]
                state[tensor.key] = torch.empty_like(value, dtype=torch.float16)
                targets.append(state[tensor.key])
                values.append(value)
        store(targets, values, generator)
        for slot in slots:
            slot.master.grad = None
            if slot.master is not slot.weight:
                slot.master.data = slot.master.data.new_empty(0)

    # State by name.

    def read_state(self) -> Dict[str, torch.Tensor]:
        """Returns copies of all states on the host by name."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._named_state().items()}

    @torch.no_grad()
    def write_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Sets states by name. Missing ones keep their values, with a warning.

        Raises:
            Error: if the shape of a tensor differs from that of the state.
        """
        named = self._named_state()
        missing = sorted(set(named) - set(tensors))
        if missing:
            logger.warning(
                "The optimizer state has no %s%s: the values on the device are kept",
                missing[0],
                f" and {len(missing) - 1} others" if missing[1:] else "",
            )
        for name, target in named.items():
            if name not in tensors:
                continue
            if tensors[name].numel() != target.numel():
                raise createPoptorchError(
                    f"Optimizer state {name} has shape {tuple(tensors[name].shape)}, but the model "
                    f"needs {tuple(target.shape)}: load a state of the same model"
                )
            target.copy_(tensors[name].reshape(target.shape))

    def _named_state(self) -> Dict[str, torch.Tensor]:
        named = {}
        for slot in self._slots:
            state = self._optimizer.state[slot.master]
            named.update({tensor.prefix + slot.name: state[tensor.key] for tensor in self._tensors})
            if self._counts_steps:
                named[STEP_PREFIX + slot.name] = state["step"]
        return named


def _kept_type(tensor: StateTensor, slot: Slot) -> torch.dtype:
    return tensor.dtype or slot.weight.dtype


def _velocity_scalings(latched: Latched) -> Tuple[float, ...]:
    return tuple(values.get("velocity_scaling", 1.0) for values in latched.group_values())
