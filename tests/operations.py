# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Which operations a forward pass is made of."""

from typing import Any, Set

from poptorch_host.compiling.supported_ops import selects_by_mask, takes_operation
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Names of the operations that run, with what a compiler for IPUs would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Set[str] = set()
        self.refused: Set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.names.add(name)
        if not takes_operation(name) or selects_by_mask(name, args):
            self.refused.add(name)
        return func(*args, **(kwargs or {}))
