# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The option objects inside `Options`: Jit, Precision, Training, _Popart, Distributed, TensorLocations."""

import copy
import os
from typing import Any, Dict, List, Optional, Set, Union

import torch

from .._logging import logger
from .._options_impl import OptionsDict
from ..enums import HalfFloatCastingBehavior, MeanReductionStrategy, ReductionType
from ..errors import check


class TensorLocationSettings(OptionsDict):
    """Where tensors of one kind are kept. On a host they are in memory whatever this says."""

    def minElementsForOffChip(self, min_elements: int) -> "TensorLocationSettings":
        """Smaller tensors stay on the device."""
        return self._record("minElementsForOffChip", min_elements, int)

    def minElementsForReplicatedTensorSharding(self, min_elements: int) -> "TensorLocationSettings":
        """Smaller tensors are not divided among replicas."""
        return self._record("minElementsForReplicatedTensorSharding", min_elements, int)

    def useOnChipStorage(self, use: bool = True) -> "TensorLocationSettings":
        """Keep the tensors on the device, or outside it; None leaves it open."""
        if use is None:
            self.checkIsFrozen("onChip")
            self.deleteIfExists("onChip")
            return self
        check(isinstance(use, bool), f"onChip must be a bool or None, not {use!r}")
        return self._record("onChip", int(use), int)

    def useReplicatedTensorSharding(self, use: bool = True) -> "TensorLocationSettings":
        """Divide the tensors among the replicas."""
        return self._record("useReplicatedTensorSharding", use, bool)

    def useIOTilesToLoad(self, use: bool = True) -> "TensorLocationSettings":
        """Load the tensors through the tiles set aside for input and output."""
        return self._record("useIOTilesToLoad", use, bool)

    def useIOTilesToStore(self, use: bool = True) -> "TensorLocationSettings":
        """Store the tensors on the tiles set aside for input and output."""
        return self._record("useIOTilesToStore", use, bool)

    def _record(self, option: str, value: Any, kind: type) -> "TensorLocationSettings":
        check(isinstance(value, kind), f"{option} must be of type {kind.__name__}, not {value!r}")
        self.createOrSet(**{option: int(value)})
        return self


class _TensorLocationOptions(OptionsDict):
    """Locations of activations, weights, optimizer states and accumulators. No effect on results."""

    def numIOTiles(self, num_tiles: int) -> "_TensorLocationOptions":
        """Tiles of each device set aside for input and output: an even number between 32 and 192.

        Raises:
            AssertionError: for any other number.
        """
        check(
            isinstance(num_tiles, int) and 32 <= num_tiles <= 192 and num_tiles % 2 == 0,
            f"numIOTiles must be an even number between 32 and 192, not {num_tiles!r}",
        )
        self.createOrSet(numIOTiles=num_tiles)
        return self

    def setActivationLocation(self, location: TensorLocationSettings) -> "_TensorLocationOptions":
        """Where activations are kept."""
        return self._locate("location_activation", location)

    def setWeightLocation(self, location: TensorLocationSettings) -> "_TensorLocationOptions":
        """Where weights are kept."""
        return self._locate("location_weight", location)

    def setOptimizerLocation(self, location: TensorLocationSettings) -> "_TensorLocationOptions":
        """Where optimizer states are kept."""
        return self._locate("location_optimizer", location)

    def setAccumulatorLocation(self, location: TensorLocationSettings) -> "_TensorLocationOptions":
        """Where gradient accumulators are kept."""
        return self._locate("location_accumulator", location)

    def _locate(self, option: str, location: TensorLocationSettings) -> "_TensorLocationOptions":
        check(
            isinstance(location, TensorLocationSettings),
            f"{option} must be a poptorch.TensorLocationSettings, not {location!r}",
        )
        self.createOrSet(**{option: location.toDict()})
        return self


