# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Configuration -> poptorch.Options for training and for inference."""

import importlib
from pathlib import Path
from typing import Any, Optional

import torch
from yacs.config import CfgNode

import accelerator
from common.errors import Refusal
from common.launch import Launch
from common.logs import logger
from planning.placement import ipus_of, pipeline_stages
from utils import one_line

# Values of PopART enumerations that PopTorch passes on as integers.
RECOMPUTE_NOTHING, RECOMPUTE_ALL = 0, 4  # popart.RecomputationType NoRecompute, RecomputeAll
OUTER_FRAGMENT = {"cycles": 2, "memory": 3}  # popart.AccumulateOuterFragmentSchedule Overlap...Optimized
COPY_JUST_IN_TIME = 1  # popart.SubgraphCopyingStrategy.JustInTime


def half_weights(config: CfgNode) -> bool:
    """Whether weights, accumulators and first moments are float16."""
    return config.MODEL.PRECISION == "16.16"


def device_generates_data(config: CfgNode) -> bool:
    """Whether the device generates its own input, which makes its outputs meaningless."""
    return config.DATA.DATASET == "generated" and config.DATA.GENERATED == "device"


def training_options(config: CfgNode, launch: Launch) -> Any:
    """poptorch.Options of the training model.

    A call runs IPU.DEVICE_ITERATIONS weight updates of TRAIN.ACCUMULATION_STEPS micro-batches on every replica, and
    returns the sum of the losses of all micro-batches.
    """
    poptorch = accelerator.poptorch()
    options = _common_options(config, launch)
    options.deviceIterations(config.IPU.DEVICE_ITERATIONS)
    options.outputMode(poptorch.OutputMode.Sum)
    training = options.Training
    training.gradientAccumulation(config.TRAIN.ACCUMULATION_STEPS)
    training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    strategy = poptorch.MeanReductionStrategy
    # A running mean never exceeds the largest gradient, so half-precision accumulators do not overflow.
    training.setMeanAccumulationAndReplicationReductionStrategy(
        strategy.Running if half_weights(config) else strategy.Post
    )
    if config.TRAIN.AUTO_LOSS_SCALING:
        training.setAutomaticLossScaling(True)
    options.Precision.enableStochasticRounding(config.IPU.STOCHASTIC_ROUNDING and half_weights(config))
    sharded = config.IPU.REPLICATED_TENSOR_SHARDING and launch.local_replicas > 1
    if config.IPU.REPLICATED_TENSOR_SHARDING and not sharded:
        logger.warning("IPU.REPLICATED_TENSOR_SHARDING has no effect with one replica per process")
    location = poptorch.TensorLocationSettings().useOnChipStorage(not config.IPU.OPTIMIZER_STATE_OFF_CHIP)
    location.useReplicatedTensorSharding(sharded)
    location.minElementsForReplicatedTensorSharding(config.IPU.SHARDING_MIN_ELEMENTS)
    options.TensorLocations.setOptimizerLocation(location)
    _set_recomputation(config, options)
    _set_popart(config, options, sharded)
    return options


def inference_options(config: CfgNode, launch: Launch) -> Any:
    """poptorch.Options of the validation model: all outputs, no stochastic rounding, a filled pipeline."""
    poptorch = accelerator.poptorch()
    options = _common_options(config, launch)
    stages = len(pipeline_stages(config))
    options.deviceIterations(max(config.IPU.INFERENCE_DEVICE_ITERATIONS, stages))
    options.outputMode(poptorch.OutputMode.All)
    options.Training.gradientAccumulation(1)
    options.Precision.enableStochasticRounding(False)
    return options


def _common_options(config: CfgNode, launch: Launch) -> Any:
    poptorch = accelerator.poptorch()
    ipus = ipus_of(pipeline_stages(config))
    options = _distributed_options(launch, ipus)
    # Hosts compile in seconds; for IPUs it can take an hour. One bar is enough for all processes.
    options.showCompilationProgressBar(launch.is_leader and accelerator.is_ipu())
    options.autoRoundNumIPUs(config.IPU.ROUND_UP_IPUS)
    # The asynchronous loader passes the options to a separate process, and PopTorch's strategy with named stages cannot
    # be pickled. Numbering stages in the order of their blocks is equivalent, since `annotate` marks them in order.
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    proportions = config.IPU.AVAILABLE_MEMORY_PROPORTION
    if not isinstance(proportions, list):
        proportions = [proportions] * ipus
    options.setAvailableMemoryProportion({f"IPU{ipu}": share for ipu, share in enumerate(proportions)})
    options.randomSeed(config.SEED)
    options.Precision.setPartialsType(torch.half if config.IPU.PARTIALS == "half" else torch.float)
    options._Popart.set("defaultPrefetchBufferingDepth", config.IPU.POPART.PREFETCH_DEPTH)
    _set_engine(config.IPU.ENGINE, options)
    cache = executable_cache(config)
    if cache is not None:
        options.enableExecutableCaching(str(cache))
    if device_generates_data(config):
        options.enableSyntheticData(True)
    return options


