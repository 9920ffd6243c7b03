# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Where other programs store weights in their files, and how they name them: timm, Hugging Face, module wrappers."""

import re
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Sequence, Tuple, Union

import torch
from torch import Tensor

from common.pickles import StoredTensor, described

# Patterns and their replacements, applied in order.
Renaming = Sequence[Tuple[str, Union[str, Callable[["re.Match[str]"], str]]]]

# Keys of the weights in files of training programs, and of their averaged weights (EMA).
CONTAINERS = ("model", "state_dict", "model_state_dict", "module", "net", "network", "weights")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
MAX_NESTING = 4  # of containers
# Prefixes added to names by wrapper modules.
PREFIXES = ("module.", "model.", "backbone.", "encoder.", "_orig_mod.", "net.", "network.", "swin.", "swinv2.", "ema.")
PARTS = ("patch_embed.", "absolute_pos_embed", "layers.", "norm.", "head.")  # of a Swin Transformer's state dict
# Names by which to recognise other models with such parts.
RELATIVES = {
    r"\.attn\.cpb_mlp\.": "a Swin Transformer V2",
    r"\.mlp\._moe_layer\.": "a Swin-MoE",
    r"\.spatial_mlp\.": "a Swin-MLP",
}
HUGGING_FACE = "embeddings.patch_embeddings.projection.weight"  # may be preceded by 'swin.' or 'swinv2.'
OF_HUGGING_FACE: Renaming = (  # as in its files, and in its models since transformers 5
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^embeddings\.position_embeddings$", "absolute_pos_embed"),
    (r"^encoder\.layers\.", "layers."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(self|relative_position_bias)\.", ".attn."),
    (r"\.continuous_position_bias_mlp\.", ".cpb_mlp."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attn\.(query|key|value)\.", lambda found: f".attn.{found.group(1)[0]}."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
TORCHVISION = "features.0.0.weight"  # ends its first name
OF_TORCHVISION: Renaming = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"^features\.(\d+)\.(?=norm\.|reduction\.)", lambda found: f"layers.{int(found.group(1)) // 2 - 1}.downsample."),
    (r"^features\.(\d+)\.", lambda found: f"layers.{int(found.group(1)) // 2}.blocks."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)


class Found(NamedTuple):
    """Weights in a file by their original names, tensors or not, and a description of where they were."""

    entries: Dict[str, Any]
    place: str


class Missing(Exception):
    """The weights are missing; the message says what was found instead."""


def find_weights(values: Any, averaged: bool) -> Found:
    """The entries of the container that holds the weights.

    Args:
        values: the contents of a file.
        averaged: whether to use the averaged weights; they are also used if there are no others.

    Raises:
        Missing: if no container holds named tensors, or requested averaged weights are missing.
    """
    place: List[str] = []
    spare = None  # the container of averaged weights beside those that are used
    for _ in range(MAX_NESTING):
        if not isinstance(values, Mapping) or any(
            isinstance(value, (Tensor, StoredTensor)) for value in values.values()
        ):
            break
        order = AVERAGED + CONTAINERS if averaged and not set(place) & set(AVERAGED) else CONTAINERS + AVERAGED
        inner = next((key for key in order if isinstance(values.get(key), Mapping) and values[key]), None)
        if inner is None:
            break
        if inner in CONTAINERS:
            spare = next((key for key in AVERAGED if isinstance(values.get(key), Mapping) and values[key]), spare)
        place.append(inner)
        values = values[inner]
    if not isinstance(values, Mapping):
        raise Missing(f"it holds {described(values)}, not tensors by name: save the model's state_dict()")
    if averaged and not set(place) & set(AVERAGED):
        raise Missing("it has no averaged weights (EMA): leave MODEL.PRETRAINED_EMA and --use-ema out")
    words = ".".join(place) + (f"; averaged ones are in {spare}: --use-ema" if spare else "")
    return Found({name: value for name, value in values.items() if isinstance(name, str)}, words)


def without_prefix(names: Mapping[str, Any]) -> Tuple[str, List[str]]:
    """The prefix shared by most parts of a Swin Transformer, and the names that start with it."""
    groups: Dict[str, int] = {}
    for name in names:
        prefix, rest = _split(name)
        if rest.startswith(PARTS):
            groups[prefix] = groups.get(prefix, 0) + 1
    prefix = max(groups, key=lambda found: groups[found]) if groups else ""
    return prefix, [name for name in names if name.startswith(prefix)]


def _split(name: str) -> Tuple[str, str]:
    prefix = ""
    while True:
        found = next((part for part in PREFIXES if name.startswith(part)), None)
        if found is None:
            return prefix, name
        prefix, name = prefix + found, name[len(found) :]


def plain_names(entries: Mapping[str, Any], tensor: Callable[[str, Any], Tensor]) -> Tuple[Dict[str, Any], str]:
    """Entries by the official names, without prefix; values that are not tensors are unchanged.

    Args:
        entries: of a container.
        tensor: reads a tensor, given its name and its entry in the file.

    Returns:
        The entries, and words for how they were named: '' for the official names.
    """
    signs = [name[: -len(HUGGING_FACE)] for name in entries if name.endswith(HUGGING_FACE)]
    if signs:
        base = signs[0]
        outer = re.sub(r"swin(v2)?\.$", "", base)
        named = {name[len(base) :]: value for name, value in entries.items() if name.startswith(base)}
        head = f"{outer}classifier."
        named.update({name[len(outer) :]: value for name, value in entries.items() if name.startswith(head)})
        return from_hugging_face(_read(named, tensor)), "Hugging Face's names"
    signs = [name[: -len(TORCHVISION)] for name in entries if name.endswith(TORCHVISION)]
    if signs:
        named = {name[len(signs[0]) :]: value for name, value in entries.items() if name.startswith(signs[0])}
        return renamed(_read(named, tensor), OF_TORCHVISION), "torchvision's names"
    prefix, kept = without_prefix(entries)
    named = {name[len(prefix) :]: entries[name] for name in kept}
    return official_names(_read(named, tensor)), f"names after {prefix}" if prefix else ""


def _read(entries: Mapping[str, Any], tensor: Callable[[str, Any], Tensor]) -> Dict[str, Any]:
    return {
        name: tensor(name, value) if isinstance(value, (Tensor, StoredTensor)) else value
        for name, value in entries.items()
    }


def official_names(weights: Mapping[str, Any]) -> Dict[str, Any]:
    """The weights by their official names.

    timm has patch merging at the start of a layer instead of the end of the one before, and its head one module deeper.
    """
    merging = r"layers\.(\d+)\.(?=downsample\.)"
    layers = {int(found.group(1)) for found in (re.match(merging, name) for name in weights) if found}
    if layers and 0 not in layers:
        weights = {
            re.sub(merging, lambda found: f"layers.{int(found.group(1)) - 1}.", name): tensor
            for name, tensor in weights.items()
        }
    return {re.sub(r"^head\.fc\.", "head.", name): tensor for name, tensor in weights.items()}


def renamed(weights: Mapping[str, Any], renaming: Renaming) -> Dict[str, Any]:
    """The weights, with every pattern in their names replaced."""
    result = {}
    for name, tensor in weights.items():
        for pattern, replacement in renaming:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


def from_hugging_face(weights: Mapping[str, Any]) -> Dict[str, Any]:
    """The weights of Hugging Face's Swin models, with separate query, key and value, by their official names."""
    result = renamed(weights, OF_HUGGING_FACE)
    for query in [name for name in result if ".attn.q." in name]:
        block, _, kind = query.rpartition(".q.")
        parts = [result.pop(f"{block}.{part}.{kind}", None) for part in "qkv"]
        if all(isinstance(part, Tensor) for part in parts):
            result[f"{block}.qkv.{kind}"] = torch.cat(parts)
        elif kind == "bias" and parts[1] is None:  # of Swin V2, whose keys have none
            result[f"{block}.q_bias"], result[f"{block}.v_bias"] = parts[0], parts[2]
    return result


def relative(names: Mapping[str, Any]) -> str:
    """The related model that the names belong to; empty for Swin V1."""
    for pattern, words in RELATIVES.items():
        if any(re.search(pattern, name) for name in names):
            return words
    return "the backbone of a detector" if "norm0.weight" in names and "norm.weight" not in names else ""
