# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What of PopTorch's interface works on a host: `python -m poptorch_host.supported` writes SUPPORTED.md.

Every public name of PopTorch (data/poptorch-api.json) is implemented; or recorded, which means checked, frozen and
stored as by PopTorch, and without effect on a host; or refused with an Error. The tables below name the last two kinds
and what there is to say about the first. An entry holds for the members of its name too, unless they have their own.
"""

import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

PACKAGE = Path(__file__).resolve().parent
IMPLEMENTED, RECORDED, REFUSED = "implemented", "recorded", "refused"

_RECORDED = {
    "poptorch.Attribute": "a host has no graph compiler that reads attributes",
    "poptorch.HalfFloatCastingBehavior": "deprecated by PopTorch",
    "poptorch.Liveness": "memory of phases",
    "poptorch.MultiConv": "planning of convolutions; the rules of a compilation hold",
    "poptorch.MultiConvPlanType": "planning of convolutions",
    "poptorch.NameScope": "names in reports",
    "poptorch.OverlapMode": "host transfers",
    "poptorch.SyncPattern": "synchronisation of IPUs",
    "poptorch.TensorLocationSettings": "memory of IPUs",
    "poptorch.options._TensorLocationOptions": "memory of IPUs",
    "poptorch.set_available_memory": "memory of IPUs",
    "poptorch.set_overlap_for_input": "host transfers; the rules of a compilation hold",
    "poptorch.set_overlap_for_output": "host transfers; the rules of a compilation hold",
    "poptorch.Options.TensorLocations": "memory of IPUs",
    "poptorch.Options.appendToLocationExcludes": "names in reports",
    "poptorch.Options.autoRoundNumIPUs": "a host has no IPUs to reserve",
    "poptorch.Options.disableModuleNamescope": "names in reports",
    "poptorch.Options.enableExecutableCaching": "compiling for a host takes no time worth caching",
    "poptorch.Options.enableStableNorm": "PyTorch computes variances the stable way",
    "poptorch.Options.enableSyntheticData": "data is used as it is given",
    "poptorch.Options.logDir": "a host writes no logs of its own",
    "poptorch.Options.maxRepeatLogs": "a host writes no logs of its own",
    "poptorch.Options.modelName": "names in reports",
    "poptorch.Options.setAvailableMemoryProportion": "memory of IPUs",
    "poptorch.Options.sourceLocationExcludes": "names in reports",
    "poptorch.Options.syncPattern": "synchronisation of IPUs",
    "poptorch.Options.useIpuId": "a host has no IPUs to choose from",
    "poptorch.Options.useIpuModel": "a host has no simulator to choose",
    "poptorch.options._JitOptions.traceModel": "deprecated by PopTorch; True is a ValueError as there",
    "poptorch.options._PopartOptions": "settings of a graph compiler, checked when a model is compiled",
    "poptorch.options._PrecisionOptions.halfFloatCasting": "deprecated by PopTorch",
    "poptorch.options._PrecisionOptions.runningStatisticsAlwaysFloat": "deprecated by PopTorch",
    "poptorch.options._TrainingOptions.setConvolutionDithering": "planning of convolutions",
    "poptorch.ParallelPhasedExecution.sendTensorsOffChipAfterFwd": "memory of phases",
    "poptorch.SerialPhasedExecution.setTensorsLiveness": "memory of phases",
    "poptorch.ParallelPhasedExecution.useSeparateBackwardPhase": "memory of phases",
    "poptorch.SerialPhasedExecution.useSeparateBackwardPhase": "memory of phases",
    "poptorch.options._IPhasedExecution.useSeparateBackwardPhase": "memory of phases",
}

_REFUSED = {
    "poptorch.accessAttributes": "attributes are for device code",
    "poptorch.getIpuTensorId": "tensors have no ids in a device's graph",
}

_REMARKS = {
    "poptorch.AsynchronousDataAccessor.__init__": "miss_sleep_time_in_ms is checked and unused: the loader never polls",
    "poptorch.CPU": "the function is called where it stands",
    "poptorch.Options.anchorTensor": "names are those of getTensorNames, not PopART's",
    "poptorch.Options.enableProfiling": "summary.txt in the folder of the reports; for times use torch.profiler",
    "poptorch.Options.logCycleCount": "a cycle is a nanosecond",
    "poptorch.Options.showCompilationProgressBar": "the bar is drawn once, when it is full",
    "poptorch.PoplarExecutor._debugGetPopartIR": "the forward's operations are those of PyTorch, by PopART's names",
    "poptorch.PoplarExecutor.compileAndExport": "files are of this package's own format",
    "poptorch.PoplarExecutor.cycleCount": "nanoseconds of the last call",
    "poptorch.PoplarExecutor.getPerfCounters": "by the clock of the host",
    "poptorch.PoplarExecutor.getTensorNames": "names of parameters, buffers, gradients and optimizer states",
    "poptorch.PoplarExecutor.loadExecutable": "files are of this package's own format",
    "poptorch.PoplarExecutor.save": "files are of this package's own format",
    "poptorch.RecoverableError": "never raised: a host has no such failures",
    "poptorch.UnrecoverableError": "never raised: a host has no such failures",
    "poptorch.options._PrecisionOptions.enableFloatingPointExceptions": "checks every result, which is slow",
    "poptorch.options._TrainingOptions.setAutomaticLossScaling": "by a rule of its own, in README.md",
    "poptorch.custom_op": "by a function given to custom_ops.implement; refused in a compiled model without one",
    "poptorch.fps": "in plain PyTorch",
    "poptorch.nearest": "in plain PyTorch",
    "poptorch.ctc_beam_search_decoder": "in plain Python: slow for long inputs",
    "poptorch.ipuHardwareIsAvailable": "as many as POPTORCH_HOST_IPUS says, none by default",
    "poptorch.ipuHardwareVersion": "an AssertionError, as without hardware; 2 where POPTORCH_HOST_IPUS tells of IPUs",
    "poptorch.profiling.Channel": "marks for torch.profiler instead of PopVision",
    "poptorch.registerGeometricCustomArgParsers": "refused where PyTorch Geometric is not installed",
}

_HEAD = """# What of PopTorch 3.4 works on a host

