# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Configuration and model -> poptorch.optim optimizer with parameter groups."""

import math
from typing import Any, Dict, List

import torch
from yacs.config import CfgNode

import accelerator
from common.launch import Launch
from models.swin_transformer import SwinTransformer
from options import half_weights


def build_optimizer(config: CfgNode, model: SwinTransformer, launch: Launch) -> Any:
    """The optimizer of TRAIN.OPTIMIZER, with the learning rate scaled to the global batch size.

    The learning rate is passed to the constructor, so that PopTorch keeps it variable and a schedule can change it
    after compilation. With float16 weights, gradients and first moments are float16, too; second moments stay float32,
    since they are squares and would underflow.
    """
    poptorch = accelerator.poptorch()
    half = half_weights(config)
    settings = config.TRAIN.OPTIMIZER
    common = dict(
        lr=config.TRAIN.BASE_LR * launch.learning_rate_factor(config),
        weight_decay=config.TRAIN.WEIGHT_DECAY,
        loss_scaling=config.TRAIN.LOSS_SCALING,
        max_grad_norm=config.TRAIN.CLIP_GRAD or math.inf,
        accum_type=torch.float16 if half else torch.float32,
    )
    moment_type = common["accum_type"]
    groups = parameter_groups(config, model)
    if settings.NAME == "sgd":
        return poptorch.optim.SGD(
            groups,
            momentum=settings.MOMENTUM,
            nesterov=settings.MOMENTUM > 0,
            velocity_accum_type=moment_type,
            **common,
        )
    return poptorch.optim.AdamW(
        groups,
        betas=tuple(settings.BETAS),
        eps=settings.EPS,
        bias_correction=True,
        first_order_momentum_accum_type=moment_type,
        second_order_momentum_accum_type=torch.float32,
        **common,
    )


def parameter_groups(config: CfgNode, model: SwinTransformer) -> List[Dict[str, Any]]:
    """Two parameter groups, with and without weight decay.

    Vectors (norms and biases) are not decayed, nor are the parameters named by `no_weight_decay` and
    `no_weight_decay_keywords`: position embeddings and relative position bias tables (Swin paper, appendix A2.1).
    """
    names, keywords = model.no_weight_decay(), model.no_weight_decay_keywords()
    decayed: List[torch.nn.Parameter] = []
    plain: List[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim <= 1 or name in names or any(keyword in name for keyword in keywords)
        (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": config.TRAIN.WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
