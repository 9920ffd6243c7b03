# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The forward and backward pass of a model under torch.compile, for CPUs and GPUs."""

import time
from typing import Any, Dict, Optional, Set, Tuple

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _len_torch_dispatch_stack
from torch.utils.checkpoint import checkpoint

import accelerator
from common.errors import Refusal
from common.logs import logger
from utils import one_line

from .swin_transformer import SwinTransformer

OLDEST = (2, 5)  # older compiled functions keep their initial weights, which poptorch_host replaces


def check_compiler() -> None:
    """Checks that torch.compile works here, by compiling a sum.

    Raises:
        Refusal: if it does not, or has no meaning on the device.
    """
    if accelerator.is_ipu():
        raise Refusal("TRAIN.COMPILE is for CPUs and GPUs; PopTorch compiles for IPUs anyway: leave --compile out")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise Refusal(
            f"TRAIN.COMPILE needs PyTorch {needed} or later, this is {torch.__version__}: leave --compile out"
        )
    try:
        torch.compile(_add)(torch.zeros(2, device=accelerator.device_type()))
    except (RuntimeError, ImportError, OSError) as error:
        said = one_line(str(error).partition("Set TORCH")[0])  # without hints for debugging PyTorch
        raise Refusal(
            f"TRAIN.COMPILE: torch.compile does not work here ({said[:300]}): install a C++ compiler "
            "with Python's headers (apt install g++ python3-dev), or leave --compile out"
        ) from error


def _add(numbers: Tensor) -> Tensor:
    return numbers + 1


def is_watched() -> bool:
    """Whether operations are being traced or transformed, as by PopTorch's compiler: nothing may be compiled then."""
    return _len_torch_dispatch_stack() > 0 or _are_functorch_transforms_active()


class CompiledNetwork:
    """Runs a model's network under torch.compile, which compiles at the first call of each kind; logs this."""

    def __init__(self) -> None:
        self._function: Optional[Any] = None
        self._begun: Dict[Tuple[Any, ...], float] = {}
        self._told: Set[Tuple[Any, ...]] = set()

    def __call__(self, model: SwinTransformer, images: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> logits (B, num_classes)."""
        if self._function is None:
            self._function = torch.compile(network, dynamic=False)
        differentiable = torch.is_grad_enabled()
        kind = (images.shape, images.dtype, model.training, differentiable)
        if kind in self._begun and kind not in self._told:  # a backward pass is compiled when it first runs
            self._tell(kind, "training step")
        self._begun.setdefault(kind, time.monotonic())
        logits = self._function(model, images)
        if not differentiable and kind not in self._told:
            self._tell(kind, "evaluation")
        return logits

    def _tell(self, kind: Tuple[Any, ...], what: str) -> None:
        self._told.add(kind)
        seconds = time.monotonic() - self._begun[kind]
        logger.info("torch.compile: the first %s took %.1f seconds; see the throughput of later ones", what, seconds)

    def __reduce__(self) -> Tuple[Any, ...]:
        return CompiledNetwork, ()  # copied or loaded models compile again


def network(model: SwinTransformer, images: Tensor) -> Tensor:
    """The forward pass of a model without its hooks, which mark blocks for PopTorch and would break the graph."""
    x = model.embed(images)
    for layer in model.layers:
        for block in layer.blocks:  # type: ignore[union-attr]
            x = checkpoint(block.forward, x, use_reentrant=False) if layer.use_checkpoint else block.forward(x)
        x = x if layer.downsample is None else layer.downsample.forward(x)  # type: ignore[union-attr]
    return model.head(model.pool(x))
