# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The common base of the optimizers in `optim`: variable attributes, accumulation types, and state on the device."""

from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch

from ._logging import logger

STATE_KEYS = ("ipu_state", "ipu_param")
_ACCUMULATION_TYPES = (torch.float16, torch.float32)
_NO_STATE = dict.fromkeys(STATE_KEYS)


class VariableAttributes:
    """The attributes of an optimizer that may change after compilation.

    Args:
        variable_attributes: names of the attributes that are variable initially.
        allowed_attributes: names of all attributes.
    """

    def __init__(self, variable_attributes: List[str], allowed_attributes: List[str]) -> None:
        self._variable_attributes = list(variable_attributes)
        self._allowed_attributes = list(allowed_attributes)

    def isConstant(self, attr: str) -> bool:
        """Returns whether the value of `attr` is compiled into the program."""
        return attr not in self._variable_attributes

    def markAsConstant(self, attr: str) -> None:
        """Makes `attr` constant. Call before compilation.

        Raises:
            AssertionError: if the optimizer has no such attribute.
        """
        self._check(attr)
        if attr in self._variable_attributes:
            self._variable_attributes.remove(attr)

    def markAsVariable(self, attr: str) -> None:
        """Makes `attr` variable. Call before compilation.

        Raises:
            AssertionError: if the optimizer has no such attribute.
        """
        self._check(attr)
        if attr not in self._variable_attributes:
            self._variable_attributes.append(attr)

    def _check(self, attr: str) -> None:
        if attr not in self._allowed_attributes:
            raise AssertionError(f"No optimizer attribute {attr!r}: use one of {sorted(self._allowed_attributes)}")


if TYPE_CHECKING:
    _Mixed = torch.optim.Optimizer  # the other base of every optimizer in `optim`
else:
    _Mixed = object


class Optimizer(_Mixed):
    """The base class of PopTorch's optimizers, which manages the state on the device.

    Attributes:
        ipu_state_is_dirty: whether the device has a newer state than this object. It is copied when it is read.
        host_state_is_dirty: whether a state was loaded that the device does not have yet. It is copied at the next run
            or attach.
    """

    # Attributes beyond torch's that copies and pickles keep.
    _kept: Tuple[str, ...] = ("loss_scaling", "accum_type", "variable_attrs")

    def __init__(self) -> None:
        self._state_dict: Dict[str, Any] = dict(_NO_STATE)
        self._device_state: Optional[Callable[[], Tuple[Dict[str, Any], Dict[str, Any]]]] = None
        self.ipu_state_is_dirty = False
        self.host_state_is_dirty = False

    def state_dict(self) -> Dict[str, Any]:
        """Returns torch's state dict with two additional entries: `ipu_state` and `ipu_param`.

        They are dicts of tensors by name, or None before compilation. torch's own `state` is empty unless `step()` was
        called on the host.
        """
        return {**self.get_state_dict(), **super().state_dict()}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Loads a state dict of one of PopTorch's optimizers. It is copied to the device at the next run.

        Raises:
            RuntimeError: if `state` is empty, or not from an optimizer that ran on a device.
        """
        self.set_state_dict(state)
        super().load_state_dict({key: state[key] for key in ("state", "param_groups")})

    def get_state_dict(self) -> Dict[str, Any]:
        """Returns `ipu_state` and `ipu_param`, copied from the device if it ran since they were last read."""
        if self.ipu_state_is_dirty and self._device_state is not None:
            logger.debug("Writing optimiser state tensors from IPU to host.")
            self._state_dict = dict(zip(STATE_KEYS, self._device_state()))
            self.ipu_state_is_dirty = False
        elif self._device_state is not None:
            logger.debug("Using cached optimiser state.")
        return dict(self._state_dict)

    def set_state_dict(self, state: Dict[str, Any]) -> None:
        """Loads `ipu_state` and `ipu_param` of `state`. They are copied to the device at the next run.

        Raises:
            RuntimeError: if `state` is empty or does not have these entries.
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
        """Returns whether there is a state of a device."""
        return any(part is not None for part in self._state_dict.values())

    def __getstate__(self) -> Dict[str, Any]:
        self.get_state_dict()
        kept = ("_state_dict", "host_state_is_dirty") + self._kept
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        if "_state_dict" not in vars(self):  # torch's load_state_dict calls this on a complete object too
            Optimizer.__init__(self)
        super().__setstate__(state)

    def _set_types(self, loss_scaling: Optional[float], **types: Optional[torch.dtype]) -> None:
        self.loss_scaling = default_to(loss_scaling, 1.0)
        for name, dtype in types.items():
            dtype = default_to(dtype, torch.float32)
            if dtype not in _ACCUMULATION_TYPES:
                raise AssertionError(
                    f"Accumulation types must be either torch.float32 or torch.float16, but {name} is {dtype}"
                )
            setattr(self, name, dtype)

    def _keep_betas(self, betas: Optional[Tuple[float, float]]) -> None:
        """Restores `betas` as given: recent versions of torch convert lists to tuples, but a device rejects lists."""
        if betas is not None:
            made, self.defaults["betas"] = self.defaults["betas"], betas
            for group in self.param_groups:
                group["betas"] = betas if group["betas"] is made else group["betas"]

    def _declare(self, given: Dict[str, Any], extra: Iterable[str] = ()) -> None:
        """Makes the attributes in `given` variable, and the others of torch's class and of `extra` constant."""
        allowed = [*self.defaults, "loss_scaling", *extra]
        self.variable_attrs = VariableAttributes([name for name in given if name in allowed], allowed)


def given_arguments(**arguments: Any) -> Dict[str, Any]:
    """Returns the arguments that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}


def default_to(value: Any, default: Any) -> Any:
    """Returns `value`, or `default` if it is None."""
    return default if value is None else value
