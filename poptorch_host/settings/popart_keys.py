# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The options of PopART, the compiler behind PopTorch, by the type of their values."""

from typing import Any, Dict

from .._logging import logger
from ..errors import createPoptorchError

_KEYS = {
    "bool": """
        accumulateOuterFragmentSettings.enabled aliasZeroCopy automaticLossScalingSettings.enabled
        batchSerializationSettings.concatOnExecutionPhaseChange batchSerializationSettings.concatOnPipelineStageChange
        batchSerializationSettings.concatOnVirtualGraphChange compileEngine constantWeights
        createImplicitPipeliningFwdOnlyProgram decomposeGradSum delayVarUpdates disableGradAccumulationTensorStreams
        disableOptimizerStateTensorStreams enableConstantFoldingOfMultipleConsumers enableDistributedReplicatedGraphs
        enableEngineCaching enableExplicitIR enableExplicitMainLoops enableFloatingPointChecks
        enableFullyConnectedPass enableGradientAccumulation enableInplaceAmbiguityGuard enableLoadAndOffloadRNGState
        enableMergeExchange enableNonStableSoftmax enableOutlining enableOutliningCopyCostPruning enablePipelining
        enablePrefetchDatastreams enableReplicatedGraphs enableRngStateManagement enableSerializedMatmuls
        enableStableNorm enableStochasticRounding enableSupportedDataTypeCasting enableVariablesCaching
        ensureFp32LossScaleTensor explicitPipeliningEnabled explicitRecomputation exportPoplarComputationGraph
        exportPoplarVertexGraph groupHostSync groupNormStridedChannelGrouping instrumentWithHardwareCycleCounter
        opxAliasChecking opxModifyChecking rearrangeAnchorsOnHost rearrangeStreamsOnHost
        replicatedCollectivesSettings.mergeAllGatherCollectives
        replicatedCollectivesSettings.mergeAllReduceCollectives
        replicatedCollectivesSettings.mergeReduceScatterCollectives
        replicatedCollectivesSettings.prepareScheduleForMergingCollectives
        scheduleNonWeightUpdateGradientConsumersEarly separateCallOpPdfs shouldDelayVarUpdates strictOpVersions
        throwIfLog2ScaleTensorNotInRange useHostCopyOps useLoopCandidateCreator
        """,
    "double": """
        automaticLossScalingSettings.binEdgeLocation automaticLossScalingSettings.thresholdUpperCountProportion
        looseThresholdAtPeak mergeVarUpdateMemThreshold outlineSequenceBreakCost outlineThreshold timeLimitScheduler
        transitiveClosureOptimizationThreshold
        """,
    "uint64": """
        accumulateOuterFragmentSettings.schedule accumulationAndReplicationReductionType accumulationFactor
        autodiffSettings.stitchStrategy automaticLossScalingSettings.gradientTensorTrackingMethod
        automaticLossScalingSettings.updatePeriod autoRecomputation batchSerializationSettings.batchSchedule
        batchSerializationSettings.factor batchSerializationSettings.method
        batchSerializationSettings.transformContext defaultBufferingDepth defaultPrefetchBufferingDepth
        executionPhaseSettings.activationIOSchedule executionPhaseSettings.optimizerStateIOSchedule
        executionPhaseSettings.phases executionPhaseSettings.schedule executionPhaseSettings.stages
        executionPhaseSettings.weightIOSchedule finalDotOp firstDotOp globalReplicaOffset globalReplicationFactor
        meanAccumulationAndReplicationReductionStrategy mergeVarUpdate numIOTiles patterns_level replicatedGraphCount
        subgraphCopyingStrategy swapLimitScheduler syntheticDataMode virtualGraphMode
        """,
    "string": """
        cachePath customCodeletCompileFlags kahnTieBreaker logDir partialsTypeMatMuls saveInitializersToFile
        serializedPoprithmsShiftGraphsDir
        """,
    "container": """
        accumulateOuterFragmentSettings.excludedVirtualGraphs automaticLossScalingSettings.toTrackTensors
        customCodelets dotChecks dotOpNames hardwareInstrumentations updatableNamedBuffers
        """,
    "map": """
        bufferingDepthMap convolutionOptions engineOptions gclOptions lstmOptions matmulOptions patterns
        prefetchBufferingDepthMap reportOptions tensorLocationSettingsOverride
        """,
}
_KIND_OF = {key: kind for kind, keys in _KEYS.items() for key in keys.split()}


def check_popart_options(options: Dict[str, Any]) -> None:
    """Raises Error for an option that PopART does not have, or a value of the wrong type.

    Args:
        options: the options that `Options._Popart` has stored.
    """
    for key, value in options.items():
        kind = _kind(key, value)
        expected = _KIND_OF.get(key)
        if kind != expected:
            known = f": it takes a {expected}, not {value!r}" if expected else ""
            raise createPoptorchError(f"Unknown {kind} option {key} in Options._Popart{known}")


def log_options(options: Dict[str, Any]) -> None:
    """Logs options at level DEBUG: a line for each value, and for each member of a container."""
    for name, value in options.items():
        if isinstance(value, dict):
            for key, member in value.items():
                logger.debug("poptorch.Options set %s[%s] to %s", name, key, _text(member))
        elif isinstance(value, (list, set, tuple)):
            for member in value:
                logger.debug("poptorch.Options added %s to %s", _text(member), name)
        else:
            logger.debug("poptorch.Options set %s to value %s", name, _text(value))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _kind(key: str, value: Any) -> str:
    for kind, types in (
        ("bool", bool),
        ("double", float),
        ("uint64", int),
        ("string", str),
        ("container", (list, set, tuple)),
        ("map", dict),
    ):
        if isinstance(value, types):
            return kind
    hint = f": use int({value})" if hasattr(value, "__int__") else ""
    raise createPoptorchError(f"Unknown value type {type(value).__name__} for option {key} in Options._Popart{hint}")
