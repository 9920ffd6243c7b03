# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""--compile-only: does everything up to the first step. IPUs fill the executable cache; hosts check and report."""

from yacs.config import CfgNode

import accelerator
from common.errors import Refusal
from common.launch import Launch
from common.logs import logger
from dataset.build_ipu import ending
from planning.placement import ipus_of, pipeline_stages
from training.building import build_run
from training.evaluation import compile_validator

MOST_IPUS = 64  # per process, a limit of PopTorch


def compile_only(config: CfgNode, launch: Launch) -> None:
    """Builds data, model and options, and compiles the training and validation programs; writes nothing.

    Hosts compile without allocating weights (`accelerator.without_values`). For a run with several processes, the
    program of a single process is compiled.

    Raises:
        Refusal: for everything that a run refuses before its first step, including errors of PopTorch's compiler.
    """
    if launch.stages > 1:
        raise Refusal("HOST_PIPELINE has no effect with --compile-only: unset it")
    share = launch if accelerator.is_ipu() else _share_of_one(config, launch)
    if share != launch:
        ipus = ipus_of(pipeline_stages(config)) * launch.replicas
        logger.info("%d IPUs: this is the program of one of %d processes", ipus, share.processes)
    with accelerator.without_values():
        run = build_run(config, share, None, None)
        with ending(run.data.training_loader, run.data.validation_loader):
            if run.trainer.isAttachedToDevice():
                run.trainer.detachFromDevice()  # the two programs take turns on the device
            run.model.eval()
            compile_validator(config, run.validator, run.model.num_classes)
    for name, program in (("training", run.trainer), ("validation", run.validator)):
        for line in accelerator.summary(program):
            logger.info("%s program: %s", name, line)
    logger.info("compile-only: both programs of %s compile; nothing was trained or written", config.MODEL.NAME)


def _share_of_one(config: CfgNode, launch: Launch) -> Launch:
    """The launch of one of several processes, if a single process cannot use the IPUs of all replicas."""
    most = max(MOST_IPUS // ipus_of(pipeline_stages(config)), 1)
    if launch.processes > 1 or launch.replicas <= most:
        return launch
    local = max(count for count in range(1, most + 1) if launch.replicas % count == 0)
    return Launch(0, launch.replicas // local, launch.replicas, local)