def _distributed_options(launch: Launch, ipus_per_replica: int) -> Any:
    """Options with the number of processes and replicas, which popdist sets under poprun.

    Raises:
        Refusal: if PopTorch cannot read a variable of the environment, such as OMPI_COMM_WORLD_SIZE.
    """
    chosen = accelerator.selected()
    under_poprun = chosen.device == "ipu" and chosen.popdist is not None and chosen.popdist.isPopdistEnvSet()
    try:
        if under_poprun:
            # importing popdist does not import popdist.poptorch
            return importlib.import_module("popdist.poptorch").Options(ipus_per_replica=ipus_per_replica)
        options = chosen.poptorch.Options()
    except (chosen.poptorch.Error, ValueError) as error:
        raise Refusal(f"PopTorch cannot read its options in the environment: {one_line(error)}") from error
    options.replicationFactor(launch.local_replicas)
    options.Distributed.configureProcessId(launch.process, launch.processes)
    return options


def executable_cache(config: CfgNode) -> Optional[Path]:
    """The folder for the model's compiled programs; None: they are not kept.

    IPU.EXECUTABLE_CACHE auto is a folder in the output folder, so a resumed run need not compile again. With auto,
    hosts, which compile quickly, and runs without an output folder keep nothing.
    """
    folder = config.IPU.EXECUTABLE_CACHE
    if folder == "auto":
        folder = str(Path(config.OUTPUT, config.TAG, "executables")) if config.OUTPUT and accelerator.is_ipu() else ""
    return Path(folder, f"{config.MODEL.NAME}-{config.MODEL.PRECISION}") if folder else None


def _set_engine(engine: CfgNode, options: Any) -> None:
    """Sets options of Poplar's engine, which are strings."""
    settings = {
        "opt.useAutoloader": engine.AUTOLOADER,
        "target.syncReplicasIndependently": engine.INDEPENDENT_REPLICAS,
    }
    options._Popart.set("engineOptions", {name: str(value).lower() for name, value in settings.items()})
    if engine.PROFILE_FOLDER:
        options.enableProfiling(engine.PROFILE_FOLDER)


def _set_recomputation(config: CfgNode, options: Any) -> None:
    """Sets what the backward pass recomputes; the outputs of blocks are kept by `annotate`.

    PopTorch enables recomputation by itself in pipelines only: a model on one IPU would keep everything.
    """
    if not config.IPU.RECOMPUTATION:
        options._Popart.set("autoRecomputation", RECOMPUTE_NOTHING)
    elif len(pipeline_stages(config)) == 1:
        options._Popart.set("autoRecomputation", RECOMPUTE_ALL)


def _set_popart(config: CfgNode, options: Any, sharded: bool) -> None:
    """Sets PopART options for training: memory for accumulators, collectives, schedule and patterns."""
    popart, settings = options._Popart, config.IPU.POPART
    popart.set("disableGradAccumulationTensorStreams", True)
    if settings.MERGE_COLLECTIVES and sharded:
        popart.set("replicatedCollectivesSettings.prepareScheduleForMergingCollectives", True)
        popart.set("replicatedCollectivesSettings.mergeAllReduceCollectives", True)
    if settings.OUTER_FRAGMENT:
        popart.set("accumulateOuterFragmentSettings.schedule", OUTER_FRAGMENT[settings.OUTER_FRAGMENT_FOR])
        if settings.OUTER_FRAGMENT_EXCLUDED:
            excluded = [str(ipu) for ipu in settings.OUTER_FRAGMENT_EXCLUDED]
            popart.set("accumulateOuterFragmentSettings.excludedVirtualGraphs", excluded)
    if settings.COPY_JUST_IN_TIME:
        popart.set("subgraphCopyingStrategy", COPY_JUST_IN_TIME)
    if settings.EARLY_GRADIENT_CONSUMERS:
        popart.set("scheduleNonWeightUpdateGradientConsumersEarly", True)
    if settings.PATTERNS:
        popart.setPatterns({name.lstrip("-"): not name.startswith("-") for name in settings.PATTERNS})
