# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Weights from elsewhere: official Swin V1 files, plain state dicts, timm's, and our own checkpoints.

What differs between two uses of the same weights is fitted: names, window size, image size and classes. What differs
between two architectures is refused.
"""

import math
import re
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple

import torch
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn import functional

from common.archive import DamagedFile, first_non_finite, read_archive
from common.errors import EXIT_DATA, Refusal
from common.logs import logger
from planning.geometry import IMAGENET_22K_CLASSES, IMAGENET_CLASSES, Pair

from .swin_transformer import COMPUTED, SwinTransformer, WindowAttention

CONTAINERS = ("model", "state_dict")  # keys under which training programs keep the weights
PARTS = ("patch_embed.", "absolute_pos_embed", "layers.", "norm.", "head.")  # of a Swin Transformer's state dict
HEAD = ("head.weight", "head.bias")
MOVED_SYNSET, MOVED_INDEX = "n04399382", 5564  # the one class of ImageNet-1k that the list of 21,843 lacks
SHOWN = 3  # names in a refusal


class Report(NamedTuple):
    """What became of a file's weights: how many tensors the model took, names of others, and how the head was made."""

    matched: int
    missing: List[str]  # a head that starts anew
    unexpected: List[str]  # the file's, which the model has no use for
    resized: List[str]
    head: str


def load_pretrained(model: SwinTransformer, path: Path, new_head: bool = True) -> Report:
    """Puts the weights of a file into a model.

    Relative position tables and absolute position embeddings are resized bicubically where the window or the image has
    another size. The head is taken where the classes agree in number, mapped from ImageNet-22k to ImageNet-1k, or else
    starts from zero, as the official code does it.

    Args:
        model: changed in place, in its own precision; not at all when the weights are refused.
        path: the file.
        new_head: whether a head with another number of classes may start anew; where it may not, it is refused.

    Raises:
        utils.Refusal: for a file that cannot be read, holds no weights of a Swin Transformer or those of another
            architecture, and for weights that are not finite.
    """
    own = model.state_dict()
    weights = {
        name: tensor for name, tensor in official_names(read_weights(path)).items() if not name.endswith(COMPUTED)
    }
    head = _fit_head(weights, own, path, new_head)
    resized = [name for name in own if name in weights and _resize(model, name, weights, path)]
    missing = [name for name in own if name not in weights]
    _check_architecture(weights, own, missing, path)
    broken = first_non_finite({name: weights[name] for name in own if name in weights})
    if broken is not None:
        raise _refusal(path, f"its weight {broken} is not finite")
    for name, tensor in own.items():  # a state dict shares memory with its model
        tensor.copy_(weights[name]) if name in weights else tensor.zero_()
    report = Report(len(own) - len(missing), missing, [name for name in weights if name not in own], resized, head)
    logger.info(
        "weights of %s: %d tensors matched, %d missing, %d unexpected, %d resized; %s",
        path,
        report.matched,
        len(missing),
        len(report.unexpected),
        len(resized),
        head,
    )
    return report


def check_exists(path: Path) -> None:
    """Refuses a path that leads to no file."""
    if not path.is_file():
        raise _refusal(path, "there is no such file")


def read_weights(path: Path) -> Dict[str, Tensor]:
    """The tensors of a file by name, without the prefix of a data-parallel wrapper.

    Raises:
        utils.Refusal: for anything but plain, dense tensors in a file of torch.save.
    """
    contents = _read(path)
    for container in CONTAINERS:
        if isinstance(contents, Mapping) and isinstance(contents.get(container), Mapping):
            contents = contents[container]
            break
    if not isinstance(contents, Mapping) or not contents:
        raise _refusal(path, f"it holds {type(contents).__name__}, not tensors by name")
    for name, value in contents.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise _refusal(path, f"its entry {name!r} is no plain tensor with a name")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise _refusal(path, f"its tensor {name} claims to be {_shape(value)}, which is more than the file holds")
    wrapped = all(name.startswith("module.") for name in contents)
    return {name[len("module.") :] if wrapped else name: value for name, value in contents.items()}


