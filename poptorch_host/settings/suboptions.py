# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The nested options of `Options`: Jit, Precision, Training, _Popart, Distributed, TensorLocations."""

import copy
from typing import Any, Dict, List, Optional, Set, Union

import torch

from .._environment import number_in
from .._logging import logger
from .._options_impl import OptionsDict, check_not_frozen
from ..enums import HalfFloatCastingBehavior, MeanReductionStrategy, ReductionType
from ..errors import check


class TensorLocationSettings(OptionsDict):
    """The location of a kind of tensors. No effect on a host."""

    def minElementsForOffChip(self, min_elements: int) -> "TensorLocationSettings":
        """Sets the number of elements below which tensors stay on the device."""
        return self._record("minElementsForOffChip", min_elements, int)

    def minElementsForReplicatedTensorSharding(self, min_elements: int) -> "TensorLocationSettings":
        """Sets the number of elements below which tensors are not sharded over replicas."""
        return self._record("minElementsForReplicatedTensorSharding", min_elements, int)

    def useOnChipStorage(self, use: bool = True) -> "TensorLocationSettings":
        """Whether to keep the tensors on the device or off it; None for no preference."""
        if use is None:
            self.checkIsFrozen("onChip")
            self.deleteIfExists("onChip")
            return self
        check(isinstance(use, bool), f"onChip must be a bool or None, not {use!r}")
        return self._record("onChip", int(use), int)

    def useReplicatedTensorSharding(self, use: bool = True) -> "TensorLocationSettings":
        """Whether to shard the tensors over the replicas."""
        return self._record("useReplicatedTensorSharding", use, bool)

    def useIOTilesToLoad(self, use: bool = True) -> "TensorLocationSettings":
        """Whether to load the tensors through I/O tiles."""
        return self._record("useIOTilesToLoad", use, bool)

    def useIOTilesToStore(self, use: bool = True) -> "TensorLocationSettings":
        """Whether to store the tensors on I/O tiles."""
        return self._record("useIOTilesToStore", use, bool)

    def _record(self, option: str, value: Any, kind: type) -> "TensorLocationSettings":
        check(isinstance(value, kind), f"{option} must be of type {kind.__name__}, not {value!r}")
        self.createOrSet(**{option: int(value)})
        return self


class _TensorLocationOptions(OptionsDict):
    """The locations of activations, weights, optimizer states and accumulators. No effect on results."""

    def numIOTiles(self, num_tiles: int) -> "_TensorLocationOptions":
        """Sets the number of I/O tiles of each device: an even number between 32 and 192.

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
        """Sets the location of activations."""
        return self._locate("location_activation", location)

    def setWeightLocation(self, location: TensorLocationSettings) -> "_TensorLocationOptions":
        """Sets the location of weights."""
        return self._locate("location_weight", location)

    def setOptimizerLocation(self, location: TensorLocationSettings) -> "_TensorLocationOptions":
        """Sets the location of optimizer states."""
        return self._locate("location_optimizer", location)

    def setAccumulatorLocation(self, location: TensorLocationSettings) -> "_TensorLocationOptions":
        """Sets the location of gradient accumulators."""
        return self._locate("location_accumulator", location)

    def _locate(self, option: str, location: TensorLocationSettings) -> "_TensorLocationOptions":
        check(
            isinstance(location, TensorLocationSettings),
            f"{option} must be a poptorch.TensorLocationSettings, not {location!r}",
        )
        self.createOrSet(**{option: location.toDict()})
        return self


class _JitOptions(OptionsDict):
    """Options of tracing, all of which are deprecated."""

    def traceModel(self, trace_model: bool) -> "_JitOptions":
        """Deprecated. Accepts False, without effect.

        Raises:
            ValueError: for True, since tracing with torch.jit was removed.
        """
        if trace_model:
            raise ValueError("Jit.traceModel(True) is not supported: tracing with torch.jit was removed")
        logger.warning("Jit.traceModel is deprecated and has no effect")
        return self


class _PopartOptions:
    """Options of PopART, the compiler behind PopTorch, by PopART's names. A host records them."""

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
        """Raises AttributeError if the options are frozen."""
        check_not_frozen(self._is_frozen, option)

    def set(self, key: str, value: Union[int, float, str, List[str], Set[str], Dict[str, Any]]) -> "_PopartOptions":
        """Sets an option. Its name and type are checked when a model is compiled."""
        self.checkIsFrozen(key)
        self.options[key] = value
        return self

    def setEngineOptions(self, engine_options: Dict[str, str]) -> "_PopartOptions":
        """Sets the engine options, replacing earlier ones."""
        return self.set("engineOptions", engine_options)

    def setPatterns(self, patterns: Dict[str, bool], level: int = 2) -> "_PopartOptions":
        """Sets the graph transformations: a default level, and exceptions by name."""
        self.checkIsFrozen("patterns")
        check(isinstance(patterns, dict), f"patterns must be a dict, not {patterns!r}")
        check(isinstance(level, int), f"the level of patterns must be an int, not {level!r}")
        return self.set("patterns", patterns).set("patterns_level", level)

    def _freeze(self) -> None:
        self._is_frozen = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.options.items())})"


