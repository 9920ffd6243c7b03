# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""When running statistics of norms change: at the end of a micro-batch in training, and never in inference.

PopART's batch norm does not write to its inputs. Its new statistics are separate results, which the variable updates
of a training session copy into the buffers after the micro-batch, those of the last batch norm if several share a
buffer. Instance norms compute none. (willow/src/op/batchnorm.cpp and Ir::constructBackwards in graphcore/popart)
"""

import inspect
from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# The functions through which modules compute, with the argument that has them compute statistics.
_COMPUTES: Dict[Callable[..., Any], str] = {
    functional.batch_norm: "training",
    functional.instance_norm: "use_input_stats",
}
_SIGNATURES = {function: inspect.signature(function) for function in _COMPUTES}


class NormStatistics(TorchFunctionMode):
    """A context manager in which norms leave running statistics as they are; `end_micro_batch` writes the new ones."""

    def __init__(self) -> None:
        super().__init__()
        self._new: Dict[int, Tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _COMPUTES:
            return func(*args, **kwargs)
        given = _SIGNATURES[func].bind(*args, **kwargs)
        given.apply_defaults()
        if given.arguments[_COMPUTES[func]]:
            for name in ("running_mean", "running_var"):
                buffer = given.arguments[name]
                if buffer is not None:
                    copy = given.arguments[name] = buffer.detach().clone()
                    if func is functional.batch_norm:
                        self._new[id(buffer)] = (buffer, copy)
        return func(*given.args, **given.kwargs)

    def end_micro_batch(self, training: bool) -> None:
        """Copies the new statistics of a micro-batch into the buffers in training, and drops them in inference."""
        if training:
            with torch.no_grad():
                for buffer, new in self._new.values():
                    buffer.copy_(new)
        self._new.clear()
