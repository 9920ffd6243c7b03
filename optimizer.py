# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Configuration and model -> poptorch.optim optimizer with parameter groups."""

import math
from typing import Any, Dict, List, Sequence, Tuple

import torch
from yacs.config import CfgNode

import accelerator
from common.launch import Launch
from configs.checks import CLIPPING
from models.swin_transformer import SwinTransformer
from options import half_weights
from planning.geometry import architecture


def build_optimizer(config: CfgNode, model: SwinTransformer, launch: Launch) -> Any:
    """The optimizer of TRAIN.OPTIMIZER, with the learning rate scaled to the global batch size.

    The learning rate is passed to the constructor, which makes PopTorch keep it variable: the schedule changes it after
    compilation. With float16 weights, accumulated gradients and first moments are float16 as well; second moments stay
    float32, since squares would underflow.
    """
    optim, settings = accelerator.poptorch().optim, config.TRAIN.OPTIMIZER
    accumulators = torch.float16 if half_weights(config) else torch.float32
    rate = config.TRAIN.BASE_LR * launch.learning_rate_factor(config)
    common: Dict[str, Any] = dict(
        params=parameter_groups(config, model, rate),
        lr=rate,
        weight_decay=config.TRAIN.WEIGHT_DECAY,
        loss_scaling=config.TRAIN.LOSS_SCALING,
        accum_type=accumulators,
    )
    if settings.NAME in CLIPPING:
        common["max_grad_norm"] = config.TRAIN.CLIP_GRAD or math.inf
    if settings.NAME == "sgd":
        momentum = settings.MOMENTUM
        return optim.SGD(momentum=momentum, nesterov=momentum > 0, velocity_accum_type=accumulators, **common)
    common.update(
        eps=settings.EPS,
        first_order_momentum_accum_type=accumulators,
        second_order_momentum_accum_type=torch.float32,
    )
    if settings.NAME == "rmsprop":
        return optim.RMSprop(alpha=settings.ALPHA, momentum=settings.MOMENTUM, **common)
    common.update(betas=tuple(settings.BETAS))
    if settings.NAME == "adam":
        return optim.Adam(**common)
    return {"adamw": optim.AdamW, "lamb": optim.LAMB}[settings.NAME](bias_correction=True, **common)


def parameter_groups(config: CfgNode, model: SwinTransformer, rate: float) -> List[Dict[str, Any]]:
    """The trained parameters, grouped by weight decay, and by layer if TRAIN.LAYER_DECAY is below 1.

    Vectors (norms and biases) are not decayed, nor are the parameters named by `no_weight_decay` and
    `no_weight_decay_keywords`: position embeddings and relative position bias tables (Swin paper, appendix A2.1).

    Args:
        rate: learning rate of the head; each layer's is TRAIN.LAYER_DECAY times that of the layer above.
    """
    names, keywords = model.no_weight_decay(), model.no_weight_decay_keywords()
    depths, decay = architecture(config).DEPTHS, config.TRAIN.LAYER_DECAY
    groups: Dict[Tuple[int, bool], List[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = parameter.ndim <= 1 or name in names or any(keyword in name for keyword in keywords)
        distance = sum(depths) + 1 - layer_of(name, depths) if decay < 1 else 0  # from the head's layer
        groups.setdefault((-distance, exempt), []).append(parameter)
    return [
        {
            "params": groups[key],
            "weight_decay": 0.0 if key[1] else config.TRAIN.WEIGHT_DECAY,
            "lr": rate * decay ** -key[0],
        }
        for key in sorted(groups)
    ]


def layer_of(name: str, depths: Sequence[int]) -> int:
    """The layer of a parameter for TRAIN.LAYER_DECAY, numbered as in the official code for SimMIM.

    0 is the patch embedding, 1 to sum(depths) are the blocks, and sum(depths) + 1 is the rest: final norm, head, and
    absolute position embeddings. Patch merging belongs to the block before it.
    """
    part, *rest = name.split(".")
    if part == "patch_embed":
        return 0
    if part != "layers":
        return sum(depths) + 1
    layer, kind, block = int(rest[0]), rest[1], rest[2]
    return sum(depths[:layer]) + int(block) + 1 if kind == "blocks" else sum(depths[: layer + 1])
