# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Which micro-batches' results a call returns, and in which shape."""

from typing import Any, Callable, List, Optional, Sequence

import torch

from ..enums import OutputMode
from ..errors import createPoptorchError

# What the host gets instead of a dtype that devices do not have.
HOST_DTYPES = {torch.int64: torch.int32, torch.float64: torch.float32}


class Selection:
    """The micro-batches of a call whose results are returned, in the order of execution: replicas are innermost.

    Args:
        mode: anything but Default.
        period: of EveryN.
        steps: micro-batches of each replica in a call.
        replicas: in this process.
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
        """The micro-batches after which something is returned: of a sum, those that complete it."""
        returned = [index for index, kept in enumerate(self.keeps) if kept]
        return returned[-self.replicas :] if self.sums else returned

    def within(self, first: int, count: int) -> Optional[Sequence[int]]:
        """Positions that are kept among the `count` micro-batches from `first` on; None when all are."""
        if self._all:
            return None
        return [position for position in range(count) if self.keeps[first + position]]


class Collector:
    """Gathers one output tensor of the micro-batches of a call.

    Args:
        selection: the micro-batches that count.
        constant: the tensor is the same for all, and returned once.
        is_shared: whether a tensor's memory belongs to somebody else, so that it must be copied.
    """

    def __init__(self, selection: Selection, constant: bool, is_shared: Callable[[torch.Tensor], bool]) -> None:
        self._selection = selection
        self._constant = constant
        self._is_shared = is_shared
        self._kept: List[torch.Tensor] = []  # each with a first dimension of micro-batches
        self._single: Optional[torch.Tensor] = None
        self._sums: List[Any] = [None] * selection.replicas

    def add(self, value: torch.Tensor, first: int) -> None:
        """The result of micro-batch `first`, which is one of those that are kept."""
        selection, value = self._selection, value.detach()
        if self._constant or (selection.count == 1 and not selection.sums):
            self._single = value.clone() if self._constant or self._is_shared(value) else value
        elif selection.sums:
            self._add_to_sum(value, first % selection.replicas)
        else:
            self._kept.append(value.unsqueeze(0).clone() if self._is_shared(value) else value.unsqueeze(0))

    def add_folded(self, values: torch.Tensor, first: int, count: int) -> None:
        """The results of `count` micro-batches from `first` on, one behind the other in a new first dimension."""
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
        """What the call returns for this output. The next call begins afresh."""
        if self._single is not None:
            single, self._single = self._single, None
            return to_host(single)
        gathered = self._gathered()
        self.forget()
        return to_host(gathered)

    def forget(self) -> None:
        """Drops what was added so far."""
        self._kept, self._single, self._sums = [], None, [None] * self._selection.replicas

    def _gathered(self) -> torch.Tensor:
        pieces = self._kept or [value.unsqueeze(0) for value in self._sums]
        stacked = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if stacked.dim() == 1:  # scalars
            return stacked[0].clone() if self._selection.count == 1 else stacked
        return stacked.flatten(0, 1)


def _at(values: torch.Tensor, positions: Optional[Sequence[int]]) -> torch.Tensor:
    """A copy of the values at these positions, which does not keep the others in memory; all themselves for None."""
    if positions is None:
        return values
    if positions and positions[-1] - positions[0] + 1 == len(positions):
        return values[positions[0] : positions[-1] + 1].clone()
    return values[positions]


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as the host gets it: dense, and of a dtype that devices have."""
    if tensor.device.type == "cpu" and tensor.dtype not in HOST_DTYPES:
        return tensor.contiguous()
    return tensor.to("cpu", HOST_DTYPES.get(tensor.dtype, tensor.dtype)).contiguous()


def seal(tensor: torch.Tensor) -> torch.Tensor:
    """Marks a tensor as a compiled model's output: backward() on it says why that is not possible."""
    tensor.backward, tensor.__getstate__ = _refuse_backward, _plain_state
    return tensor


def _refuse_backward(*args: Any, **kwargs: Any) -> None:
    raise createPoptorchError(
        "backward() cannot be called explicitly on outputs of a compiled model: a trainingModel "
        "runs the backward pass and the weight update itself, at each call"
    )


def _plain_state() -> None:
    """Pickles of an output hold a plain tensor."""
