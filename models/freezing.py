# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Frozen weights: TRAIN.FREEZE."""

from fnmatch import fnmatchcase
from typing import List, Sequence, Union

from common.errors import Refusal
from common.logs import logger
from utils import nearest

from .swin_transformer import SwinTransformer

EMBEDDING = ("patch_embed", "absolute_pos_embed")


def freeze(model: SwinTransformer, what: Union[int, Sequence[str]]) -> None:
    """Excludes weights from training: they get no gradient, no update and no optimizer state.

    If all weights below a layer are frozen, the backward pass ends there. Dropout and drop path are unchanged.

    Args:
        what: names of parameters, names of modules (all their parameters), and patterns of names with * and ?; or n
            for the embedding and the layers below n.

    Raises:
        Refusal: for a pattern that no parameter matches, and if nothing is left to train.
    """
    patterns = _below(model, what) if isinstance(what, int) else what
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        frozen = [name for name in parameters if _matches(name, pattern)]
        if not frozen:
            known = [*parameters, *(name for name, _ in model.named_modules() if name)]
            raise Refusal(f"TRAIN.FREEZE {pattern}: no parameter matches{nearest(pattern, known)}")
        for name in frozen:
            parameters[name].requires_grad_(False)
    if not patterns:
        return
    left = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    if not left:
        raise Refusal(f"TRAIN.FREEZE {what} leaves nothing to train")
    total = sum(parameter.numel() for parameter in parameters.values())
    logger.info("frozen: %s; %.2f of %.2f million parameters are trained", what, left / 1e6, total / 1e6)


def _below(model: SwinTransformer, layers: int) -> List[str]:
    """The patterns of the embedding and of the layers below a layer; none for 0."""
    if not layers:
        return []
    names = [name for name in EMBEDDING if getattr(model, name) is not None]
    return names + [f"layers.{layer}" for layer in range(layers)]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)
