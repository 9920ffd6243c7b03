# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Collects the outputs that a call returns."""

from typing import Any, Callable, List, Optional, Sequence

import torch

from ..enums import OutputMode
from ..errors import createPoptorchError

# The dtypes of outputs in place of those that devices do not support.
HOST_DTYPES = {torch.int64: torch.int32, torch.float64: torch.float32}


class Selection:
    """Selects the micro-batches of a call whose outputs are returned. Replicas are the innermost loop.

    Args:
        mode: the output mode, other than Default.
        period: the period of OutputMode.EveryN.
        steps: the number of micro-batches of each replica in a call.
        replicas: the number of replicas in this process.
    """

    def __init__(self, mode: OutputMode, period: int, steps: int, replicas: int) -> None:
        self.sums = mode == OutputMode.Sum
        self.replicas = replicas
        kept = {
            OutputMode.All: range(steps),
            OutputMode.Sum: range(steps),
            OutputMode.Final: range(steps - 1, steps),
            OutputMode.EveryN: range(period - 1, steps, period),
        }[mode]
        self.keeps = [step in kept for step in range(steps) for _ in range(replicas)]
        self.count = replicas if self.sums else len(kept) * replicas
        self._all = all(self.keeps)

    @property
    def transfers(self) -> List[int]:
        """The micro-batches after which an output is returned. A sum is returned after its last micro-batches."""
        returned = [index for index, kept in enumerate(self.keeps) if kept]
        return returned[-self.replicas :] if self.sums else returned

    def within(self, first: int, count: int) -> Optional[Sequence[int]]:
        """Returns the selected positions among the `count` micro-batches from `first`; None if all are selected."""
        if self._all:
            return None
        return [position for position in range(count) if self.keeps[first + position]]


class Collector:
    """Collects one output tensor over the micro-batches of a call.

    Args:
        selection: the micro-batches to return.
        constant: whether the tensor is the same for all micro-batches and returned once.
        is_shared: returns whether a tensor shares memory with another one and must be copied.
        to_host: copies the output to the host.
    """

    def __init__(
        self,
        selection: Selection,
        constant: bool,
        is_shared: Callable[[torch.Tensor], bool],
        to_host: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self._selection = selection
        self._to_host = to_host
        self._constant = constant
        self._is_shared = is_shared
        self._kept: List[torch.Tensor] = []  # the first dimension is that of micro-batches
        self._single: Optional[torch.Tensor] = None
        self._sums: List[Any] = [None] * selection.replicas

    def add(self, value: torch.Tensor, first: int) -> None:
        """Adds the result of the selected micro-batch `first`."""
        selection, value = self._selection, value.detach()
        if self._constant or (selection.count == 1 and not selection.sums):
            self._single = value.clone() if self._constant or self._is_shared(value) else value
        elif selection.sums:
            self._add_to_sum(value, first % selection.replicas)
        else:
            self._kept.append(value.unsqueeze(0).clone() if self._is_shared(value) else value.unsqueeze(0))

    def add_folded(self, values: torch.Tensor, first: int, count: int) -> None:
        """Adds the results of `count` micro-batches from `first`, stacked in a new first dimension."""
        selection, values = self._selection, values.detach()
        if self._constant:
            self._single = values[0].clone()
        elif selection.sums:
            for replica in range(selection.replicas):
                start = (replica - first) % selection.replicas
                if start < count:
                    self._add_to_sum(values[start :: selection.replicas].sum(0, dtype=values.dtype), replica)
        else:
            kept = _at(values, selection.within(first, count))
            if len(kept):
                self._kept.append(kept.clone() if self._is_shared(kept) else kept)

    def _add_to_sum(self, value: torch.Tensor, replica: int) -> None:
        so_far = self._sums[replica]
        self._sums[replica] = value.clone() if so_far is None else so_far.add_(value)

    def result(self) -> torch.Tensor:
        """Returns the output of the call and resets the collector."""
        if self._single is not None:
            single, self._single = self._single, None
            return self._to_host(single)
        gathered = self._gathered()
        self.forget()
        return self._to_host(gathered)

    def forget(self) -> None:
        """Resets the collector."""
        self._kept, self._single, self._sums = [], None, [None] * self._selection.replicas

    def _gathered(self) -> torch.Tensor:
        pieces = self._kept or [value.unsqueeze(0) for value in self._sums]
        stacked = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if stacked.dim() == 1:  # scalars
            return stacked[0].clone() if self._selection.count == 1 else stacked
        return stacked.flatten(0, 1)


def _at(values: torch.Tensor, positions: Optional[Sequence[int]]) -> torch.Tensor:
    """Returns a copy of the values at the given positions, or all values for None. A view would keep all in memory."""
    if positions is None:
        return values
    if positions and positions[-1] - positions[0] + 1 == len(positions):
        return values[positions[0] : positions[-1] + 1].clone()
    return values[positions]


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copies a tensor to the host: contiguous, and of a dtype that devices have."""
    if tensor.device.type == "cpu" and tensor.dtype not in HOST_DTYPES:
        return tensor.contiguous()
    return tensor.to("cpu", HOST_DTYPES.get(tensor.dtype, tensor.dtype)).contiguous()


def seal(tensor: torch.Tensor) -> torch.Tensor:
    """Makes backward() on an output of a compiled model raise an error that explains the reason."""
    vars(tensor).update(backward=_refuse_backward, __getstate__=_plain_state)
    return tensor


def _refuse_backward(*args: Any, **kwargs: Any) -> None:
    raise createPoptorchError(
        "backward() cannot be called explicitly on outputs of a compiled model: each call of a trainingModel "
        "runs the backward pass and the weight update itself"
    )


def _plain_state() -> None:
    """Makes an output pickle as a plain tensor."""
