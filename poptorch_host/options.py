# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The options of a model: devices, batches, precision and placement."""

import copy
import enum
import json
import os
import sys
from typing import Any, Dict, List, Optional, Union

import torch

from . import enums
from ._logging import logger
from ._options_impl import OptionsDict
from .errors import check, createPoptorchError
from .settings import progress
from .settings.strategies import (
    BlockId,
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
    _IExecutionStrategy,
    _IPhasedExecution,
)
from .settings.suboptions import (
    TensorLocationSettings,
    _DistributedOptions,
    _JitOptions,
    _PopartOptions,
    _PrecisionOptions,
    _TensorLocationOptions,
    _TrainingOptions,
)

__all__ = [
    "BlockId",
    "ConfigFileError",
    "Options",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "SerialPhasedExecution",
    "ShardedExecution",
    "Stage",
    "TensorLocationSettings",
    "_DistributedOptions",
    "_IExecutionStrategy",
    "_IPhasedExecution",
    "_JitOptions",
    "_PopartOptions",
    "_PrecisionOptions",
    "_TensorLocationOptions",
    "_TrainingOptions",
]

# PopTorch's value for an unlimited number of repeated log lines.
_UNLIMITED = 2**64 - 1


class ConfigFileError(Exception):
    """Raised for a file of options with a syntax error."""


