# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Stages: where they begin, what is refused, and their marks on a model."""

import copy
import pickle
from typing import Any, List

import pytest
import torch
from poptorch_host import context
from yacs.config import CfgNode

import accelerator
from config import get_config
from models.pipeline import annotate
from models.swin_transformer import SwinTransformer
from planning.geometry import configured_classes
from planning.placement import pipeline_stages
from planning.plan import make_plan
from tests.backend import DEVICE, host_only


def configured(layers: Any, mapping: Any = (), **changes: Any) -> CfgNode:
    """SWIN_TINY with another placement; no check but the pipeline's own."""
    config = get_config("SWIN_TINY")
    config.defrost()
    config.IPU.LAYERS_PER_IPU, config.IPU.MAPPING = layers, list(mapping)
    for key, value in changes.items():
        config.IPU[key] = value
    return config


def begins(config: CfgNode) -> List[str]:
    return [stage.module for stage in pipeline_stages(config)]


def test_stages_begin_where_the_blocks_before_them_end():
    stages = pipeline_stages(configured([2, 3, 5, 2]))
    assert [stage.module for stage in stages] == [
        "patch_embed",
        "layers.1.blocks.0",
        "layers.2.blocks.1",
        "layers.3.blocks.0",
    ]
    assert [stage.ipu for stage in stages] == [0, 1, 2, 3]
    assert len({stage.block_id for stage in stages}) == 4


def test_half_a_block_lets_the_next_stage_begin_at_its_mlp():
    assert begins(configured([2.5, 3, 4.5, 2])) == [
        "patch_embed",
        "layers.1.blocks.0.norm2",
        "layers.2.blocks.1.norm2",
        "layers.3.blocks.0",
    ]


def test_one_more_mapping_entry_puts_norm_and_head_in_a_stage_of_their_own():
    stages = pipeline_stages(configured([6, 6], [0, 1, 2]))
    assert [stage.module for stage in stages] == ["patch_embed", "layers.2.blocks.2", "norm"]
    assert [stage.ipu for stage in stages] == [0, 1, 2]


def test_mapping_may_return_to_an_ipu_that_has_room():
    assert [stage.ipu for stage in pipeline_stages(configured([6, 6], [0, 1, 0]))] == [0, 1, 0]


def test_neighbouring_stages_on_one_ipu_are_one_stage():
    stages = pipeline_stages(configured([2, 3, 5, 2], [0, 0, 1, 1, 1]))
    assert [(stage.module, stage.ipu) for stage in stages] == [("patch_embed", 0), ("layers.2.blocks.1", 1)]


@pytest.mark.parametrize(
    "layers, mapping, words",
    [
        ([2, 3, 5], [], r"\[2, 3, 5\] adds up to 10 blocks, but the model has 12"),
        ([2, 3, 5, 1.5], [], "adds up to 11.5"),
        ([2, 3, 5.25, 1.75], [], "multiples of 0.5"),
        ([2, 3, 7, 0], [], "positive multiples"),
        ([], [], "'auto' or a list"),
        ("balanced", [], "'balanced'"),
        ([6, 6], [0], "1 entries, expected 2.*or 3"),
        ([6, 6], [0, 1, 2, 3], "4 entries"),
        ([6, 6], [1, 2], "begins with IPU 1"),
    ],
)
def test_placement_that_contradicts_itself_is_refused_with_the_numbers(layers, mapping, words):
    with pytest.raises(ValueError, match=words):
        pipeline_stages(configured(layers, mapping))


def test_auto_makes_as_many_stages_as_it_is_told_and_as_few_as_memory_allows():
    assert len(begins(configured("auto", IPUS_PER_REPLICA=5))) == 5
    fewest = ["IPU.LAYERS_PER_IPU", "auto", "IPU.IPUS_PER_REPLICA", "0", "DATA.BATCH_SIZE"]
    assert [len(begins(get_config("SWIN_TINY", [*fewest, batch]))) for batch in ("4", "8")] == [1, 2]
    # no number of IPUs would do, which is no reason to refuse a host's run
    assert begins(get_config("SWIN_TINY", [*fewest, "1000"])) == ["patch_embed"]


