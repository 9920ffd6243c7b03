# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Placement of the model on IPUs: the stages of the pipeline.

IPU.LAYERS_PER_IPU counts Swin blocks over all layers. Patch embedding runs with the first block, patch merging
with the block before it, and the final norm, the head and the loss with the last block or in a separate stage.
"""

from typing import List, NamedTuple, Sequence

from yacs.config import CfgNode

from planning.costs import configured_units
from planning.geometry import architecture
from planning.memory import configured_footprint
from planning.split import balanced_split, fewest_ipus_split


class Stage(NamedTuple):
    """A stage of the pipeline: the ID of its PopTorch block, its IPU, and its first module."""

    block_id: str
    ipu: int
    module: str


def pipeline_stages(config: CfgNode) -> List[Stage]:
    """The stages defined by IPU.LAYERS_PER_IPU and IPU.MAPPING.

    Consecutive stages on the same IPU are merged, as PopTorch does.

    Raises:
        ValueError: if the lists contradict each other or the model.
    """
    layers, units = config.IPU.LAYERS_PER_IPU, configured_units(config)
    if layers == "auto":
        if config.IPU.MAPPING:
            raise ValueError(
                f"IPU.MAPPING {list(config.IPU.MAPPING)} needs IPU.LAYERS_PER_IPU as a list: "
                "auto puts every stage on a separate IPU"
            )
        return automatic_stages(config, config.IPU.IPUS_PER_REPLICA)
    _check_layers(layers, list(architecture(config).DEPTHS))
    halves = [unit.module for unit in units if unit.begins_block or unit.ends_block]
    begins = ["patch_embed"] + [halves[int(2 * sum(layers[:index]))] for index in range(1, len(layers))]
    mapping = list(config.IPU.MAPPING) or list(range(len(layers)))
    if len(mapping) == len(layers) + 1:
        begins.append("norm")
    _check_mapping(mapping, begins)
    stages: List[Stage] = []
    for ipu, module in zip(mapping, begins):
        if not stages or stages[-1].ipu != ipu:
            stages.append(Stage(f"stage{len(stages)}", ipu, module))
    return stages


def ipus_of(stages: Sequence[Stage]) -> int:
    """Number of IPUs per replica, including unused ones in between."""
    return 1 + max(stage.ipu for stage in stages)


def automatic_stages(config: CfgNode, ipus: int) -> List[Stage]:
    """The stages of IPU.LAYERS_PER_IPU 'auto', whatever the configured value.

    Args:
        ipus: number of stages, one per IPU; 0: as few as fit in memory.

    Raises:
        ValueError: if the model cannot be split into as many stages.
    """
    units, footprint = configured_units(config), configured_footprint(config)
    begins = (
        balanced_split(units, footprint, ipus)
        if ipus
        else fewest_ipus_split(units, footprint, config.TRAIN.ACCUMULATION_STEPS)
    )
    return [Stage(f"stage{index}", index, units[begin].module) for index, begin in enumerate(begins)]


def _check_layers(layers: Sequence[float], depths: Sequence[int]) -> None:
    if isinstance(layers, str) or not layers:
        raise ValueError(f"IPU.LAYERS_PER_IPU {layers!r}: give 'auto' or a list of Swin blocks per stage")
    if any(count <= 0 or 2 * count != int(2 * count) for count in layers):
        raise ValueError(f"IPU.LAYERS_PER_IPU {list(layers)}: expected positive multiples of 0.5")
    if sum(layers) != sum(depths):
        raise ValueError(
            f"IPU.LAYERS_PER_IPU {list(layers)} adds up to {sum(layers):g} blocks, "
            f"but the model has {sum(depths)} (DEPTHS {list(depths)})"
        )


def _check_mapping(mapping: Sequence[int], begins: Sequence[str]) -> None:
    if len(mapping) != len(begins):
        raise ValueError(
            f"IPU.MAPPING {list(mapping)} has {len(mapping)} entries, expected {len(begins)} for the "
            f"stages of IPU.LAYERS_PER_IPU, or {len(begins) + 1} to put the head into a separate stage"
        )
    if mapping[0] != 0:
        raise ValueError(
            f"IPU.MAPPING {list(mapping)} begins with IPU {mapping[0]}: the first stage must be on IPU 0, "
            "where PopTorch runs everything before it"
        )