class Options(OptionsDict):
    """The options of a model or a data loader.

    Most setters return the object, so that calls can be chained. A model or a DataLoader freezes the options it is
    given: any later change raises AttributeError. `clone()` returns a copy that can be changed.

    The environment variables POPTORCH_CACHE_DIR (a folder for compiled programs) and POPTORCH_DEFAULT_OPTIONS (JSON
    text for `from_json`) are read when the object is created.
    """

    def __init__(self) -> None:
        self._popart = _PopartOptions()
        self._jit = _JitOptions()
        self._precision = _PrecisionOptions(self._popart)
        self._training = _TrainingOptions(self._popart)
        self._distributed = _DistributedOptions()
        self._tensor_locations = _TensorLocationOptions()
        self._execution_strategy: _IExecutionStrategy = PipelinedExecution()
        self._show_compilation_progress_bar = True
        self._relax_optimizer_checks = False
        self._module_namescope_enabled = True
        self._source_location_excludes: List[str] = []
        super().__init__(
            replication_factor=1,
            input_group_size=1,
            input_cgt=enums.CommGroupType.Consecutive,
            broadcast_buffers=True,
            device_iterations=1,
            log_dir=".",
            max_repeat_logs=4,
            auto_round_num_ipus=False,
            anchored_tensors={},
            output_mode=enums.OutputMode.Default.value,
            output_return_period=1,
            connection_type=enums.ConnectionType.Always.value,
            sync_pattern=enums.SyncPattern.Full.value,
            available_memory_proportion={},
        )
        if os.environ.get("POPTORCH_CACHE_DIR"):
            self.enableExecutableCaching(os.environ["POPTORCH_CACHE_DIR"])
        if os.environ.get("POPTORCH_DEFAULT_OPTIONS"):
            self.from_json(os.environ["POPTORCH_DEFAULT_OPTIONS"])

    # Nested options.

    @property
    def TensorLocations(self) -> _TensorLocationOptions:
        """Options for the location of tensors."""
        return self._tensor_locations

    @property
    def Distributed(self) -> _DistributedOptions:
        """Options of distributed execution."""
        return self._distributed

    @property
    def Jit(self) -> _JitOptions:
        """Options of tracing."""
        return self._jit

    @property
    def Precision(self) -> _PrecisionOptions:
        """Options for number formats and rounding."""
        return self._precision

    @property
    def Training(self) -> _TrainingOptions:
        """Options of training models."""
        return self._training

    @property
    def _Popart(self) -> _PopartOptions:
        """Options of the compiler behind PopTorch."""
        return self._popart

    # Options from text.

    def from_json(self, string: str) -> "Options":
        """Sets options from a JSON object: {"dotted.setter": argument or list of arguments}.

        A string such as "OutputMode.All" stands for the member of that enumeration, but not within a list.
        """
        for accessor, value in json.loads(string).items():
            setter: Any = self
            for name in accessor.split("."):
                setter = getattr(setter, name)
            if isinstance(value, list):
                setter(*value)
            else:
                setter(_enum_member(value))
        return self

    def loadFromFile(self, filepath: str) -> "Options":
        """Sets options from a file with one setter call per line, without the leading `options.`.

        Empty lines and lines that begin with # are skipped. The file is executed as Python code with the names
        `options` and `poptorch`: only load files you trust.

        Raises:
            ConfigFileError: for a syntax error. Skipped lines are not counted in its line number.
        """
        with open(filepath, encoding="utf-8") as stream:
            lines = [line.strip() for line in stream]
        calls = [f"options.{line}" for line in lines if line and not line.startswith("#")]
        try:
            code = compile("\n".join(calls), filepath, "exec")
        except SyntaxError as error:
            number = error.lineno or 0
            wrong = "".join(calls[number - 1 : number])  # line numbers of the file include the skipped lines
            name = os.path.basename(filepath)
            raise ConfigFileError(f"SyntaxError at line {number} of {name}: {error.msg}\n> {wrong}") from error
        exec(code, {"poptorch": sys.modules[__package__], "options": self})
        return self

    # Logging and debugging.

    def sourceLocationExcludes(self, excludes: List[str]) -> "Options":
        """Sets the paths to exclude from the source locations of operations."""
        self.checkIsFrozen("sourceLocationExcludes")
        self._source_location_excludes = list(excludes)
        return self

    def appendToLocationExcludes(self, *excludes: str) -> "Options":
        """Adds paths to exclude from the source locations of operations."""
        return self.sourceLocationExcludes(self._source_location_excludes + list(excludes))

    def showCompilationProgressBar(self, show: bool = True) -> "Options":
        """Whether to show a progress bar on standard error. `compilationTime()` needs it too."""
        self.checkIsFrozen("showCompilationProgressBar")
        self._show_compilation_progress_bar = show
        return self

    def logDir(self, log_dir: str) -> "Options":
        """Sets the folder for logs."""
        self.set(log_dir=log_dir)
        return self

    def maxRepeatLogs(self, max_lines: Optional[int]) -> "Options":
        """Sets how often the same line may be logged; None for no limit."""
        self.set(max_repeat_logs=_UNLIMITED if max_lines is None else max_lines)
        return self

    def modelName(self, name: str) -> "Options":
        """Sets the name of the model in reports."""
        self.createOrSet(model_name=name)
        return self

    def disableModuleNamescope(self) -> "Options":
        """Leaves out module names from the names of operations."""
        self.checkIsFrozen("disableModuleNamescope")
        self._module_namescope_enabled = False
        return self

    def enableProfiling(self, profile_dir: Optional[str] = None) -> "Options":
        """Enables reports, which are written to `profile_dir` or the current folder."""
        wanted = {
            "debug.allowOutOfMemory": "true",
            "autoReport.directory": profile_dir or ".",
            "autoReport.all": "true",
        }
        present = environment_engine_options()
        for option in sorted(set(wanted) & set(present)):
            logger.warning(
                "POPLAR_ENGINE_OPTIONS sets %s to %s: enableProfiling() replaces it by %s",
                option,
                present[option],
                wanted[option],
            )
        self._popart.setEngineOptions({**self._popart.options.get("engineOptions", {}), **wanted})
        return self

    def logCycleCount(self, log_cycle_count: bool) -> "Options":
        """Whether to count the cycles of a run for `cycleCount`. Not possible with the IPU model or offline."""
        self._popart.set("instrumentWithHardwareCycleCounter", log_cycle_count)
        return self

    def anchorTensor(
        self,
        short_name: str,
        long_name: str,
        output_mode: Optional[enums.OutputMode] = None,
        output_return_period: Optional[int] = 1,
    ) -> None:
        """Makes an internal tensor available through `getAnchoredTensor(short_name)`.

        Args:
            short_name: the name to use in the program.
            long_name: the name in the compiled model, one of `getTensorNames()`.
            output_mode: the micro-batches to return; None or Default for the output mode of the model.
            output_return_period: N of OutputMode.EveryN.
        """
        period = output_return_period if output_mode == enums.OutputMode.EveryN else 1
        self.anchored_tensors[short_name] = [long_name, output_mode is None, output_mode, period]

    # Batches, replicas, outputs.

    def deviceIterations(self, device_iterations: int) -> "Options":
        """Sets the iterations of the device's loop in one call: weight updates in training, else micro-batches."""
        self.set(device_iterations=device_iterations)
        return self

    def replicationFactor(self, replication_factor: int) -> "Options":
        """Sets the number of data-parallel replicas in this process."""
        self.set(replication_factor=replication_factor)
        return self

    def inputReplicaGrouping(self, input_group_size: int, input_group_type: enums.CommGroupType) -> "Options":
        """Sets the groups of replicas that get the same inputs. Set the replication factor first.

        Raises:
            ValueError: for CommGroupType.All, or a group size that does not divide the replication factor.
        """
        self.checkIsFrozen("inputReplicaGrouping")
        if input_group_type == enums.CommGroupType.All:
            raise ValueError(
                "inputReplicaGrouping cannot use CommGroupType.All: use a group of replication_factor replicas instead"
            )
        if input_group_type == enums.CommGroupType.NoGrouping:
            input_group_size, input_group_type = 1, enums.CommGroupType.Consecutive
        if input_group_size > self.replication_factor:
            raise ValueError(
                f"an input group of {input_group_size} replicas is larger than the replication factor "
                f"{self.replication_factor}"
            )
        if self.replication_factor % input_group_size:
            raise ValueError(
                f"an input group of {input_group_size} replicas does not divide the replication factor "
                f"{self.replication_factor}"
            )
        self.set(input_group_size=input_group_size, input_cgt=input_group_type)
        return self

    def outputMode(self, output_mode: enums.OutputMode, output_return_period: Optional[int] = None) -> "Options":
        """Sets the micro-batches whose outputs a call returns.

        Args:
            output_mode: the mode.
            output_return_period: N of OutputMode.EveryN, at least 1.
        """
        _check_output_mode(output_mode, output_return_period)
        if output_mode != enums.OutputMode.EveryN and output_return_period is not None:
            logger.info("output_return_period has no effect with OutputMode.%s", output_mode.name)
        self.set(
            output_mode=output_mode.value,
            output_return_period=output_return_period or 1,
        )
        return self

    def defaultOutputMode(self) -> bool:
        """Returns whether the output mode is the default: Final for training, All for inference."""
        return bool(self.output_mode == enums.OutputMode.Default)

    def broadcastBuffers(self, broadcast_buffers: bool = True) -> "Options":
        """Whether replicas share the values of buffers; with False, each replica has its own."""
        self.set(broadcast_buffers=broadcast_buffers)
        return self

    def updatableNamedBuffers(self, buffers: List[str]) -> "Options":
        """Sets the buffers that `copyNamedBuffersToDevice()` copies."""
        self._popart.set("updatableNamedBuffers", buffers)
        return self

    def randomSeed(self, random_seed: int) -> "Options":
        """Sets the seed of the device and of shuffling in data loaders, and calls torch.manual_seed."""
        check(isinstance(random_seed, int), f"the random seed must be an int, not {random_seed!r}")
        self.createOrSet(random_seed=random_seed)
        torch.manual_seed(random_seed)
        return self

    def enableSyntheticData(self, enabled: bool) -> "Options":
        """Whether to replace host transfers by random numbers generated on the device."""
        self._popart.set("syntheticDataMode", 2 if enabled else 0)
        return self

    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> "Options":
        """Whether to log unexpected attributes of an optimizer at level DEBUG rather than as warnings."""
        self.checkIsFrozen("relaxOptimizerAttributesChecks")
        self._relax_optimizer_checks = relax
        return self

    # Devices and the programs for them.

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> "Options":
        """Whether to round up the number of IPUs to the next power of two."""
        self.set(auto_round_num_ipus=auto_round_num_ipus)
        return self

    def setExecutionStrategy(self, strategy: Union[ParallelPhasedExecution, SerialPhasedExecution]) -> "Options":
        """Sets how blocks are assigned to stages and phases."""
        self.checkIsFrozen("setExecutionStrategy")
        check(isinstance(strategy, _IExecutionStrategy), f"expected an execution strategy, not {strategy!r}")
        self._execution_strategy = strategy
        return self

    def setAvailableMemoryProportion(self, available_memory_proportion: Dict[str, float]) -> "Options":
        """Sets the proportion of a device's memory that an operation may use temporarily: {"IPU0": 0.6, ...}."""
        proportions = {}
        for name, proportion in available_memory_proportion.items():
            check(name.startswith("IPU"), f"memory proportions are given to 'IPU0', 'IPU1', ..., not to {name!r}")
            proportions[int(name[len("IPU") :])] = float(proportion)
        self.createOrSet(available_memory_proportion=proportions)
        return self

    def enableExecutableCaching(self, path: str) -> "Options":
        """Sets the folder in which to cache compiled programs; None for no caching."""
        if path is not None:
            self._popart.set("cachePath", path)
        self._popart.set("enableEngineCaching", path is not None)
        return self

    def useIpuModel(self, use_model: bool) -> "Options":
        """Whether to use the simulator instead of a device."""
        self.createOrSet(use_model=use_model)
        return self

    def useIpuId(self, ipu_id: int) -> "Options":
        """Sets the id of the device to use."""
        check(isinstance(ipu_id, int), f"the id of an IPU must be an int, not {ipu_id!r}")
        self.createOrSet(ipu_id=ipu_id)
        return self

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> "Options":
        """Compiles for a device of the given version without attaching to one. The model cannot be run."""
        self.connectionType(enums.ConnectionType.Never)
        self.createOrSet(ipu_version=ipu_version)
        return self

    def connectionType(self, connection_type: enums.ConnectionType) -> "Options":
        """Sets when to attach to a device."""
        check(
            isinstance(connection_type, enums.ConnectionType),
            f"expected a poptorch.ConnectionType, not {connection_type!r}",
        )
        self.set(connection_type=connection_type.value)
        return self

    def syncPattern(self, sync_pattern: enums.SyncPattern) -> "Options":
        """Sets how the devices of a model synchronise."""
        check(isinstance(sync_pattern, enums.SyncPattern), f"expected a poptorch.SyncPattern, not {sync_pattern!r}")
        self.set(sync_pattern=sync_pattern.value)
        return self

    def enableStableNorm(self, enabled: bool) -> "Options":
        """Whether to compute variances in normalisation layers in the slower, numerically stable way."""
        self._popart.set("enableStableNorm", enabled)
        return self

    # The options as a whole.

    def toDict(self) -> Dict[str, Any]:
        """Returns all options in one dictionary.

        Raises:
            AssertionError: if the output mode is OutputMode.Default.
        """
        check(
            not self.defaultOutputMode(),
            "the output mode is still OutputMode.Default: a model resolves it, or call outputMode() first",
        )
        values: Dict[str, Any] = {**self._execution_strategy.backendOptions(), **self._popart.options}
        self.update(values)
        for part in (self._training, self._distributed, self._tensor_locations):
            part.update(values)
        if self._show_compilation_progress_bar:
            values["compilation_progress_bar_fn"] = progress.show
        return values

    def clone(self) -> "Options":
        """Returns an independent copy that is not frozen."""
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        parts = (self._popart, self._jit, self._precision, self._training, self._distributed, self._tensor_locations)
        values = [f"{option}={value!r}" for option, value in self._values.items()]
        values += [f"{type(self._execution_strategy).__name__}()", *map(repr, parts)]
        return f"{type(self).__name__}({', '.join(values)})"


