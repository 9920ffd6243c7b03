# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Support for the device name "ipu" in forward."""

from typing import Any, Dict, Optional, Tuple

import torch
from torch.overrides import TorchFunctionMode

IPU = torch.device("ipu", 0)  # what the tensors of a forward say they are on
_TO_IPU: Any = torch.Tensor.ipu  # type: ignore[attr-defined]  # torch's stubs leave it out


class IpuAsHost(TorchFunctionMode):
    """A context manager in which `device="ipu"`, `.to("ipu")` and `.ipu()` refer to `device`.

    Attributes:
        met: whether one of them was used, apart from the object IPU, which a tensor has only while a model is compiled.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.met = False

    def __torch_function__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:  # replaced where it is used
            return func(*args, **kwargs)
        if func is _TO_IPU:
            self.met = True
            return args[0].to(self._device)
        return func(*map(self._on_host, args), **{name: self._on_host(value) for name, value in kwargs.items()})

    def _on_host(self, value: Any) -> Any:
        if isinstance(value, (str, torch.device)) and str(value).split(":")[0] == "ipu":
            self.met |= value is not IPU
            return self._device
        return value
