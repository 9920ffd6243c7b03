# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Blocks, which assign parts of forward to devices."""

import functools
from typing import Any, Callable, Optional

import torch

from ..context import current
from ..errors import check, createPoptorchError


class Block(torch.nn.Module):
    """A context manager for the operations of a block.

    After it, no block is active, not even an enclosing one, and a compiled model must begin a new block before the next
    operation. Outside a compiled model, a block has no effect.

    Args:
        user_id: the id of the block, for execution strategies; None for the next automatic one: '0', '1', ...
        ipu_id: the device to run on.
    """

    def __init__(self, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        super().__init__()
        self._user_id = user_id
        self._ipu_id = ipu_id

    @staticmethod
    def useAutoId() -> None:
        """Restarts the automatic ids. Call at the beginning of a forward whose blocks have no user_id."""
        execution = current()
        if execution is not None:
            execution.restart_block_ids()

    @staticmethod
    def start(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        """Begins a block that lasts until the next one begins."""
        execution = current()
        if execution is not None:
            execution.begin_block(execution.automatic_block_id() if user_id is None else user_id, ipu_id)

    def __enter__(self) -> "Block":
        Block.start(self._user_id, self._ipu_id)
        return self

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        execution = current()
        if execution is not None:
            execution.end_block()


class LegacyBeginBlockFn(torch.nn.Module):
    """A callable that begins a block and calls `layer_to_call`. `BeginBlock` returns one for a function."""

    def __init__(
        self, layer_to_call: Callable[..., Any], user_id: Optional[str] = None, ipu_id: Optional[int] = None
    ) -> None:
        super().__init__()
        self._layer_to_call = layer_to_call
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __call__(self, *input: Any, **kwargs: Any) -> Any:
        Block.start(self._user_id, self._ipu_id)
        return self._layer_to_call(*input, **kwargs)


class BeginBlockHook:
    """The forward pre-hook that begins a block. A class, so that it can be found, copied and pickled."""

    def __init__(self, user_id: Optional[str], ipu_id: Optional[int]) -> None:
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __call__(self, module: torch.nn.Module, inputs: Any) -> None:
        Block.start(self._user_id, self._ipu_id)

    def __repr__(self) -> str:
        return f"BeginBlock(user_id={self._user_id}, ipu_id={self._ipu_id})"


def block_of(module: torch.nn.Module) -> Optional[BeginBlockHook]:
    """Returns the hook by which `module` begins a block, or None."""
    hooks = module._forward_pre_hooks.values()
    return next((hook for hook in hooks if isinstance(hook, BeginBlockHook)), None)


def BeginBlock(
    layer_to_call: torch.nn.Module, user_id: Optional[str] = None, ipu_id: Optional[int] = None
) -> torch.nn.Module:
    """Begins a block whenever `layer_to_call` is called; the block lasts until the next begins.

    Args:
        layer_to_call: a module, which is returned, or a callable, which is wrapped.
        user_id: the id of the block; None for an automatic one at each call.
        ipu_id: the device to run on.

    Raises:
        Error: for a module that already begins a block, or an object that is not callable.
    """
    if isinstance(layer_to_call, torch.nn.Module):
        if block_of(layer_to_call) is not None:
            raise createPoptorchError(
                f"this {type(layer_to_call).__name__} module has already been assigned to a block: "
                f"{block_of(layer_to_call)}"
            )
        layer_to_call.register_forward_pre_hook(BeginBlockHook(user_id, ipu_id))
        return layer_to_call
    if not callable(layer_to_call):
        raise createPoptorchError(f"BeginBlock needs a module or a callable, not {type(layer_to_call).__name__}")
    return LegacyBeginBlockFn(layer_to_call, user_id, ipu_id)


def BlockFunction(
    user_id: Optional[str] = None, ipu_id: Optional[int] = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that runs a function inside a `Block`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def in_block(*args: Any, **kwargs: Any) -> Any:
            with Block(user_id, ipu_id):
                return function(*args, **kwargs)

        return in_block

    return decorate


def removeBlocks(module: torch.nn.Module) -> None:
    """Removes the blocks that `BeginBlock` has added to `module` and its submodules."""
    check(isinstance(module, torch.nn.Module), f"removeBlocks needs a torch.nn.Module, not {type(module).__name__}")
    for part in module.modules():
        hooks = part._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, BeginBlockHook)]:
            del hooks[key]
