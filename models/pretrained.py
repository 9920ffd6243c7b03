# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Pretrained weights: official Swin V1 files, plain state dicts, timm's, and our own checkpoints.

Parameter names, window size, image size and number of classes are adapted. Weights of another architecture are refused.
"""

from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

import torch
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn import functional
from yacs.config import CfgNode

from common.archive import first_non_finite
from common.errors import EXIT_DATA, Refusal
from common.logs import logger
from common.pickles import described
from planning.geometry import IMAGENET_22K_CLASSES, IMAGENET_CLASSES, Pair, pair

from .pretrained_sizes import Sizes, sizes_in, table_grid
from .swin_transformer import COMPUTED, SwinTransformer, WindowAttention
from .weight_files import IN_FOLDER, BadFile, Contents, opened, weights_at
from .weight_names import PARTS, Missing, find_weights, official_names, plain_names, relative

__all__ = ["Report", "Wanted", "check_exists", "classes_of_22k", "load_pretrained", "official_names", "resize_table"]

HEAD = ("head.weight", "head.bias")
MOVED_SYNSET, MOVED_INDEX = "n04399382", 5564  # the only class of ImageNet-1k missing in the list of 21,843
SHOWN = 3  # names in an error message


class Wanted(NamedTuple):
    """Settings for the weights in a file: MODEL.PRETRAINED_EMA and the sizes they were trained with."""

    averaged: bool = False
    sizes: Sizes = Sizes()

    @classmethod
    def of(cls, config: CfgNode) -> "Wanted":
        """The settings of a configuration."""
        return cls(config.MODEL.PRETRAINED_EMA, Sizes.asked(config))


AS_IT_IS = Wanted()


class Weights(NamedTuple):
    """The entries of a file by official names, tensors or not, and where they were found."""

    entries: Dict[str, Any]
    words: str
    sizes: Sizes


class Report(NamedTuple):
    """What was loaded from a file: the number of matched tensors, names of the others, and the source of the head."""

    matched: int
    missing: List[str]  # a head that was reset
    unexpected: List[str]  # in the file only
    resized: List[str]
    head: str


def load_pretrained(model: SwinTransformer, path: Path, new_head: bool = True, wanted: Wanted = AS_IT_IS) -> Report:
    """Loads the weights of a file into a model.

    Relative position bias tables and absolute position embeddings are resized bicubically if the window or image size
    differs. A head with the same number of classes is loaded, one for ImageNet-22k is mapped to ImageNet-1k, and any
    other is reset to zero, as in the official code.

    Args:
        model: modified in place, in its own precision; left unchanged if the weights are refused.
        path: the file.
        new_head: whether to reset a head with another number of classes; otherwise it is refused.
        wanted: which weights of the file to use, and their sizes if the file does not state them.

    Raises:
        Refusal: for a file that cannot be read or holds no weights of this architecture, and for weights that are not
            finite.
    """
    return load_found(model, read_weights(path, wanted), path, new_head)


def load_found(model: SwinTransformer, found: Weights, path: Path, new_head: bool = True) -> Report:
    """As `load_pretrained`, for weights already read; `path` is for messages. `found` is not modified."""
    own = model.state_dict()
    weights = {name: value for name, value in found.entries.items() if isinstance(value, Tensor)}
    computed = {name: weights.pop(name) for name in list(weights) if name.endswith(COMPUTED)}
    _check_names(weights, own, found, path)
    head = _fit_head(weights, own, path, new_head)
    resized = [name for name in own if name in weights and _resize(model, name, weights, computed, found.sizes, path)]
    missing = [name for name in own if name not in weights]
    _check_architecture(weights, own, missing, path)
    broken = first_non_finite({name: weights[name] for name in own if name in weights})
    if broken is not None:
        raise _refusal(path, f"its weight {broken} is not finite")
    for name, tensor in own.items():  # a state dict shares memory with its model
        tensor.copy_(weights[name]) if name in weights else tensor.zero_()
    report = Report(len(own) - len(missing), missing, [name for name in weights if name not in own], resized, head)
    logger.info(
        "weights of %s%s: %d tensors matched, %d missing, %d unexpected, %d resized; %s",
        path,
        found.words,
        report.matched,
        len(missing),
        len(report.unexpected),
        len(resized),
        head,
    )
    return report


def check_exists(path: Path) -> None:
    """Raises `Refusal` if there is no file at `path`."""
    if not weights_at(path).is_file():
        raise _refusal(path, f"it has no {IN_FOLDER}" if path.is_dir() else "the file does not exist")


def read_weights(path: Path, wanted: Wanted = AS_IT_IS) -> Weights:
    """The weights of a file by their official names, for any known container, prefix and naming.

    Raises:
        Refusal: for a file without named tensors.
    """
    try:
        with opened(path) as contents:
            return weights_in(contents, wanted)
    except BadFile as error:
        raise _refusal(path, str(error)) from error


def weights_in(contents: Contents, wanted: Wanted = AS_IT_IS) -> Weights:
    """As `read_weights`, for open contents; raises BadFile instead of `Refusal`."""
    try:
        found = find_weights(contents.values, wanted.averaged)
    except Missing as error:
        raise BadFile(str(error)) from error
    entries, naming = plain_names(found.entries, contents.tensor)
    sizes = wanted.sizes or sizes_in(contents.values)
    words = ", ".join(part for part in (found.place, naming) if part)
    return Weights(entries, f" ({words})" if words else "", sizes)


def classes_of_22k() -> List[int]:
    """The index of each class of ImageNet-1k among the 21,841 of ImageNet-22k.

    This is the position of its synset in timm's sorted list of 21,843, which lacks one class of ImageNet-1k.
    """
    place = {synset: index for index, synset in enumerate(sorted(ImageNetInfo("imagenet-21k-goog").label_names()))}
    place[MOVED_SYNSET] = MOVED_INDEX
    return [place[synset] for synset in ImageNetInfo("imagenet-1k").label_names()]


def resize_table(table: Tensor, grid: Pair, size: Pair) -> Tensor:
    """Bicubically resizes a grid with one value per row: (h * w, C) -> (height * width, C)."""
    values = table.float().t().reshape(1, -1, *grid)
    return functional.interpolate(values, size=size, mode="bicubic", align_corners=False).flatten(2)[0].t()


def _fit_head(weights: Dict[str, Tensor], own: Mapping[str, Tensor], path: Path, new_head: bool) -> str:
    """Adapts the head in `weights` to the classes of the model, or removes it; returns what was done."""
    if HEAD[0] not in own:
        for name in HEAD:
            weights.pop(name, None)
        return "the model has no head"
    classes, found = len(own[HEAD[0]]), _classes_in(weights)
    if found == classes:
        return f"head of {classes} classes loaded"
    if (found, classes) == (IMAGENET_22K_CLASSES, IMAGENET_CLASSES):
        for name in HEAD:
            weights[name] = weights[name][classes_of_22k()]
        return f"head of {found} classes mapped to the {classes} of ImageNet-1k"
    if not new_head:
        has = f"its head has {found} classes, expected {classes}" if found else "it has no head"
        remedy = f"set --num-classes {found} (MODEL.NUM_CLASSES)" if found else "train one with --pretrained-model"
        raise _refusal(path, f"{has}: {remedy}")
    for name in HEAD:
        weights.pop(name, None)
    return f"its head has {found} classes: the head of {classes} classes is reset to zero"


def _classes_in(weights: Mapping[str, Tensor]) -> int:
    """Number of classes of the head in `weights`; 0 if it is missing or incomplete."""
    weight, bias = (weights.get(name, torch.empty(0)) for name in HEAD)
    return len(bias) if weight.ndim == 2 and bias.shape == weight.shape[:1] else 0


def _resize(
    model: SwinTransformer, name: str, weights: Dict[str, Tensor], computed: Dict[str, Tensor], sizes: Sizes, path: Path
) -> bool:
    """Resizes a table of positions to the model's window or image if necessary; returns whether it was."""
    table = weights[name]
    if name == "absolute_pos_embed" and table.ndim == 3:
        size, rows, key = model.patch_grid, table[0], "MODEL.PRETRAINED_IMG_SIZE"
    elif name.endswith("relative_position_bias_table") and table.ndim == 2:
        attention = model.get_submodule(name.rpartition(".")[0])
        assert isinstance(attention, WindowAttention)  # no other module has such a table
        height, width = attention.window
        size, rows, key = (2 * height - 1, 2 * width - 1), table, "MODEL.PRETRAINED_WINDOW_SIZE"
    else:
        return False
    patch = pair(model.patch_embed.proj.kernel_size)
    index = computed.get(name.replace("bias_table", "index"))
    grid: Optional[Pair] = table_grid(name, len(rows), sizes, patch, index)
    if grid is None:
        raise _refusal(
            path,
            f"its {name} has {len(rows)} rows of unknown height and width: set {key} to the size that the "
            "weights were trained with, one number or [height, width]",
        )
    if grid == size:
        return False
    weights[name] = resize_table(rows, grid, size).view(*table.shape[:-2], -1, table.shape[-1])
    return True


def _check_names(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], found: Weights, path: Path) -> None:
    """Raises `Refusal` for weights of another model, and for objects other than tensors."""
    for name, value in found.entries.items():
        if name in own and not isinstance(value, Tensor):
            raise _refusal(path, f"its entry {name} is a {described(value)}, no plain tensor")
    if not any(name in own for name in weights):
        first = ", ".join(f"{name} {_shape(tensor)}" for name, tensor in list(weights.items())[:SHOWN])
        raise _refusal(path, f"it holds no Swin Transformer; it begins with {first or 'no tensor'}")
    family = relative(weights)
    if family and family != relative(own):
        raise _refusal(path, f"they belong to {family}, not to this model: see MODEL.TYPE")


def _check_architecture(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], missing: List[str], path: Path
) -> None:
    """Raises `Refusal` for missing or unexpected tensors, and for other shapes."""
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
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise _refusal(path, f"they have another architecture: {'; '.join(problems[:SHOWN])}{more}: see --cfg")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _refusal(path: Path, reason: str) -> Refusal:
    return Refusal(f"weights {path} cannot be used: {reason}", EXIT_DATA)
