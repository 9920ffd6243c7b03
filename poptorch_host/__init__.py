# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""PopTorch's programming interface on ordinary PyTorch, for CPU and CUDA.

`python -m poptorch_host program.py ARGS` runs an existing PopTorch program on this package, unchanged. A new program
can use `import poptorch_host as poptorch`. Modules are loaded when one of their names is first used.
"""

from importlib import import_module as _import_module
from typing import Any, List

from . import _alias  # noqa: F401 (imported for its effect: aliases of this package share its modules)

__version__ = "3.4.0+host"

_EXPORTS = {
    "enums": [
        "AutoStage",
        "CommGroupType",
        "ConnectionType",
        "DataLoaderMode",
        "HalfFloatCastingBehavior",
        "Liveness",
        "MatMulSerializationMode",
        "MeanReductionStrategy",
        "MultiConvPlanType",
        "OutputMode",
        "OverlapMode",
        "ReductionType",
        "SharingStrategy",
        "SyncPattern",
        "VariableRetrievalMode",
    ],
    "errors": ["Error", "RecoverableError", "UnrecoverableError", "createPoptorchError"],
    "options": [
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
    ],
    "ops": [
        "Attribute",
        "BeginBlock",
        "Block",
        "BlockFunction",
        "CPU",
        "LegacyBeginBlockFn",
        "MultiConv",
        "NameScope",
        "cond",
        "ctc_beam_search_decoder",
        "custom_op",
        "dynamic_slice",
        "dynamic_update",
        "for_loop",
        "fps",
        "identity_loss",
        "ipu_print_tensor",
        "nearest",
        "nop",
        "recomputationCheckpoint",
        "removeBlocks",
        "serializedMatMul",
        "set_available_memory",
        "set_overlap_for_input",
        "set_overlap_for_output",
    ],
    "context": ["getIpuTensorId", "isRunningOnIpu"],
    "custom_ops": ["accessAttributes"],
    "inputs.custom_args": ["ICustomArgParser", "registerCustomArgParser", "registerGeometricCustomArgParsers"],
    "hardware": ["ipuHardwareIsAvailable", "ipuHardwareVersion"],
    "compiling.compile_hooks": ["registerPostCompileHook", "registerPreCompileHook"],
    "executor": ["PoplarExecutor", "inferenceModel", "load", "trainingModel"],
    "dataloader": ["DataLoader"],
    "loading.accessor": ["AsynchronousDataAccessor"],
    "compiling.program_file": ["importPoptorchMetadataFromFile"],
    "_logging": ["logger", "setLogLevel"],
    "_printing": ["module_repr", "print"],
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
_SUBMODULES = ["enums", "ops", "optim", "options", "poptorch_core", "profiling"]
_PRIVATE_SUBMODULES = ["_impl", "_logging", "_options_impl", "_poplar_executor"]  # programs use them nevertheless

__all__ = [*_HOME, *_SUBMODULES, "__version__"]


def __getattr__(name: str) -> Any:
    """Imports the module that defines `name`."""
    if name in _HOME:
        value = getattr(_import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _SUBMODULES or name in _PRIVATE_SUBMODULES:
        value = _import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
