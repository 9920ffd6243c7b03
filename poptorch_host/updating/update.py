# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The weight update on a device, from the gradients of micro-batches to new weights.

Mixed precision follows Micikevicius et al. 2018, "Mixed Precision Training" (loss scaling). As in PopTorch, weights in
half have no float32 master copy and are rounded when they are stored.
"""

import contextlib
import logging
import math
from typing import Any, ContextManager, Dict, List, Mapping, Optional, Sequence, Tuple, cast

import torch
from torch._C import _len_torch_dispatch_stack
from torch.utils._python_dispatch import _disable_current_modes

from .. import host, optim
from .._logging import logger
from ..errors import createPoptorchError
from ..options import Options
from ..precision.gradient_scaler import gradient_scaler, restore_scaler, scaler_state
from ..precision.loss_scale import STATE_NAME, LossScale
from . import state_names
from .gradients import Parameters, Reduction, Slot, accumulate, check_members, make_slots
from .latch import OptimizerLatch
from .operations import update_operations
from .reduce import GradientReducer, add_up, agree, process_group
from .rule import STEP_PREFIX, UpdateRule

_CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_'s
_LARGEST_SEED = 2**63 - 1
_SEED_STEP = 0x9E3779B97F4A7C15  # odd, so that different seeds stay different

State = Dict[str, torch.Tensor]


class WeightUpdate:
    """The weight updates of a compiled training model.

    For each part of an update with k micro-batches, the engine calls `before_backward(k)`, runs their backward pass
    with every loss gradient multiplied by `root_gradient()`, and calls `accumulate(k)`. After the last part, it calls
    `apply()`. The executor calls `upload()` before and `mark_run()` after each call of the user.

    Args:
        latch: the executor's latch, with an optimizer set.
        parameters: (name, parameter of the user's model, tensor on the device) as in named_parameters(). Parameters
            that require no gradient get requires_grad=False on the device.
        options: the executor's options.
        seed: the seed of stochastic rounding.
        group: the processes with the same weights, over which gradients are summed; None for those of `options`.
        rest: the processes with the other weights of the model, and this one, for the global norm in clipping; None if
            this process has all weights.

    Attributes:
        is_late: whether updates decide on the device what to clip and to leave out, which the host learns later: on a
            GPU, which would wait for the host otherwise. `take_findings` and `note` take the place of what `apply`
            returns elsewhere.
        updates: the number of weight updates, including skipped ones.
        overflows: the number of updates with gradients that were not finite. They are only counted with weights in
            half, loss scaling, clipping or enableFloatingPointExceptions.
        skipped: the number of updates that were not applied: overflows with automatic loss scaling or with
            skip_nonfinite or scale_gradients of `host.configure`, or with an error.
            All others are applied, as on a device.
        gradient_norm: the global norm of the last update's gradients before clipping; NaN where nothing needed it.

    Raises:
        Error: if max_grad_norm is NaN, or the other processes cannot be reached.
        KeyError: if the optimizer has parameters that the model does not have.
    """

    def __init__(
        self,
        latch: OptimizerLatch,
        parameters: Parameters,
        options: Options,
        seed: int = 0,
        group: Any = None,
        rest: Any = None,
        replica_groups: Optional[Mapping[str, int]] = None,
    ) -> None:
        latched, popart = latch.latched, options._Popart.options
        self._max_norm = latched.structure["max_grad_norm"]
        if math.isnan(self._max_norm):
            raise createPoptorchError("max_grad_norm is NaN: give the optimizer a number, or inf for no clipping")
        self._device = device = parameters[0][2].device if parameters else torch.device("cpu")
        group = process_group(options, device) if group is None else group
        self._rest = rest
        self._replica_groups = replica_groups or {}
        self._latch = latch
        self._reduction = Reduction(options)
        if rest is None:
            check_members(latched, parameters)
        self._slots = make_slots(latched, parameters, self._reduction.micro_batches)
        self._names = [
            [slot.name for slot in self._slots if slot.group == index] for index in range(len(latched.all_groups))
        ]
        self._own_values: Dict[str, Dict[str, Any]] = {}  # of weights that were loaded with others than their group's
        self._rule = UpdateRule(latched, self._slots, device)
        self._typed = [slot for slot in self._slots if slot.accumulator_type is not None]
        self._loss_scale = LossScale(bool(popart.get("automaticLossScalingSettings.enabled", False)), device, group)
        self._stop_at_overflow = bool(popart.get("enableFloatingPointChecks", False))
        self._expect_overflow()
        rounds = bool(popart.get("enableStochasticRounding", False))
        self._generator = torch.Generator(device) if rounds else None
        self._reducer = None
        if group is not None:
            seed = agree(seed, device, group)
            self._reducer = GradientReducer([slot.weight for slot in self._slots], group, self._collect)
        self._covered = self._expected = 0
        self._overlapped = self._unfinished = False
        self.updates = self.overflows = self.skipped = 0
        self.gradient_norm = math.nan
        self.rounding_state = (seed, 0)
        # Continue from a state that was loaded, or copied from an earlier program.
        if isinstance(latch.optimizer, optim.Optimizer) and latch.optimizer.has_state():
            self._upload(latch.optimizer, with_values=latch.optimizer.host_state_is_dirty)
        self._attach(latch.optimizer)

    def _expect_overflow(self) -> None:
        """Decides what happens to gradients that are not finite, and whether the host is asked."""
        in_float = all(slot.master is slot.weight for slot in self._slots)
        self._scaler = gradient_scaler(self._device) if host.scales_gradients() and in_float else None
        self._leaves_out = host.skips_nonfinite() or self._scaler is not None
        by_host = self._stop_at_overflow or self._loss_scale.automatic
        in_half = any(slot.weight.dtype == torch.float16 for slot in self._slots)
        self._expects_overflow = by_host or self._leaves_out or in_half
        self.is_late = is_apart(self._device) and self._rule.decides_on_device and self._rest is None and not by_host
        self._norms: List[torch.Tensor] = []  # of the updates that the host knows nothing of yet

    # For the engine.

    def root_gradient(self) -> float:
        """Returns the factor of the loss gradient of every micro-batch."""
        return self.loss_scale * self._reduction.root_factor

    def scaled(self, root: torch.Tensor) -> torch.Tensor:
        """Returns a loss gradient, a constant otherwise, at the scale of float16 gradients inside autocast."""
        return root if self._scaler is None else cast(torch.Tensor, self._scaler.scale(root))

    @property
    def can_fold(self) -> bool:
        """Whether gradients may be sums over micro-batches.

        Not with half weights: a sum could overflow or be rounded where the accumulator would not.
        """
        return all(slot.weight.dtype != torch.float16 and slot.accumulator_type is None for slot in self._slots)

    def before_backward(self, count: int) -> None:
        """Called before the backward pass of `count` micro-batches. The reduction overlaps with the last one."""
        self._expected = count
        self._unfinished = True
        if self._reducer is not None and self._covered + count == self._reduction.micro_batches:
            self._overlapped = True
            self._reducer.arm()

    def accumulate(self, count: int) -> None:
        """Called after the backward pass has added the gradients of `count` micro-batches to `.grad`."""
        if self._overlapped:  # they are collected as they become ready, or else by `apply`
            return
        if self._typed or self._loss_scale.automatic:
            with _without_modes():
                self._take(self._slots, count)
        self._covered += count

    @torch.no_grad()
    def apply(self) -> None:
        """Sums gradients over processes, removes the loss scale, clips, updates the weights and clears the gradients.

        Raises:
            Error: for gradients that are not finite, with enableFloatingPointExceptions. Weights are not updated then.
        """
        scale = self.loss_scale
        with _without_modes():
            finite = self._apply(scale)
        self._forget_gradients()
        self.updates += 1
        self._restart_rounding()
        if not finite:
            self._report_overflow(scale)

    def _apply(self, scale: float) -> bool:
        """Updates the weights, unless gradients overflow. Returns whether gradients were finite."""
        slots, gradients = self._sums()
        if self._scaler is not None and gradients:
            self._rule.unscale(slots, gradients, self._scaler)
        if self.is_late and gradients and self._needs_norm(scale):
            self._apply_unread(slots, gradients, scale)
            return True
        factor, finite = self._factor(slots, gradients, scale)
        finite = self._loss_scale.update(self._latch.latched.loss_scaling, finite)
        self._restart_rounding()
        if finite or not (self._loss_scale.automatic or self._stop_at_overflow or self._leaves_out):
            self._rule.step(slots, gradients, factor, self._generator)
        else:
            self.skipped += 1
        if self._scaler is not None and gradients:
            self._scaler.update()
        return finite

    def _apply_unread(self, slots: List[Slot], gradients: List[torch.Tensor], scale: float) -> None:
        """The same on the device alone, which nobody waits for: the host reads the norm later."""
        norm, factor = self._unread_factor(slots, gradients, scale)
        self._restart_rounding()
        left_out = (~norm.isfinite()).float() if self._leaves_out else None
        self._rule.step(slots, gradients, factor, self._generator, left_out)
        if self._scaler is not None:
            self._scaler.update()
        self._norms.append(norm)

    def take_findings(self) -> Optional[torch.Tensor]:
        """Returns the norms of the gradients that the host knows nothing of yet, on the device, for `note`."""
        norms, self._norms = self._norms, []
        return torch.stack(norms) if norms else None

    def note(self, findings: torch.Tensor) -> None:
        """Learns the results of updates from what `take_findings` returned, now on the host."""
        norms = findings.tolist()
        self.gradient_norm = norms[-1]
        for norm in norms:
            if not math.isfinite(norm):
                self.skipped += self._leaves_out
                self._report_overflow(self.loss_scale)

    @property
    def loss_scale(self) -> float:
        """The optimizer's loss scaling times the factor of automatic loss scaling."""
        return self._latch.latched.loss_scaling * self._loss_scale.factor

    @property
    def rounding_state(self) -> Tuple[int, int]:
        """The state of stochastic rounding between updates: the seed and the number of restarts."""
        return self._seed, self._restarts

    @rounding_state.setter
    def rounding_state(self, state: Tuple[int, int]) -> None:
        self._seed, self._restarts = state[0], state[1] - 1
        self._restart_rounding()

    # For the executor.

    def latch(self, optimizer: torch.optim.Optimizer) -> None:
        """Continues with the values of `optimizer`; see `PoplarExecutor.setOptimizer`.

        The state is copied to the previous optimizer, which is detached. The state on the device is kept unless one was
        loaded into the new optimizer. Raises the exceptions of `OptimizerLatch.set`.
        """
        before = self._latch.optimizer
        if self._latch.set(optimizer, compiled=True) or self._own_values:
            self._own_values = {}
            self._rule.set_values(self._latch.latched, self._own_values)
            self._mark_newer(optimizer)
        if before is not optimizer:
            self._detach(before)
            self._attach(optimizer)

    def upload(self, attaching: bool = False) -> None:
        """Copies the state to the device if one was loaded into the optimizer. Called before a run and at attach.

        Clears gradients of a run that raised an error.

        Args:
            attaching: whether the state is also copied if it is that of the device when it was detached.
        """
        if self._unfinished:
            self._forget_gradients()
        optimizer = self._latch.optimizer
        if not isinstance(optimizer, optim.Optimizer):
            return
        if optimizer.host_state_is_dirty:
            self._upload(optimizer, with_values=True)
        elif attaching and optimizer.has_state():
            self.write_state(optimizer.get_state_dict()["ipu_state"], None)
            logger.debug("Writing optimiser state tensors from host to IPU memory.")

    def mark_run(self) -> None:
        """Marks the state on the device as newer than the optimizer's. Called after a run."""
        self._mark_newer(self._latch.optimizer)

    def download(self) -> None:
        """Copies the state to the optimizer. Called at detach."""
        if isinstance(self._latch.optimizer, optim.Optimizer):
            self._latch.optimizer.get_state_dict()

    def release(self) -> None:
        """Copies the state to the optimizer and detaches it. Called when the program is destroyed."""
        self._detach(self._latch.optimizer)
        if self._reducer is not None:
            self._reducer.close()

    def read_state(self) -> Tuple[State, State]:
        """Returns (ipu_state, ipu_param): copies of states and hyper-parameters on the host, by name."""
        state = self._rule.read_state()
        for name, groups in self._replica_groups.items():
            if STEP_PREFIX + name in state:  # which every group of replicas counts for itself
                state[STEP_PREFIX + name] = state[STEP_PREFIX + name].expand(groups).clone()
        if self._loss_scale.automatic:
            state[STATE_NAME] = torch.tensor(self._loss_scale.factor)
        if self._scaler is not None:
            state.update({name: torch.tensor(value) for name, value in scaler_state(self._scaler).items()})
        return state, state_names.parameter_tensors(self._latch.latched, self._names, self._own_values)

    def write_state(
        self, ipu_state: Optional[Mapping[str, torch.Tensor]], ipu_param: Optional[Mapping[str, torch.Tensor]]
    ) -> None:
        """Sets the state from the results of `read_state`. Missing entries keep their values, with a warning.

        Raises:
            Error: if the shape of a state differs from that of the weight.
        """
        latch = self._latch
        latch.latched, self._own_values = state_names.loaded_values(
            latch.latched, self._names, self._own_values, ipu_param or {}
        )
        self._rule.set_values(latch.latched, self._own_values)
        state = dict(ipu_state or {})
        for name in self._replica_groups:
            if STEP_PREFIX + name in state:
                state[STEP_PREFIX + name] = state[STEP_PREFIX + name].reshape(-1)[:1]
        self._loss_scale.factor = float(state.pop(STATE_NAME, self._loss_scale.factor))
        if self._scaler is not None:
            restore_scaler(self._scaler, state)
        self._rule.write_state(state)

    def operations(self) -> List[Dict[str, Any]]:
        """Returns the operations of an update; see `operations.update_operations`."""
        return update_operations(self._latch.latched, self._slots, self._reduction.micro_batches)

    # Gradients.

    def _take(self, slots: Sequence[Slot], count: int) -> None:
        """Records the magnitude of the gradients of a backward pass, and adds them to typed accumulators."""
        self._loss_scale.observe([slot.weight.grad for slot in slots])
        typed = [slot for slot in slots if slot.accumulator_type is not None]
        accumulate(typed, self._covered, count, self._reduction.running, self._generator)

    def _collect(self, index: int) -> Optional[torch.Tensor]:
        """Returns the accumulated gradient of a weight in this process, for the reducer."""
        slot = self._slots[index]
        if self._overlapped:
            with _without_modes():
                self._take([slot], self._expected)
        gradient = slot.weight.grad if slot.accumulator_type is None else slot.accumulator
        slot.weight.grad = slot.accumulator = None
        return gradient

    def _sums(self) -> Tuple[List[Slot], List[torch.Tensor]]:
        """Returns the weights that have a gradient, and its float32 sum or running mean over all processes."""
        if self._reducer is not None:
            gradients = self._reducer.finish()
        else:
            gradients = [
                slot.weight.grad if slot.accumulator_type is None else slot.accumulator for slot in self._slots
            ]
        pairs = [(slot, gradient) for slot, gradient in zip(self._slots, gradients) if gradient is not None]
        wide = [
            gradient if gradient.dtype == slot.master.dtype else gradient.to(slot.master.dtype)
            for slot, gradient in pairs
        ]
        return [slot for slot, _ in pairs], wide

    def _forget_gradients(self) -> None:
        for slot in self._slots:
            slot.weight.grad = slot.accumulator = None
        self._covered = 0
        self._overlapped = self._unfinished = False

    def _factor(self, slots: List[Slot], gradients: List[torch.Tensor], scale: float) -> Tuple[float, bool]:
        """Returns a factor for all gradients, and whether they are finite.

        The factor removes the loss scale, divides for a mean, and clips. The norm is computed only if needed.
        """
        common = self._common_factor(slots, gradients) / scale
        if not self._needs_norm(scale):
            return common, True
        norm = common * global_norm(gradients) if gradients else 0.0
        if self._rest is not None:
            norm = math.sqrt(add_up(norm**2, self._device, self._rest))
        self.gradient_norm = norm
        clip = self._max_norm / (norm + _CLIP_EPSILON) if self._max_norm != math.inf else 1.0
        # A norm of NaN makes all gradients NaN, as in torch's clipping.
        return common if clip > 1.0 else common * clip, math.isfinite(norm)

    def _needs_norm(self, scale: float) -> bool:
        return self._expects_overflow or self._max_norm != math.inf or scale != 1.0

    def _common_factor(self, slots: List[Slot], gradients: List[torch.Tensor]) -> float:
        """Multiplies gradients whose factors of the reduction differ, and returns the one that is left for all."""
        factors = [self._reduction.factor(slot) for slot in slots]
        common = factors[0] if factors else 1.0
        for other in set(factors) - {common}:
            torch._foreach_mul_(
                [gradient for gradient, factor in zip(gradients, factors) if factor == other], other / common
            )
        return common

    def _unread_factor(
        self, slots: List[Slot], gradients: List[torch.Tensor], scale: float
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Returns the norm and the factor of `_factor` as scalars on the device."""
        common = self._common_factor(slots, gradients) / scale
        norm = common * torch.stack(torch._foreach_norm(gradients)).norm()
        clip = (self._max_norm / (norm + _CLIP_EPSILON)).clamp(max=1.0)  # NaN stays NaN
        return norm, common * (clip if self._max_norm != math.inf else torch.ones_like(norm))

    def _report_overflow(self, scale: float) -> None:
        """Counts an update with gradients that are not finite. Logs the first as a warning, others at level DEBUG."""
        self.overflows += 1
        what = f"Gradients of weight update {self.updates} are not finite at loss scale {scale:g}"
        if self._stop_at_overflow:
            raise createPoptorchError(
                f"{what}: floating point exceptions are enabled. Lower the loss scaling, or find "
                "the operation that overflows"
            )
        level = logging.WARNING if self.overflows == 1 else logging.DEBUG
        logger.log(
            level,
            "%s: %s",
            what,
            "the update is skipped and the scale is halved"
            if self._loss_scale.automatic or self._scaler is not None
            else "the update is skipped"
            if self._leaves_out
            else "the update is applied, as on a device; lower the optimizer's loss_scaling",
        )

    def _restart_rounding(self) -> None:
        """Reseeds the generator from the seed and the number of restarts.

        Processes may round different accumulators. Restarts before and after the weights are rounded make all processes
        round those alike.
        """
        self._restarts += 1
        if self._generator is not None:
            self._generator.manual_seed((self._seed * _SEED_STEP + self._restarts) & _LARGEST_SEED)

    # The user's optimizer.

    def _attach(self, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, optim.Optimizer):
            optimizer._device_state = self.read_state
            optimizer.ipu_state_is_dirty = not optimizer.host_state_is_dirty

    def _detach(self, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, optim.Optimizer):
            optimizer.get_state_dict()
            optimizer._device_state = None
            optimizer.ipu_state_is_dirty = False

    def _mark_newer(self, optimizer: torch.optim.Optimizer) -> None:
        if isinstance(optimizer, optim.Optimizer) and not optimizer.host_state_is_dirty:
            optimizer.ipu_state_is_dirty = True

    def _upload(self, optimizer: optim.Optimizer, with_values: bool) -> None:
        """Copies the state to the device, with its hyper-parameters unless newer ones were set."""
        state = optimizer.get_state_dict()
        optimizer.host_state_is_dirty = False
        values = state["ipu_param"] if with_values and not self._latch.newer_than_state else None
        self.write_state(state["ipu_state"], values)
        self._mark_newer(optimizer)
        logger.debug("Writing optimiser state tensors from host to IPU memory.")


def _without_modes() -> ContextManager[Any]:
    """Returns a context manager that disables the modes of the program, which an update in float32 does not need."""
    functions: ContextManager[Any] = torch._C.DisableTorchFunction()
    if not _len_torch_dispatch_stack():
        return functions
    stack = contextlib.ExitStack()
    stack.enter_context(functions)
    stack.enter_context(_disable_current_modes())
    return stack


def is_apart(device: torch.device) -> bool:
    """Whether a device works on while the host prepares what follows, so that reading its results costs time."""
    return device.type == "cuda"


def global_norm(gradients: Sequence[torch.Tensor]) -> float:
    """Returns the L2 norm of all gradients together."""
    return float(torch.stack(torch._foreach_norm(list(gradients))).norm().item())
