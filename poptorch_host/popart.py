# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The enumerations of the popart package that programs hand to `Options._Popart`. Its values are taken by int()."""
import enum
from typing import List


def _enumeration(name: str, members: str) -> enum.EnumMeta:
    """An enumeration that counts from 0."""
    named: List[str] = members.split()
    return enum.IntEnum(name, [(member, value) for value, member in enumerate(named)], module=__name__)


AccumulateOuterFragmentSchedule = _enumeration("AccumulateOuterFragmentSchedule",
                                               "Scheduler Serial OverlapCycleOptimized OverlapMemoryOptimized")
BatchSerializationBatchSchedule = _enumeration("BatchSerializationBatchSchedule",
                                               "Scheduler Isomorphic OverlapOnIo OverlapOnCompute")
BatchSerializationMethod = _enumeration("BatchSerializationMethod", "UnrollDynamic UnrollStatic Loop")
BatchSerializationTransformContext = _enumeration("BatchSerializationTransformContext", "Fwd Bwd")
DeviceConnectionType = _enumeration("DeviceConnectionType", "Always OnDemand Never")
DotCheck = _enumeration("DotCheck", "Fwd0 Fwd1 Bwd0 PreAlias Final All")
ExecutionPhaseIOSchedule = _enumeration("ExecutionPhaseIOSchedule", "Preload OnDemand")
ExecutionPhaseSchedule = _enumeration("ExecutionPhaseSchedule", "Interleaving Batch BatchClusteredIO")
GradientTensorTrackingMethod = _enumeration(
    "GradientTensorTrackingMethod",
    "AllNonViewChangingGradientTensors ConvAndMatmulGradients GradientsOfUserSpecifiedTensors")
Instrumentation = _enumeration("Instrumentation", "Outer Inner")
MeanReductionStrategy = _enumeration("MeanReductionStrategy", "Running Post")
MergeVarUpdateType = _enumeration("MergeVarUpdateType", "Off All AutoLoose AutoTight")
PatternsLevel = _enumeration("PatternsLevel", "NoPatterns Minimal Default All")
RecomputationType = _enumeration("RecomputationType", "NoRecompute Standard NormOnly Pipeline RecomputeAll")
ReplicatedTensorSharding = _enumeration("ReplicatedTensorSharding", "Off On")
SubgraphCopyingStrategy = _enumeration("SubgraphCopyingStrategy", "OnEnterAndExit JustInTime")
SyncPattern = _enumeration("SyncPattern", "Full SinglePipeline ReplicaAndLadder")
SyntheticDataMode = _enumeration("SyntheticDataMode", "Off Zeros RandomNormal RandomUniform")
TensorStorage = _enumeration("TensorStorage", "OffChip OnChip")
TileSet = _enumeration("TileSet", "Compute IO")
VirtualGraphMode = _enumeration("VirtualGraphMode", "Off Manual Auto ExecutionPhases")
