# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Parameter names of timm and Hugging Face for official names, the inverse of weight_names; safetensors files."""

import re
from pathlib import Path
from typing import Dict, Mapping

import safetensors.torch
import torch
from torch import Tensor

from .weight_names import Renaming, renamed

Weights = Mapping[str, Tensor]

TO_TIMM: Renaming = (
    (r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found.group(1)) + 1}.downsample."),
    (r"^head\.", "head.fc."),
)
TO_HUGGING_FACE: Renaming = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    (r"^absolute_pos_embed$", "embeddings.position_embeddings"),
    (r"^layers\.", "encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.cpb_mlp\.", ".continuous_position_bias_mlp."),
    (r"^norm\.", "layernorm."),
    (r"^(?!head\.)", "swin."),
    (r"^head\.", "classifier."),
)
QKV = ("query", "key", "value")


def to_timm(weights: Weights) -> Dict[str, Tensor]:
    """The weights by timm's names: patch merging at the start of a layer, the head one module deeper."""
    return renamed(weights, TO_TIMM)


def to_hugging_face(weights: Weights, model_type: str) -> Dict[str, Tensor]:
    """The weights by the names of Hugging Face's files, with separate query, key and value.

    Args:
        weights: by their official names.
        model_type: swin or swinv2, before every name but the head's.
    """
    apart: Dict[str, Tensor] = {}
    for name, tensor in weights.items():
        block, _, kind = name.rpartition(".")
        if block.endswith(".qkv"):
            parts = zip(QKV, tensor.chunk(3))
            apart.update({f"{block[: -len('qkv')]}{part}.{kind}": rows.clone() for part, rows in parts})
        elif kind in ("q_bias", "v_bias"):
            apart[f"{block}.{'query' if kind[0] == 'q' else 'value'}.bias"] = tensor
        else:
            apart[name] = tensor
    named = renamed(apart, TO_HUGGING_FACE)
    return {re.sub(r"^swin\.", f"{model_type}.", name): tensor for name, tensor in named.items()}


def contiguous(weights: Weights) -> Dict[str, Tensor]:
    """The weights as safetensors takes them: none shares memory with another."""
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}


def write_safetensors(path: Path, weights: Weights, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file; unlike `save_file`, raises OSError if the disk is full."""
    path.write_bytes(safetensors.torch.save(contiguous(weights), metadata={"format": "pt", **metadata}))