class _JitOptions(OptionsDict):
    """What is left of the choice between ways to trace a model."""

    def traceModel(self, trace_model: bool) -> "_JitOptions":
        """Accepts False, which changes nothing.

        Raises:
            ValueError: for True: tracing with torch.jit was removed.
        """
        self.checkIsFrozen("traceModel")
        if trace_model:
            raise ValueError("Jit.traceModel(True) is not possible any more: torch.jit tracing was removed")
        logger.warning("Jit.traceModel is deprecated and has no effect")
        return self


class _PopartOptions:
    """Options for the compiler behind PopTorch, by that compiler's names. A host records them."""

    def __init__(self) -> None:
        self._is_frozen = False
        self.options: Dict[str, Any] = {}
        self.set("instrumentWithHardwareCycleCounter", False)
        self.set("rearrangeAnchorsOnHost", False)

    def __deepcopy__(self, memory: Dict[int, Any]) -> "_PopartOptions":
        copied = type(self)()
        memory[id(self)] = copied
        copied.options = copy.deepcopy(self.options, memory)
        return copied

    def checkIsFrozen(self, option: Optional[str] = None) -> None:
        """Raises AttributeError when these options may not change any more."""
        OptionsDict.checkIsFrozen(self, option)

    def set(self, key: str, value: Union[int, float, str, List[str], Set[str]]) -> "_PopartOptions":
        """Stores an option; what it is called and its type are checked when a model is compiled."""
        self.checkIsFrozen(key)
        self.options[key] = value
        return self

    def setEngineOptions(self, engine_options: Dict[str, str]) -> "_PopartOptions":
        """Replaces the options of the engine."""
        return self.set("engineOptions", engine_options)

    def setPatterns(self, patterns: Dict[str, bool], level: int = 2) -> "_PopartOptions":
        """Chooses the graph transformations: a level of defaults, and some by name."""
        self.checkIsFrozen("patterns")
        check(isinstance(patterns, dict), f"patterns must be a dict, not {patterns!r}")
        check(isinstance(level, int), f"the level of patterns must be an int, not {level!r}")
        return self.set("patterns", patterns).set("patterns_level", level)

    def _freeze(self) -> None:
        self._is_frozen = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.options.items())})"


