# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Text representation of modules, with their blocks."""

import builtins
from typing import Any

import torch

from .operators.blocks import block_of


def module_repr(m: torch.nn.Module) -> str:
    """Returns repr(m) with BeginBlock(...) in front of every module that begins a block."""
    lines = [line for line in m.extra_repr().split("\n") if line]
    parts = [f"({name}): {module_repr(child)}".replace("\n", "\n  ") for name, child in m.named_children()]
    block = block_of(m)
    name: str = m._get_name()
    head = f"{block} {name}(" if block else f"{name}("
    if len(lines) == 1 and not parts:
        return f"{head}{lines[0]})"
    if not lines and not parts:
        return f"{head})"
    return head + "".join(f"\n  {line}" for line in lines + parts) + "\n)"


def print(m: Any) -> None:
    """Prints `module_repr(m)` for a module, and any other value like the built-in print."""
    builtins.print(module_repr(m) if isinstance(m, torch.nn.Module) else m)