@pytest.mark.parametrize("ipus", [3, 8, 25])
def test_automatic_stages_can_be_written_down_as_a_list(ipus):
    plan = make_plan(configured("auto", IPUS_PER_REPLICA=ipus))
    assert pipeline_stages(configured(plan.layers, plan.mapping)) == list(plan.stages)


def test_auto_with_more_stages_than_half_blocks_and_head_is_refused():
    assert len(begins(configured("auto", IPUS_PER_REPLICA=25))) == 25
    with pytest.raises(ValueError, match="26 .* 12 blocks"):
        pipeline_stages(configured("auto", IPUS_PER_REPLICA=26))


def test_auto_takes_no_mapping():
    with pytest.raises(ValueError, match=r"IPU.MAPPING \[0, 1\] needs IPU.LAYERS_PER_IPU as a list"):
        pipeline_stages(configured("auto", [0, 1]))


def test_number_of_ipus_for_auto_leaves_a_list_alone():
    stages = begins(configured([2, 3, 5, 2]))
    assert len(stages) == 4 and begins(configured([2, 3, 5, 2], IPUS_PER_REPLICA=8)) == stages


@pytest.mark.parametrize(
    "dataset, number, expected", [("imagenet", 0, 1000), ("imagenet22K", 0, 21841), ("imagenet22K", 7, 7)]
)
def test_classes_are_the_data_sets_unless_configured(dataset, number, expected):
    config = get_config("SWIN_TINY", ["DATA.DATASET", dataset, "MODEL.NUM_CLASSES", str(number)])
    assert configured_classes(config) == expected


class Recording(context.Execution):
    """Notes the blocks that begin and the values that are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.kept = [], []

    def begin_block(self, user_id, ipu_id) -> None:
        self.blocks.append((user_id, ipu_id))

    def recomputation_checkpoint(self, tensors) -> None:
        self.kept += [tuple(tensor.shape) for tensor in tensors]


def small_model() -> SwinTransformer:
    return SwinTransformer(
        img_size=16,
        patch_size=2,
        num_classes=3,
        embed_dim=8,
        depths=[2, 2, 6, 2],
        num_heads=[1, 1, 1, 1],
        window_size=2,
    )


records = host_only("a recorder stands in for the compiler; on the SDK tests/sdk compares pipelines")


def run(model: SwinTransformer) -> Recording:
    recording = Recording()
    with context.activate(recording), torch.no_grad():
        model(torch.zeros(1, 3, 16, 16))
    return recording


@records
def test_annotated_model_begins_its_blocks_in_order_and_keeps_block_outputs():
    accelerator.select(DEVICE)
    stages = pipeline_stages(configured([2.5, 3, 4.5, 2], [0, 1, 2, 3, 4]))
    model = small_model()
    names = list(model.state_dict())
    annotate(model, stages, recompute=True)
    recording = run(model)
    assert recording.blocks == [(stage.block_id, stage.ipu) for stage in stages[1:]]
    assert recording.kept == [(1, 8, 8, 8)] * 2 + [(1, 4, 4, 16)] * 2 + [(1, 2, 2, 32)] * 6 + [(1, 1, 1, 64)] * 2
    assert list(model.state_dict()) == names


@records
def test_without_recomputation_nothing_is_marked_to_be_kept():
    accelerator.select(DEVICE)
    model = small_model()
    annotate(model, pipeline_stages(configured([12])), recompute=False)
    recording = run(model)
    assert not recording.blocks and not recording.kept


@records
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_marks_survive_copies_of_the_model(duplicate):
    accelerator.select(DEVICE)
    model = small_model()
    annotate(model, pipeline_stages(configured([6, 6])), recompute=True)
    recording = run(duplicate(model))
    assert recording.blocks == [("stage1", 1)] and len(recording.kept) == 12
