# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""HOST_PIPELINE=1: on hosts, the stages of IPU.LAYERS_PER_IPU train in as many processes, only activations crossing.

    HOST_PIPELINE=1 PROCESSES=4 ./torchrun.sh --cfg SWIN_TINY ...

It proves on any machine that a split is a valid pipeline. Processes = stages x data-parallel instances; process r runs
stage r % stages. The weights are those of the unstaged model to rounding where nothing is dropped (MODEL.DROP_RATE,
ATTN_DROP_RATE and DROP_PATH_RATE 0); each stage draws its own masks. Every process reads its instance's whole batch;
validation is data-parallel, with the whole model in every process, as without HOST_PIPELINE.
"""

import os
from typing import Any

from yacs.config import CfgNode

import accelerator
from common.errors import Refusal
from common.launch import Launch
from common.logs import logger
from models.build import SwinClassifier
from models.stages import SwinStage, units_of_stages
from planning.placement import pipeline_stages

VARIABLE = "HOST_PIPELINE"
PRECISIONS = ("32.32", "mix")


def stages(config: CfgNode) -> int:
    """How many processes train one model: as many as there are stages with HOST_PIPELINE=1, otherwise one.

    Raises:
        Refusal: where stages cannot run in processes.
    """
    value = os.environ.get(VARIABLE) or "0"
    if value not in ("0", "1"):
        raise Refusal(f"{VARIABLE}={value}: 1 runs the stages in processes of their own, 0 does not")
    if value == "0":
        return 1
    accelerator.pipelining()
    if config.MODEL.PRECISION not in PRECISIONS:
        raise Refusal(
            f"{VARIABLE}=1 does not go with MODEL.PRECISION {config.MODEL.PRECISION}, which a host emulates: "
            f"use {' or '.join(PRECISIONS)}"
        )
    return len(pipeline_stages(config))


def build_trainer(config: CfgNode, model: SwinClassifier, options: Any, optimizer: Any, launch: Launch) -> Any:
    """What trains the stage of this process, to be used as poptorch.trainingModel's executor.

    Args:
        model: the whole model.
        options: of one data-parallel instance.
    """
    pipelining = accelerator.pipelining()
    place = pipelining.take_place(launch.stages)
    units = units_of_stages(model, pipeline_stages(config))[place.stage]
    stage = SwinStage(model, units)
    logger.info(
        "pipeline: %d stages in %d processes; stage 0 runs %s to %s",
        launch.stages,
        launch.processes,
        units[0],
        units[-1],
    )
    return pipelining.StageExecutor(
        model, stage, dict(stage.part.named_parameters()), model.loss, options, optimizer, place
    )
