# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The enumerations of the popart package. `Options._Popart` takes their members as int(member) only, as PopTorch's."""

import enum
from typing import List


class _Enumeration(enum.Enum):
    """Members that are no integers, but become one by int()."""

    def __int__(self) -> int:
        return self.value

    __index__ = __int__


def _enumeration(name: str, members: str) -> enum.EnumMeta:
    """An enumeration that counts from 0."""
    named: List[str] = members.split()
    return _Enumeration(name, [(member, value) for value, member in enumerate(named)], module=__name__)


AccumulateOuterFragmentSchedule = _enumeration(
    "AccumulateOuterFragmentSchedule", "Scheduler Serial OverlapCycleOptimized OverlapMemoryOptimized"
)
BatchSerializationBatchSchedule = _enumeration(
    "BatchSerializationBatchSchedule", "Scheduler Isomorphic OverlapOnIo OverlapOnCompute"
)
BatchSerializationMethod = _enumeration("BatchSerializationMethod", "UnrollDynamic UnrollStatic Loop")
BatchSerializationTransformContext = _enumeration("BatchSerializationTransformContext", "Fwd Bwd")
DeviceConnectionType = _enumeration("DeviceConnectionType", "Always OnDemand Never")
DotCheck = _enumeration("DotCheck", "Fwd0 Fwd1 Bwd0 PreAlias Final All")
ExecutionPhaseIOSchedule = _enumeration("ExecutionPhaseIOSchedule", "Preload OnDemand")
ExecutionPhaseSchedule = _enumeration("ExecutionPhaseSchedule", "Interleaving Batch BatchClusteredIO")
GradientTensorTrackingMethod = _enumeration(
    "GradientTensorTrackingMethod",
    "AllNonViewChangingGradientTensors ConvAndMatmulGradients GradientsOfUserSpecifiedTensors",
)
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
