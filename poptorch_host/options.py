# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The options of a model: what a program says about devices, batches, precision and placement."""

import json
import os
import sys
from typing import Any, Dict, List, Optional, Union

import torch

from . import enums
from ._logging import logger
from ._options_impl import OptionsDict
from .errors import check, createPoptorchError
from .settings import progress as _progress
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

# What PopTorch stores for an unlimited number of repeated log lines.
_UNLIMITED = 2**64 - 1


class ConfigFileError(Exception):
    """A file of options cannot be understood."""


class Options(OptionsDict):
    """Options of a model or a loader.

    Nearly every setter returns the object, so that calls can be chained. A model or a DataLoader freezes the options it
    is given: from then on every change raises AttributeError. `clone()` gives a copy that can be changed.

    The environment has a say when the object is made: POPTORCH_CACHE_DIR (a folder for compiled programs) and
    POPTORCH_DEFAULT_OPTIONS (JSON text for `from_json`).
    """

    def __init__(self) -> None:
        self._popart = _PopartOptions()
        self._jit = _JitOptions()
        self._precision = _PrecisionOptions(self._popart)
        self._training = _TrainingOptions(self._popart)
        self._distributed = _DistributedOptions()
        self._tensor_locations = _TensorLocationOptions()
        self._execution_strategy = PipelinedExecution()
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

    # The option objects inside.

    @property
    def TensorLocations(self) -> _TensorLocationOptions:
        """Where tensors are kept."""
        return self._tensor_locations

    @property
    def Distributed(self) -> _DistributedOptions:
        """Which of how many processes this is."""
        return self._distributed

    @property
    def Jit(self) -> _JitOptions:
        """Options of tracing."""
        return self._jit

    @property
    def Precision(self) -> _PrecisionOptions:
        """Number formats and rounding."""
        return self._precision

    @property
    def Training(self) -> _TrainingOptions:
        """Options of training models."""
        return self._training

    @property
    def _Popart(self) -> _PopartOptions:
        """Options of the compiler behind PopTorch."""
        return self._popart

    # Settings from text.

    def from_json(self, string: str) -> "Options":
        """Makes the calls that a JSON object names: {"dotted.accessor": argument or list of arguments}.

        A string such as "OutputMode.All" stands for the member of that enumeration.
        """
        for accessor, value in json.loads(string).items():
            setter: Any = self
            for name in accessor.split("."):
                setter = getattr(setter, name)
            setter(*[_enum_member(item) for item in (value if isinstance(value, list) else [value])])
        return self

    def loadFromFile(self, filepath: str) -> "Options":
        """Runs a file of calls on these options, one a line, each written without the `options.` in front.

        Empty lines and lines that begin with # are skipped. The file is Python code, run with the names `options` and
        `poptorch`: load only files you trust.

        Raises:
            ConfigFileError: for a syntax error; lines are counted without the skipped ones.
        """
        with open(filepath, encoding="utf-8") as stream:
            lines = [line.strip() for line in stream]
        calls = [f"options.{line}" for line in lines if line and not line.startswith("#")]
        try:
            code = compile("\n".join(calls), filepath, "exec")
        except SyntaxError as error:
            number = error.lineno
            wrong = "".join(calls[number - 1 : number])  # the file's own line of that number may be another
            raise ConfigFileError(f"SyntaxError at line {number} of {filepath}: {error.msg}\n> {wrong}") from error
        exec(code, {"poptorch": sys.modules[__package__], "options": self})
        return self

    # Logging and debugging.

    def sourceLocationExcludes(self, excludes: List[str]) -> "Options":
        """Paths that are left out when the origin of an operation is told."""
        self.checkIsFrozen("sourceLocationExcludes")
        self._source_location_excludes = list(excludes)
        return self

    def appendToLocationExcludes(self, *excludes: str) -> "Options":
        """Adds to the paths that are left out when the origin of an operation is told."""
        return self.sourceLocationExcludes(self._source_location_excludes + list(excludes))

    def showCompilationProgressBar(self, show: bool = True) -> "Options":
        """Whether a compilation ends with a bar on the standard error; `compilationTime()` needs it too."""
        self.checkIsFrozen("showCompilationProgressBar")
        self._show_compilation_progress_bar = show
        return self

    def logDir(self, log_dir: str) -> "Options":
        """The folder for logs."""
        self.set(log_dir=log_dir)
        return self

    def maxRepeatLogs(self, max_lines: Optional[int]) -> "Options":
        """How often the same line may be logged; None for no limit."""
        self.set(max_repeat_logs=_UNLIMITED if max_lines is None else max_lines)
        return self

    def modelName(self, name: str) -> "Options":
        """The name of the model in reports."""
        self.createOrSet(model_name=name)
        return self

    def disableModuleNamescope(self) -> "Options":
        """Operations are not named after the modules they belong to."""
        self.checkIsFrozen("disableModuleNamescope")
        self._module_namescope_enabled = False
        return self

    def enableProfiling(self, profile_dir: Optional[str] = None) -> "Options":
        """Asks the engine for reports, in `profile_dir` or the current folder."""
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
        """Counts the cycles of a run for `cycleCount`. Compiling for the IPU model or offline then raises Error."""
        self._popart.set("instrumentWithHardwareCycleCounter", log_cycle_count)
        return self

    def anchorTensor(
        self,
        short_name: str,
        long_name: str,
        output_mode: Optional[enums.OutputMode] = None,
        output_return_period: Optional[int] = 1,
    ) -> None:
        """Makes an inner tensor readable through `getAnchoredTensor(short_name)`.

        Args:
            short_name: what the program calls it.
            long_name: what the compiled model calls it, one of `getTensorNames()`.
            output_mode: which micro-batches are kept; None or Default for the mode of the model's outputs.
            output_return_period: the N of OutputMode.EveryN.
        """
        follows_outputs = output_mode is None or output_mode is enums.OutputMode.Default
        anchor: List[Any] = [long_name, follows_outputs]
        if not follows_outputs:
            _check_output_mode(output_mode, output_return_period)
            anchor.append(output_mode)
            if output_mode == enums.OutputMode.EveryN:
                anchor.append(output_return_period)
        self.anchored_tensors[short_name] = anchor

    # Batches, replicas, outputs.

    def deviceIterations(self, device_iterations: int) -> "Options":
        """Rounds of the device's outer loop in one call: weight updates when training, micro-batches otherwise."""
        self.set(device_iterations=device_iterations)
        return self

    def replicationFactor(self, replication_factor: int) -> "Options":
        """Data-parallel copies of the model in this process."""
        self.set(replication_factor=replication_factor)
        return self

    def inputReplicaGrouping(self, input_group_size: int, input_group_type: enums.CommGroupType) -> "Options":
        """Gives the replicas of a group the same inputs. Set the replication factor first.

        Raises:
            ValueError: for CommGroupType.All, and a size that does not divide the number of replicas.
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
        """Which micro-batches' outputs a call returns.

        Args:
            output_mode: the mode.
            output_return_period: the N of OutputMode.EveryN, from 1.
        """
        _check_output_mode(output_mode, output_return_period)
        if output_mode != enums.OutputMode.EveryN and output_return_period is not None:
            logger.info("output_return_period has no effect with OutputMode.%s", output_mode.name)
        self.set(
            output_mode=output_mode.value,
            output_return_period=1 if output_return_period is None else output_return_period,
        )
        return self

    def defaultOutputMode(self) -> bool:
        """Whether the output mode is left to the kind of model: Final for training, All for inference."""
        return self.output_mode == enums.OutputMode.Default

    def broadcastBuffers(self, broadcast_buffers: bool = True) -> "Options":
        """Whether replicas are to keep the same buffers; False lets each have its own."""
        self.set(broadcast_buffers=broadcast_buffers)
        return self

    def updatableNamedBuffers(self, buffers: List[str]) -> "Options":
        """Buffers that `copyNamedBuffersToDevice()` uploads."""
        self._popart.set("updatableNamedBuffers", buffers)
        return self

    def randomSeed(self, random_seed: int) -> "Options":
        """Seeds the device, the shuffling of loaders and, at once, torch's generators on the host."""
        check(isinstance(random_seed, int), f"the random seed must be an int, not {random_seed!r}")
        self.createOrSet(random_seed=random_seed)
        torch.manual_seed(random_seed)
        return self

    def enableSyntheticData(self, enabled: bool) -> "Options":
        """Leaves host transfers out and computes on random numbers made on the device."""
        self._popart.set("syntheticDataMode", 2 if enabled else 0)
        return self

    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> "Options":
        """Unexpected attributes of an optimizer are logged for debugging only, rather than as warnings."""
        self.checkIsFrozen("relaxOptimizerAttributesChecks")
        self._relax_optimizer_checks = relax
        return self

    # Devices and the programs for them.

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> "Options":
        """Allows reserving more devices than needed, up to the next power of two."""
        self.set(auto_round_num_ipus=auto_round_num_ipus)
        return self

    def setExecutionStrategy(self, strategy: Union[ParallelPhasedExecution, SerialPhasedExecution]) -> "Options":
        """How blocks become stages and phases."""
        self.checkIsFrozen("setExecutionStrategy")
        check(isinstance(strategy, _IExecutionStrategy), f"expected an execution strategy, not {strategy!r}")
        self._execution_strategy = strategy
        return self

    def setAvailableMemoryProportion(self, available_memory_proportion: Dict[str, float]) -> "Options":
        """The share of a device's memory that one operation may use for the time of its run: {"IPU0": 0.6, ...}."""
        proportions = {}
        for name, proportion in available_memory_proportion.items():
            check(name.startswith("IPU"), f"memory proportions are given to 'IPU0', 'IPU1', ..., not to {name!r}")
            proportions[int(name[len("IPU") :])] = float(proportion)
        self.createOrSet(available_memory_proportion=proportions)
        return self

    def enableExecutableCaching(self, path: str) -> "Options":
        """Keeps compiled programs in the folder `path`; None keeps none."""
        if path is not None:
            self._popart.set("cachePath", path)
        self._popart.set("enableEngineCaching", path is not None)
        return self

    def useIpuModel(self, use_model: bool) -> "Options":
        """Whether a simulator takes the place of a device."""
        self.createOrSet(use_model=use_model)
        return self

    def useIpuId(self, ipu_id: int) -> "Options":
        """Uses the device of this id."""
        check(isinstance(ipu_id, int), f"the id of an IPU must be an int, not {ipu_id!r}")
        self.createOrSet(ipu_id=ipu_id)
        return self

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> "Options":
        """Compiles for a device of that version without having one; the model cannot be run."""
        self.connectionType(enums.ConnectionType.Never)
        self.createOrSet(ipu_version=ipu_version)
        return self

    def connectionType(self, connection_type: enums.ConnectionType) -> "Options":
        """When the device is attached."""
        check(
            isinstance(connection_type, enums.ConnectionType),
            f"expected a poptorch.ConnectionType, not {connection_type!r}",
        )
        self.set(connection_type=connection_type.value)
        return self

    def syncPattern(self, sync_pattern: enums.SyncPattern) -> "Options":
        """How the devices of a model wait for each other."""
        check(isinstance(sync_pattern, enums.SyncPattern), f"expected a poptorch.SyncPattern, not {sync_pattern!r}")
        self.set(sync_pattern=sync_pattern.value)
        return self

    def enableStableNorm(self, enabled: bool) -> "Options":
        """Computes variances in normalisation layers the slower way that cannot become negative."""
        self._popart.set("enableStableNorm", enabled)
        return self

    # The object itself.

    def toDict(self) -> Dict[str, Any]:
        """All options in one dictionary, as a compilation gets them.

        Raises:
            AssertionError: while the output mode is left to the kind of model.
        """
        check(
            not self.defaultOutputMode(),
            "the output mode is still OutputMode.Default: a model resolves it, or call outputMode() first",
        )
        values = dict(self._execution_strategy.backendOptions())
        values.update(self._popart.options)
        for part in (super(), self._training, self._distributed, self._tensor_locations):
            part.update(values)
        if self._show_compilation_progress_bar:
            values["compilation_progress_bar_fn"] = _progress.show
        return values

    def clone(self) -> "Options":
        """An independent copy that can be changed."""
        return self.__deepcopy__({})

    def __repr__(self) -> str:
        parts = (self._popart, self._jit, self._precision, self._training, self._distributed, self._tensor_locations)
        values = [f"{option}={value!r}" for option, value in self._values.items()]
        values += [f"{type(self._execution_strategy).__name__}()", *map(repr, parts)]
        return f"{type(self).__name__}({', '.join(values)})"


def environment_engine_options() -> Dict[str, str]:
    """The engine's options in POPLAR_ENGINE_OPTIONS. Error when that is no JSON object."""
    text = os.environ.get("POPLAR_ENGINE_OPTIONS") or "{}"
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise createPoptorchError(f"POPLAR_ENGINE_OPTIONS is {text!r}: it must be a JSON object") from error


def _check_output_mode(output_mode: enums.OutputMode, period: Optional[int]) -> None:
    check(isinstance(output_mode, enums.OutputMode), f"expected a poptorch.OutputMode, not {output_mode!r}")
    if output_mode == enums.OutputMode.EveryN:
        check(
            isinstance(period, int) and period > 0,
            f"OutputMode.EveryN needs an output_return_period of at least 1, not {period!r}",
        )


def _enum_member(value: Any) -> Any:
    """The enumeration member that a string such as 'OutputMode.All' names; any other value as it is."""
    name, dot, member = value.partition(".") if isinstance(value, str) else ("", "", "")
    kind = getattr(enums, name, None) if dot else None
    return kind[member] if isinstance(kind, type) and member in kind.__members__ else value
