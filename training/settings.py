# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""For --plan, which builds nothing: the refusals of a run for settings that its parts check when they are built."""

from yacs.config import CfgNode

from config import defaults
from configs.checks import check_files


def check_settings(config: CfgNode) -> None:
    """Raises the `Refusal` of a run for settings that neither a data set nor a device can make right.

    Imports torch and timm only for settings that they alone can check.
    """
    has_files = config.DATA.DATASET != "generated"
    if has_files:
        check_files(config)
    if has_files and config.AUG.AUTO_AUGMENT not in ("", defaults().AUG.AUTO_AUGMENT):
        from dataset.transforms import build_transform

        build_transform(config, training=True)
    if config.TRAIN.FREEZE:
        import torch

        from models.build import MODELS
        from models.freezing import freeze
        from planning.geometry import configured_classes

        with torch.device("meta"):
            model = MODELS[config.MODEL.TYPE](config, configured_classes(config))
        freeze(model, config.TRAIN.FREEZE)