class _PrecisionOptions(OptionsDict):
    """Number formats and rounding. The values themselves are stored with the _Popart options."""

    def __init__(self, popart_options: _PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__()

    def halfFloatCasting(self, half_float_casting: HalfFloatCastingBehavior) -> "_PrecisionOptions":
        """Deprecated, without effect."""
        self.checkIsFrozen("halfFloatCasting")
        logger.warning("Precision.halfFloatCasting is deprecated and has no effect")
        return self

    def runningStatisticsAlwaysFloat(self, value: bool) -> "_PrecisionOptions":
        """Deprecated, without effect. ValueError unless a bool."""
        self.checkIsFrozen("runningStatisticsAlwaysFloat")
        if type(value) is not bool:
            raise ValueError(f"runningStatisticsAlwaysFloat must be a bool, not {value!r}")
        logger.warning("Precision.runningStatisticsAlwaysFloat is deprecated and has no effect")
        return self

    def enableFloatingPointExceptions(self, enabled: bool) -> "_PrecisionOptions":
        """Turns overflow, division by zero and invalid operations into errors at run time.

        On a host every operation of forward and backward is looked at, which takes time, and micro-batches are run one
        by one; so are the gradients of an update before they are used. With gradients that are not finite, the weights
        stay as they are.
        """
        check(isinstance(enabled, bool), f"enableFloatingPointExceptions must be a bool, not {enabled!r}")
        return self._record("enableFloatingPointChecks", enabled)

    def enableStochasticRounding(self, enabled: bool) -> "_PrecisionOptions":
        """Rounds to half at random, with the exact value as expectation, rather than to the nearest number."""
        return self._record("enableStochasticRounding", enabled)

    def setPartialsType(self, dtype: torch.dtype) -> "_PrecisionOptions":
        """The format of partial sums in matrix products and convolutions: torch.float or torch.half.

        Replaces what `Training.setConvolutionDithering` stored, as PopTorch does. See `partials` for the arithmetic.

        Raises:
            ValueError: for another dtype.
        """
        if dtype not in (torch.float, torch.half):
            raise ValueError(f"setPartialsType takes torch.float or torch.half, not {dtype!r}")
        name = "half" if dtype == torch.half else "float"
        self._record("partialsTypeMatMuls", name)
        return self._record("convolutionOptions", {"partialsType": name})

    def _record(self, key: str, value: Any) -> "_PrecisionOptions":
        self.checkIsFrozen(key)
        self._popart_options.set(key, value)
        return self


class _TrainingOptions(OptionsDict):
    """Options that only a training model has."""

    def __init__(self, popart_options: _PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__(
            gradient_accumulation=1,
            accumulation_and_replication_reduction_type=ReductionType.Mean,
            meanAccumulationAndReplicationReductionStrategy=MeanReductionStrategy.Post,
        )

    def gradientAccumulation(self, gradient_accumulation: int) -> "_TrainingOptions":
        """Micro-batches of a replica that go into one weight update."""
        self.set(gradient_accumulation=gradient_accumulation)
        return self

    def accumulationAndReplicationReductionType(self, reduction_type: ReductionType) -> "_TrainingOptions":
        """How gradients of micro-batches and replicas are combined: ReductionType.Mean or .Sum, else ValueError."""
        self.checkIsFrozen("accumulation_and_replication_reduction_type")
        if not isinstance(reduction_type, ReductionType) or reduction_type == ReductionType.NoReduction:
            raise ValueError(f"expected poptorch.ReductionType.Mean or .Sum, not {reduction_type!r}")
        self.set(accumulation_and_replication_reduction_type=reduction_type)
        return self

    def setMeanAccumulationAndReplicationReductionStrategy(
        self, mean_reduction_strategy: MeanReductionStrategy
    ) -> "_TrainingOptions":
        """When the division of a mean over micro-batches and replicas is made."""
        check(
            isinstance(mean_reduction_strategy, MeanReductionStrategy),
            f"expected a poptorch.MeanReductionStrategy, not {mean_reduction_strategy!r}",
        )
        self.set(meanAccumulationAndReplicationReductionStrategy=mean_reduction_strategy)
        return self

    def setAutomaticLossScaling(self, enabled: bool) -> "_TrainingOptions":
        """Lets the device find a factor of the loss at which half gradients neither overflow nor vanish."""
        return self._record("automaticLossScalingSettings.enabled", enabled)

    def setConvolutionDithering(self, enabled: bool) -> "_TrainingOptions":
        """Spreads the first tiles of convolutions.

        Replaces what `Precision.setPartialsType` stored, as PopTorch does.
        """
        return self._record("convolutionOptions", {"enableConvDithering": enabled})

    def _record(self, key: str, value: Any) -> "_TrainingOptions":
        self.checkIsFrozen(key)
        self._popart_options.set(key, value)
        return self


class _DistributedOptions(OptionsDict):
    """Which of how many processes this one is. Open MPI's environment variables say so unless told otherwise."""

    def __init__(self) -> None:
        super().__init__(
            num_distributed_processes=_environment_number("OMPI_COMM_WORLD_SIZE", 1),
            distributed_process_id=_environment_number("OMPI_COMM_WORLD_RANK", 0),
            ipuof_configs={},
        )

    def disable(self) -> "_DistributedOptions":
        """One process, whatever the environment says."""
        return self.configureProcessId(0, 1)

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> "_DistributedOptions":
        """Reads count and id from these environment variables; 1 and 0 where they are not set."""
        return self.configureProcessId(
            _environment_number(var_process_id, 0), _environment_number(var_num_processes, 1)
        )

    def configureProcessId(self, process_id: int, num_processes: int) -> "_DistributedOptions":
        """Sets id and count."""
        self.set(distributed_process_id=process_id, num_distributed_processes=num_processes)
        return self

    @property
    def processId(self) -> int:
        """The id of this process, from 0."""
        return self.distributed_process_id

    @property
    def numProcesses(self) -> int:
        """How many processes there are."""
        return self.num_distributed_processes


def _environment_number(variable: str, default: int) -> int:
    return int(os.environ.get(variable, default))