def official_names(weights: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """The weights by their official names.

    timm puts patch merging at the beginning of a layer instead of the end of the one before, and its head one module
    deeper.
    """
    merging = r"layers\.(\d+)\.(?=downsample\.)"
    layers = {int(found.group(1)) for found in (re.match(merging, name) for name in weights) if found}
    if layers and 0 not in layers:
        weights = {
            re.sub(merging, lambda found: f"layers.{int(found.group(1)) - 1}.", name): tensor
            for name, tensor in weights.items()
        }
    return {re.sub(r"^head\.fc\.", "head.", name): tensor for name, tensor in weights.items()}


def classes_of_22k() -> List[int]:
    """For each class of ImageNet-1k its index among the 21,841 of ImageNet-22k.

    That is the place of its synset in the sorted list of 21,843 that timm ships; one of ImageNet-1k's is not in it.
    """
    place = {synset: index for index, synset in enumerate(sorted(ImageNetInfo("imagenet-21k-goog").label_names()))}
    place[MOVED_SYNSET] = MOVED_INDEX
    return [place[synset] for synset in ImageNetInfo("imagenet-1k").label_names()]


def resize_table(table: Tensor, size: Pair) -> Tensor:
    """Values on a square grid, one a row, to a grid of another size: (S * S, C) -> (height * width, C), bicubically.

    Raises:
        ValueError: where the table is not square.
    """
    side = math.isqrt(len(table))
    if side == 0 or side * side != len(table):
        raise ValueError(f"its {len(table)} rows are no square")
    grid = table.float().t().reshape(1, -1, side, side)
    return functional.interpolate(grid, size=size, mode="bicubic", align_corners=False).flatten(2)[0].t()


def _read(path: Path) -> Any:
    try:
        return read_archive(path).contents
    except DamagedFile as error:
        if path.is_file() and not zipfile.is_zipfile(path):
            raise _refusal(path, "it is damaged, or not in the format of torch.save since PyTorch 1.6") from error
        raise _refusal(path, str(error)) from error


def _fit_head(weights: Dict[str, Tensor], own: Mapping[str, Tensor], path: Path, new_head: bool) -> str:
    """Makes the weights' head one of the model's classes, or takes it out, and says which."""
    if HEAD[0] not in own:
        for name in HEAD:
            weights.pop(name, None)
        return "the model has no head"
    classes, found = len(own[HEAD[0]]), _classes_in(weights)
    if found == classes:
        return f"head of {classes} classes taken"
    if (found, classes) == (IMAGENET_22K_CLASSES, IMAGENET_CLASSES):
        for name in HEAD:
            weights[name] = weights[name][classes_of_22k()]
        return f"head of {found} classes mapped to the {classes} of ImageNet-1k"
    if not new_head:
        raise _refusal(path, f"its head has {found} classes, {classes} are wanted")
    for name in HEAD:
        weights.pop(name, None)
    return f"its head has {found} classes, the model's {classes} start from zero"


def _classes_in(weights: Mapping[str, Tensor]) -> int:
    """Classes of the weights' head; 0 where there is none, or only a part of one."""
    weight, bias = (weights.get(name, torch.empty(0)) for name in HEAD)
    return len(bias) if weight.ndim == 2 and bias.shape == weight.shape[:1] else 0


def _resize(model: SwinTransformer, name: str, weights: Dict[str, Tensor], path: Path) -> bool:
    """Fits a table of positions to the model's window or image; whether that was needed."""
    table = weights[name]
    if name == "absolute_pos_embed" and table.ndim == 3:
        size, rows = model.patch_grid, table[0]
    elif name.endswith("relative_position_bias_table") and table.ndim == 2:
        attention = model.get_submodule(name.rpartition(".")[0])
        assert isinstance(attention, WindowAttention)  # nothing else has such a table
        height, width = attention.window
        size, rows = (2 * height - 1, 2 * width - 1), table
    else:
        return False
    if len(rows) == size[0] * size[1]:
        return False
    try:
        weights[name] = resize_table(rows, size).view(*table.shape[:-2], -1, table.shape[-1])
    except ValueError as error:
        raise _refusal(path, f"its {name} cannot be resized to {size[0]}x{size[1]}: {error}") from error
    return True


def _check_architecture(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], missing: List[str], path: Path
) -> None:
    """Refuses weights that lack a tensor of the model, have more of its parts, or others of its shapes."""
    problems = [f"{name} is missing" for name in missing if name not in HEAD]
    problems += [
        f"{name} {_shape(weights[name])} is not in the model"
        for name in weights
        if name not in own and name.startswith(PARTS)
    ]
    problems += [
        f"{name} is {_shape(weights[name])}, not {_shape(own[name])}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if not any(name in own for name in weights):
        first = ", ".join(f"{name} {_shape(tensor)}" for name, tensor in list(weights.items())[:SHOWN])
        raise _refusal(path, f"it holds no Swin Transformer; it begins with {first}")
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise _refusal(path, f"they are of another architecture: {'; '.join(problems[:SHOWN])}{more}")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _refusal(path: Path, reason: str) -> Refusal:
    return Refusal(f"weights {path} cannot be used: {reason}", EXIT_DATA)
