# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Programs that call the device of their tensors "ipu": here it is the one that stands for it."""

from typing import Any, Dict, Optional, Tuple

import torch
from torch.overrides import TorchFunctionMode


class IpuAsHost(TorchFunctionMode):
    """Inside, `device="ipu"`, `.to("ipu")` and `.ipu()` mean `device`.

    Attributes:
        met: whether that has happened.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self.met = False

    def __torch_function__(self, func: Any, types: Any, args: Tuple = (), kwargs: Optional[Dict] = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:  # a name only becomes a place where it is used
            return func(*args, **kwargs)
        if func is torch.Tensor.ipu:
            self.met = True
            return args[0].to(self._device)
        return func(*map(self._on_host, args), **{name: self._on_host(value) for name, value in kwargs.items()})

    def _on_host(self, value: Any) -> Any:
        if isinstance(value, (str, torch.device)) and str(value).split(":")[0] == "ipu":
            self.met = True
            return self._device
        return value
