# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The same Swin Transformers of other packages, for comparisons."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import timm
from torch import nn

from config import get_config


def peers(cfg: str, official: Optional[Path] = None, only: Optional[str] = None) -> Dict[str, nn.Module]:
    """The models of timm, torchvision and, where they are at hand, transformers and the official repository.

    Args:
        cfg: SWIN_TINY, SWIN_SMALL or SWIN_BASE.
        official: a checkout of the official repository.
        only: the name of the one to build; None: all.
    """
    config = get_config(cfg)
    makers: Dict[str, Callable[[Any], nn.Module]] = {"timm": _timm, "torchvision": _torchvision}
    if importlib.util.find_spec("transformers") is not None:
        makers["transformers"] = _transformers
    if official is not None:
        makers["official"] = lambda config: _official(config, official)
    return {name: make(config) for name, make in makers.items() if only in (None, name)}


def _timm(config: Any) -> nn.Module:
    return timm.create_model(config.MODEL.NAME, drop_path_rate=config.MODEL.DROP_PATH_RATE)


def _torchvision(config: Any) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    swin = config.MODEL.SWIN
    return models.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        window_size=[7, 7],
        stochastic_depth_prob=config.MODEL.DROP_PATH_RATE,
    )


def _transformers(config: Any) -> nn.Module:
    transformers = importlib.import_module("transformers")
    swin = config.MODEL.SWIN
    settings = transformers.SwinConfig(
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        drop_path_rate=config.MODEL.DROP_PATH_RATE,
        num_labels=1000,
    )
    return transformers.SwinForImageClassification(settings)


def _official(config: Any, checkout: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("official_swin", checkout / "models" / "swin_transformer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    swin = config.MODEL.SWIN
    return module.SwinTransformer(
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        drop_path_rate=config.MODEL.DROP_PATH_RATE,
    )