Made by `python -m poptorch_host.supported`; do not edit.

Every public name of PopTorch is here with its signature, and is one of three kinds:

- **implemented**: it does what it does on a device;
- **recorded**: its arguments are checked, stored and frozen as by PopTorch, and have no effect on a host;
- **refused**: it raises `poptorch.Error` and says why.
"""


class Support(NamedTuple):
    """How a name is supported, and what there is to say about it itself."""

    kind: str
    remark: str


def recorded_names() -> Dict[str, Dict[str, Any]]:
    """The public names of PopTorch and popdist, each with what data/poptorch-api.json says about it."""
    record = json.loads((PACKAGE / "data" / "poptorch-api.json").read_text(encoding="utf-8"))
    wrapped = {f"wrapped model.{name}": entry for name, entry in record["wrapped_user_model_members"].items()}
    return {**record["names"], **wrapped, **record["popdist_observed"]}


def support_of(name: str) -> Support:
    """How `name` is supported: by its own entry, else by that of the longest part of it that has one."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        part = ".".join(parts[:length])
        for kind, table in ((RECORDED, _RECORDED), (REFUSED, _REFUSED), (IMPLEMENTED, _REMARKS)):
            if part in table:
                return Support(kind, table[part] if part == name else "")
    return Support(IMPLEMENTED, "")


def render() -> str:
    """The text of SUPPORTED.md."""
    names = recorded_names()
    counts = {kind: sum(support_of(name).kind == kind for name in names) for kind in (IMPLEMENTED, RECORDED, REFUSED)}
    lines = [
        _HEAD,
        "| implemented | recorded | refused |",
        "|---|---|---|",
        "| {implemented} | {recorded} | {refused} |".format(**counts),
    ]
    for owner, members in _by_owner(names).items():
        lines += ["", f"## {owner}", ""]
        for kind in counts:
            names_of_kind = [name for name in members if support_of(name).kind == kind]
            texts = [_text(name[len(owner) + 1 :], support_of(name)) for name in names_of_kind]
            lines += [f"- {kind}: {', '.join(texts)}"] if texts else []
    return "\n".join(lines) + "\n"


def _text(name: str, support: Support) -> str:
    return f"`{name}`" + (f" ({support.remark})" if support.remark else "")


def _by_owner(names: Dict[str, Dict[str, Any]]) -> Dict[str, List[str]]:
    """The names under the module or class they belong to, in the order of the record."""
    owners: Dict[str, List[str]] = {}
    for name in names:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    return owners


if __name__ == "__main__":
    (PACKAGE / "SUPPORTED.md").write_text(render(), encoding="utf-8")
