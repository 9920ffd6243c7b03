# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Configuration -> poptorch.Options, one set for training and one for inference."""

import importlib
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

import accelerator
from common.launch import Launch
from common.logs import logger
from planning.placement import ipus_of, pipeline_stages

# Values of PopART enumerations that PopTorch passes on as integers.
RECOMPUTE_NOTHING = 0  # popart.RecomputationType.NoRecompute
OVERLAP_MEMORY_OPTIMIZED = 3  # popart.AccumulateOuterFragmentSchedule.OverlapMemoryOptimized
COPY_JUST_IN_TIME = 1  # popart.SubgraphCopyingStrategy.JustInTime


def half_weights(config: CfgNode) -> bool:
    """Whether weights, and with them accumulators and first moments, are float16."""
    return config.MODEL.PRECISION == "16.16"


def device_generates_data(config: CfgNode) -> bool:
    """Whether the device makes up its input, and nothing that it returns means anything."""
    return config.DATA.DATASET == "generated" and config.DATA.GENERATED == "device"


def training_options(config: CfgNode, launch: Launch) -> Any:
    """poptorch.Options of the training model.

    One call runs IPU.DEVICE_ITERATIONS weight updates of TRAIN.ACCUMULATION_STEPS micro-batches on every replica and
    returns the sum of the micro-batches' losses, so that no micro-batch is left out of the logged loss.
    """
    poptorch = accelerator.poptorch()
    options = _common_options(config, launch)
    options.deviceIterations(config.IPU.DEVICE_ITERATIONS)
    options.outputMode(poptorch.OutputMode.Sum)
    training = options.Training
    training.gradientAccumulation(config.TRAIN.ACCUMULATION_STEPS)
    training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    strategy = poptorch.MeanReductionStrategy
    # A running mean never exceeds the largest gradient, so half accumulators cannot overflow by summing.
    training.setMeanAccumulationAndReplicationReductionStrategy(
        strategy.Running if half_weights(config) else strategy.Post
    )
    if config.TRAIN.AUTO_LOSS_SCALING:
        training.setAutomaticLossScaling(True)
    options.Precision.enableStochasticRounding(config.IPU.STOCHASTIC_ROUNDING and half_weights(config))
    if config.IPU.REPLICATED_TENSOR_SHARDING and launch.local_replicas == 1:
        logger.warning("IPU.REPLICATED_TENSOR_SHARDING has no effect: a process with one replica has nothing to share")
    elif config.IPU.REPLICATED_TENSOR_SHARDING:
        location = poptorch.TensorLocationSettings().useReplicatedTensorSharding(True).useOnChipStorage(True)
        location.minElementsForReplicatedTensorSharding(launch.local_replicas)
        options.TensorLocations.setOptimizerLocation(location)
    _set_popart(config, options)
    return options


def inference_options(config: CfgNode, launch: Launch) -> Any:
    """poptorch.Options of the validation model: every output returned, nothing rounded, the pipeline always filled."""
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
    # A host compiles in no time; for IPUs it can take an hour, which one process is enough to tell of.
    options.showCompilationProgressBar(launch.is_leader and accelerator.is_ipu())
    options.autoRoundNumIPUs(config.IPU.ROUND_UP_IPUS)
    # The asynchronous loader hands the options to a process of its own, and PopTorch's strategy of named stages cannot
    # be pickled. Stages that are counted as their blocks begin are the same, since `annotate` marks them in order.
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    options.setAvailableMemoryProportion({f"IPU{ipu}": config.IPU.AVAILABLE_MEMORY_PROPORTION for ipu in range(ipus)})
    options.randomSeed(config.SEED)
    options.Precision.setPartialsType(torch.half if config.IPU.PARTIALS == "half" else torch.float)
    options._Popart.set("defaultPrefetchBufferingDepth", config.IPU.POPART.PREFETCH_DEPTH)
    if config.IPU.EXECUTABLE_CACHE:
        folder = Path(config.IPU.EXECUTABLE_CACHE) / f"{config.MODEL.NAME}-{config.MODEL.PRECISION}"
        options.enableExecutableCaching(str(folder))
    if device_generates_data(config):
        options.enableSyntheticData(True)
    return options


def _distributed_options(launch: Launch, ipus_per_replica: int) -> Any:
    """Options that know how many processes and replicas there are; under poprun popdist fills that in itself."""
    chosen = accelerator.selected()
    if chosen.device == "ipu" and chosen.popdist is not None and chosen.popdist.isPopdistEnvSet():
        if not hasattr(chosen.popdist, "poptorch"):
            importlib.import_module("popdist.poptorch")  # importing popdist does not import it
        return chosen.popdist.poptorch.Options(ipus_per_replica=ipus_per_replica)
    options = chosen.poptorch.Options()
    options.replicationFactor(launch.local_replicas)
    options.Distributed.configureProcessId(launch.process, launch.processes)
    return options


def _set_popart(config: CfgNode, options: Any) -> None:
    """What PopTorch leaves to PopART: memory for accumulators, recomputation, and collectives of large models."""
    popart = options._Popart
    popart.set("disableGradAccumulationTensorStreams", True)
    if not config.IPU.RECOMPUTATION:
        popart.set("autoRecomputation", RECOMPUTE_NOTHING)
    if config.IPU.POPART.MERGE_COLLECTIVES:
        popart.set("replicatedCollectivesSettings.prepareScheduleForMergingCollectives", True)
        popart.set("replicatedCollectivesSettings.mergeAllReduceCollectives", True)
    if config.IPU.POPART.OUTER_FRAGMENT:
        popart.set("accumulateOuterFragmentSettings.schedule", OVERLAP_MEMORY_OPTIMIZED)
        popart.set("accumulateOuterFragmentSettings.excludedVirtualGraphs", ["0"])
        popart.set("subgraphCopyingStrategy", COPY_JUST_IN_TIME)
        popart.set("scheduleNonWeightUpdateGradientConsumersEarly", True)