class _PrecisionOptions(OptionsDict):
    """Options for number formats and rounding. Their values are stored in the _Popart options."""

    def __init__(self, popart_options: _PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__()

    def halfFloatCasting(self, half_float_casting: HalfFloatCastingBehavior) -> "_PrecisionOptions":
        """Deprecated. No effect."""
        logger.warning("Precision.halfFloatCasting is deprecated and has no effect")
        return self

    def runningStatisticsAlwaysFloat(self, value: bool) -> "_PrecisionOptions":
        """Deprecated. No effect. Raises ValueError unless `value` is a bool."""
        if type(value) is not bool:
            raise ValueError(f"runningStatisticsAlwaysFloat must be a bool, not {value!r}")
        logger.warning("Precision.runningStatisticsAlwaysFloat is deprecated and has no effect")
        return self

    def enableFloatingPointExceptions(self, enabled: bool) -> "_PrecisionOptions":
        """Whether overflow, division by zero and invalid operations raise an error at run time.

        On a host, this checks the result of every operation of forward and backward, and the gradients of every
        update, and runs micro-batches one at a time, which is slow. If gradients are not finite, the weights are not
        updated.
        """
        check(isinstance(enabled, bool), f"enableFloatingPointExceptions must be a bool, not {enabled!r}")
        return self._record("enableFloatingPointChecks", enabled)

    def enableStochasticRounding(self, enabled: bool) -> "_PrecisionOptions":
        """Whether to round to half stochastically, such that the expected value is exact, instead of to nearest."""
        return self._record("enableStochasticRounding", enabled)

    def setPartialsType(self, dtype: torch.dtype) -> "_PrecisionOptions":
        """Sets the type of partial sums in matrix products and convolutions: torch.float or torch.half.

        Overwrites the value of `Training.setConvolutionDithering`, as in PopTorch. See `precision.partials`.

        Raises:
            ValueError: for any other dtype.
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
    """Options of training models."""

    def __init__(self, popart_options: _PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__(
            gradient_accumulation=1,
            accumulation_and_replication_reduction_type=ReductionType.Mean,
            meanAccumulationAndReplicationReductionStrategy=MeanReductionStrategy.Post,
        )

    def gradientAccumulation(self, gradient_accumulation: int) -> "_TrainingOptions":
        """Sets the number of micro-batches of a replica per weight update."""
        self.set(gradient_accumulation=gradient_accumulation)
        return self

    def accumulationAndReplicationReductionType(self, reduction_type: ReductionType) -> "_TrainingOptions":
        """Sets how gradients of micro-batches and replicas are combined: ReductionType.Mean or .Sum.

        Raises:
            ValueError: for any other value.
        """
        self.checkIsFrozen("accumulation_and_replication_reduction_type")
        if not isinstance(reduction_type, ReductionType) or reduction_type == ReductionType.NoReduction:
            raise ValueError(f"expected poptorch.ReductionType.Mean or .Sum, not {reduction_type!r}")
        self.set(accumulation_and_replication_reduction_type=reduction_type)
        return self

    def setMeanAccumulationAndReplicationReductionStrategy(
        self, mean_reduction_strategy: MeanReductionStrategy
    ) -> "_TrainingOptions":
        """Sets when gradients are divided to form the mean over micro-batches and replicas."""
        check(
            isinstance(mean_reduction_strategy, MeanReductionStrategy),
            f"expected a poptorch.MeanReductionStrategy, not {mean_reduction_strategy!r}",
        )
        self.set(meanAccumulationAndReplicationReductionStrategy=mean_reduction_strategy)
        return self

    def setAutomaticLossScaling(self, enabled: bool) -> "_TrainingOptions":
        """Whether to adapt the loss scale so that half gradients neither overflow nor vanish."""
        return self._record("automaticLossScalingSettings.enabled", enabled)

    def setConvolutionDithering(self, enabled: bool) -> "_TrainingOptions":
        """Whether to spread the first tiles of convolutions.

        Overwrites the convolution type of `Precision.setPartialsType`, as in PopTorch.
        """
        return self._record("convolutionOptions", {"enableConvDithering": enabled})

    def _record(self, key: str, value: Any) -> "_TrainingOptions":
        self.checkIsFrozen(key)
        self._popart_options.set(key, value)
        return self


class _DistributedOptions(OptionsDict):
    """The id of this process and the number of processes, by default from Open MPI's environment variables."""

    def __init__(self) -> None:
        super().__init__(
            num_distributed_processes=number_in("OMPI_COMM_WORLD_SIZE", 1),
            distributed_process_id=number_in("OMPI_COMM_WORLD_RANK", 0),
            ipuof_configs={},
        )

    def disable(self) -> "_DistributedOptions":
        """Sets a single process, ignoring the environment."""
        return self.configureProcessId(0, 1)

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> "_DistributedOptions":
        """Reads the number of processes and the id from environment variables (default: 1 and 0).

        Raises:
            Error: if one of them holds no number.
        """
        return self.configureProcessId(number_in(var_process_id, 0), number_in(var_num_processes, 1))

    def configureProcessId(self, process_id: int, num_processes: int) -> "_DistributedOptions":
        """Sets the process id and the number of processes."""
        self.set(distributed_process_id=process_id, num_distributed_processes=num_processes)
        return self

    @property
    def processId(self) -> int:
        """The id of this process, counted from 0."""
        return int(self.distributed_process_id)

    @property
    def numProcesses(self) -> int:
        """The number of processes."""
        return int(self.num_distributed_processes)