def environment_engine_options() -> Dict[str, str]:
    """Returns the engine options in POPLAR_ENGINE_OPTIONS. Raises Error if it is not a JSON object."""
    text = os.environ.get("POPLAR_ENGINE_OPTIONS") or "{}"
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise createPoptorchError(f"POPLAR_ENGINE_OPTIONS is {text!r}: it must be a JSON object") from error


def own_options(options: Optional[Options], training: bool) -> Options:
    """Freezes and checks the options. Returns a copy in which the default output mode is resolved."""
    options = Options() if options is None else options
    if not isinstance(options, Options):
        raise createPoptorchError(f"Invalid type {type(options).__name__} of options: use poptorch.Options()")
    options._freeze()
    own, accumulation = options.clone(), options.Training.gradient_accumulation
    if not training and accumulation != 1:
        pipelined = isinstance(own._execution_strategy, PipelinedExecution)
        hint = ". Use Options.deviceIterations to fill the pipeline" if pipelined else ""
        raise createPoptorchError(
            f"You must set Options.Training.gradientAccumulation to 1 for inference, not {accumulation}{hint}"
        )
    if own.defaultOutputMode():
        own.outputMode(enums.OutputMode.Final if training else enums.OutputMode.All)
    return own


def _check_output_mode(output_mode: enums.OutputMode, period: Optional[int]) -> None:
    check(isinstance(output_mode, enums.OutputMode), f"expected a poptorch.OutputMode, not {output_mode!r}")
    if output_mode == enums.OutputMode.EveryN:
        check(
            isinstance(period, int) and period > 0,
            f"OutputMode.EveryN needs an output_return_period of at least 1, not {period!r}",
        )


def _enum_member(value: Any) -> Any:
    """Returns the enumeration member for a string such as 'OutputMode.All', and any other value unchanged."""
    name, dot, member = value.partition(".") if isinstance(value, str) else ("", "", "")
    kind = getattr(enums, name, None) if dot else None
    return kind[member] if isinstance(kind, enum.EnumMeta) and member in kind.__members__ else value
