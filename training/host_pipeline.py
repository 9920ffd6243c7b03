# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""HOST_PIPELINE=1: pipeline-parallel training on hosts, with each stage of IPU.LAYERS_PER_IPU in its own process.

    HOST_PIPELINE=1 PROCESSES=4 ./torchrun.sh --cfg SWIN_TINY ...

Verifies on any machine that a split is a valid pipeline. Processes = stages x data-parallel instances; process r runs
stage r % stages. Without dropout (MODEL.DROP_RATE, ATTN_DROP_RATE and DROP_PATH_RATE 0) the weights equal those of the
unstaged model up to rounding; with dropout, each stage draws its own masks. Every process reads the whole batch of its
instance; validation is data-parallel, with the whole model in every process.
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
    """The number of processes per model: the number of stages with HOST_PIPELINE=1, otherwise one.

    Raises:
        Refusal: if stages cannot run in separate processes.
    """
    value = os.environ.get(VARIABLE) or "0"
    if value not in ("0", "1"):
        raise Refusal(f"{VARIABLE}={value}: must be 0 or 1")
    if value == "0":
        return 1
    accelerator.pipelining()
    if config.MODEL.PRECISION not in PRECISIONS:
        raise Refusal(
            f"{VARIABLE}=1 does not support MODEL.PRECISION {config.MODEL.PRECISION}, which hosts emulate: "
            f"use {' or '.join(PRECISIONS)}"
        )
    if config.TRAIN.COMPILE:
        raise Refusal(f"{VARIABLE}=1 splits the model, which TRAIN.COMPILE compiles as a whole: leave --compile out")
    if config.TRAIN.FREEZE:
        raise Refusal(f"{VARIABLE}=1 trains the weights of every stage: leave TRAIN.FREEZE out")
    return len(pipeline_stages(config))


def build_trainer(config: CfgNode, model: SwinClassifier, options: Any, optimizer: Any, launch: Launch) -> Any:
    """The trainer of this process's stage, with the interface of poptorch.trainingModel's executor.

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
        model, stage, dict(stage.part.named_parameters()), stage.part.loss, options, optimizer, place
    )
