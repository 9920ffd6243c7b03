# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The enumerations of the popart package. As in PopTorch, `Options._Popart` takes int(member), not the member."""

import enum
from typing import Any


class _Enumeration(enum.Enum):
    """An enumeration whose members are not integers but convert to them by int()."""

    def __int__(self) -> int:
        return int(self.value)

    __index__ = __int__


def _enumeration(name: str, members: str) -> enum.EnumMeta:
    """Creates an enumeration with values from 0."""
    create: Any = _Enumeration  # type checkers do not know this form for a subclass
    created: enum.EnumMeta = create(
        name, [(member, value) for value, member in enumerate(members.split())], module=__name__
    )
    return created


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
