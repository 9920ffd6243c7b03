# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Internal tensors that a program reads by name: weights, gradients, the loss, and optimizer state."""

from typing import Any, Dict, List, Optional, Tuple

import torch

from ..enums import OutputMode
from ..errors import check, createPoptorchError
from ..options import Options
from ..updating.update import WeightUpdate
from ..weights.device import DeviceWeights
from .outputs import Collector, Selection, to_host

GRADIENT = "Gradient___"
UPDATED = "UpdatedVar___"
LOSS = "loss"
LOSS_SCALE = "finalLossScale"


class Anchors:
    """The anchored tensors of a program, by short name.

    A gradient is that of one micro-batch, multiplied by the loss scale, as on a device. An updated weight is its value
    after the weight update that follows the micro-batch. States and hyper-parameters of the optimizer have the names in
    its state dict.

    Args:
        options: the executor's options.
        weights: the weights on the device.
        update: the weight update; None for inference.
        steps: the number of micro-batches of a replica in a call.

    Raises:
        Error: for an unknown tensor name.
    """

    def __init__(self, options: Options, weights: DeviceWeights, update: Optional[WeightUpdate], steps: int) -> None:
        self._wanted = dict(options.anchored_tensors)
        self._tensors = dict(weights.named_tensors())
        self._update = update
        self._options = options
        self._steps = steps
        self._gradients: Dict[str, torch.Tensor] = {}
        self._selections = {short_name: self._selection(anchor) for short_name, anchor in self._wanted.items()}
        self._collectors: Dict[str, Collector] = {}
        self._before_update: List[Tuple[str, str, int]] = []  # to be collected after the weight update
        self._results: Dict[str, torch.Tensor] = {}
        for short_name, (long_name, *_) in self._wanted.items():
            if long_name not in self.names():
                raise createPoptorchError(
                    f"anchorTensor {short_name}: no tensor is called {long_name}; "
                    "getTensorNames() of a compiled model lists them"
                )
        for name in {anchor[0] for anchor in self._wanted.values() if anchor[0].startswith(GRADIENT)}:
            self._tensors[name[len(GRADIENT) :]].register_hook(lambda gradient, name=name: self._keep(name, gradient))

    def names(self) -> List[str]:
        """Returns the names of all tensors that can be anchored."""
        names = list(self._tensors)
        if self._update is not None:
            names += [
                prefix + name
                for prefix in (GRADIENT, UPDATED)
                for name, tensor in self._tensors.items()
                if tensor.requires_grad
            ]
            state, values = self._update.read_state()
            names += [LOSS, LOSS_SCALE, *state, *values]
        return names

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def begin_call(self) -> None:
        """Called when a call begins."""
        self._before_update = []
        self._collectors = {
            short_name: Collector(selection, False, lambda _: True, to_host)
            for short_name, selection in self._selections.items()
        }

    def collect(self, index: int, loss: Optional[torch.Tensor]) -> None:
        """Called after micro-batch `index`."""
        for short_name, (long_name, *_) in self._wanted.items():
            if not self._selections[short_name].keeps[index]:
                continue
            if long_name.startswith(UPDATED):
                self._before_update.append((short_name, long_name[len(UPDATED) :], index))
            else:
                self._collectors[short_name].add(self._value(long_name, loss), index)

    def collect_updated(self) -> None:
        """Called after the weight update that follows the last collected micro-batches."""
        for short_name, weight, index in self._before_update:
            self._collectors[short_name].add(self._tensors[weight], index)
        self._before_update = []

    def end_call(self) -> None:
        """Called when the call ends. Collected values can be read from then on."""
        self._results = {name: collector.result() for name, collector in self._collectors.items()}

    def get(self, short_name: str) -> torch.Tensor:
        """Returns the value in the last call. Raises AssertionError for an unknown name, or before a call."""
        check(short_name in self._wanted, f"no tensor is anchored as {short_name}: use Options.anchorTensor")
        check(short_name in self._results, f"anchored tensor {short_name} has no value yet: run the model first")
        return self._results[short_name]

    def _selection(self, anchor: List[Any]) -> Selection:
        _, follows_model, mode, period = anchor
        if follows_model or mode == OutputMode.Default:
            mode, period = OutputMode(self._options.output_mode), self._options.output_return_period
        return Selection(mode, period, self._steps, self._options.replication_factor)

    def _keep(self, name: str, gradient: torch.Tensor) -> None:
        self._gradients[name] = gradient.detach().clone()

    def _value(self, name: str, loss: Optional[torch.Tensor]) -> torch.Tensor:
        if name in self._tensors:
            return self._tensors[name]
        if name.startswith(GRADIENT):
            return self._gradients.get(name, torch.zeros_like(self._tensors[name[len(GRADIENT) :]]))
        assert self._update is not None and loss is not None  # all other names exist in training only
        if name == LOSS:
            return loss
        if name == LOSS_SCALE:
            return torch.tensor(self._update.loss_scale)
        state, values = self._update.read_state()
        return state[name] if name in state else values[name]
