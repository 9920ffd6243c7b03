# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Pipeline stages as modules, for hosts that run each stage in a separate process."""

import copy
from typing import List, Sequence

from torch import Tensor, nn

from planning.costs import is_mlp_half
from planning.placement import Stage

from .build import SwinClassifier
from .swin_transformer import SwinTransformerBlock


class SwinStage(nn.Module):
    """A copy of consecutive units of a model.

    The first stage takes images (B, C, H, W) and the last one returns float32 logits (B, num_classes). Stages exchange
    feature maps (B, H, W, C), or features (B, C) if the head is a separate stage.

    Args:
        model: the whole model, which is not modified.
        units: names of the units, see `costs.Unit.module`.

    Attributes:
        part: the model without the modules of other stages; parameters keep their names.
    """

    def __init__(self, model: SwinClassifier, units: Sequence[str]):
        super().__init__()
        own = {name for unit in units for name in _modules_of(unit)}
        others = {name for unit in model.units for name in _modules_of(unit.module)} - own
        self.units = list(units)
        self.part = copy.deepcopy(model, {id(model.get_submodule(name)): nn.Identity() for name in others})
        if "patch_embed" not in own:
            self.part.absolute_pos_embed = None

    def forward(self, x: Tensor) -> Tensor:
        """Runs the units in order."""
        with self.part.autocast():
            for unit in self.units:
                x = self._run(unit, x)
        return x

    def _run(self, unit: str, x: Tensor) -> Tensor:
        part = self.part
        if unit == "patch_embed":
            return part.embed(part.normalised(x))
        if unit == "norm":
            return part.pool(x)
        if unit == "head":
            return part.head(x).float()
        is_mlp = is_mlp_half(unit)
        module = part.get_submodule(_block_of(unit) if is_mlp else unit)
        if isinstance(module, SwinTransformerBlock):
            return module.transform(x) if is_mlp else module.attend(x)
        return module(x)


def units_of_stages(model: SwinClassifier, stages: Sequence[Stage]) -> List[List[str]]:
    """The names of the units of each stage, in the order of execution."""
    begins = [stage.module for stage in stages]
    units: List[List[str]] = []
    for unit in model.units:
        if unit.module in begins:
            units.append([])
        units[-1].append(unit.module)
    return units


def _modules_of(unit: str) -> List[str]:
    """The modules that hold the parameters of a unit."""
    if is_mlp_half(unit):
        return [f"{_block_of(unit)}.{name}" for name in ("norm2", "mlp")]
    return [f"{unit}.norm1", f"{unit}.attn"] if ".blocks." in unit else [unit]


def _block_of(unit: str) -> str:
    return unit.rpartition(".")[0]
