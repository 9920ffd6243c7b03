# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Pipeline stages as PopTorch blocks, which begin at modules of a model."""

from typing import Any, Sequence

from torch import nn

import accelerator
from planning.placement import Stage

from .swin_transformer import SwinTransformerBlock


def annotate(model: nn.Module, stages: Sequence[Stage], recompute: bool) -> None:
    """Marks the stages of a Swin Transformer, and the outputs kept for the backward pass.

    The marks are hooks: they do not affect the state dict, the classes, or runs outside PopTorch. The first stage needs
    no mark: for PopTorch everything before the first mark is stage 0 on IPU 0, and AutoStage.AutoIncrement counts from
    there.

    Args:
        model: the model with the modules named by the stages.
        stages: from `pipeline_stages`.
        recompute: keep only the outputs of the blocks; the backward pass recomputes the rest.
    """
    poptorch = accelerator.poptorch()
    for stage in stages[1:]:
        poptorch.BeginBlock(model.get_submodule(stage.module), stage.block_id, stage.ipu)
    if recompute:
        for block in model.modules():
            if isinstance(block, SwinTransformerBlock):
                block.register_forward_hook(_keep_output)


def _keep_output(module: nn.Module, inputs: Any, output: Any) -> Any:
    return accelerator.poptorch().recomputationCheckpoint(output)
