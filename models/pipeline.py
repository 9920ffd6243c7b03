# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Pipeline stages in PopTorch's terms: blocks that begin at modules of a model."""

from typing import Any, Sequence

from torch import nn

import accelerator
from planning.placement import Stage

from .swin_transformer import SwinTransformerBlock


def annotate(model: nn.Module, stages: Sequence[Stage], recompute: bool) -> None:
    """Marks the stages on a Swin Transformer, and what the backward pass finds kept.

    The marks are hooks: the state dict, the classes and a run outside PopTorch stay as they are. For PopTorch what
    precedes the first mark is stage 0 on IPU 0, and AutoStage.AutoIncrement counts on from there, so that the first
    stage has none.

    Args:
        model: the model whose modules the stages name.
        stages: from `pipeline_stages`.
        recompute: keep only the outputs of the blocks; the backward pass computes the rest again.
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
