# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The support for PopTorch's interface on a host. `python -m poptorch_host.supported` writes SUPPORTED.md.

Every public name of PopTorch (data/poptorch-api.json) is implemented; recorded, which means that arguments are checked,
stored and frozen as in PopTorch, but have no effect; or refused with an Error. The tables below list the last two kinds
and remarks on the first. An entry also applies to the members of a name that have no entry of their own.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

PACKAGE = Path(__file__).resolve().parent
IMPLEMENTED, RECORDED, REFUSED = "implemented", "recorded", "refused"

_RECORDED = {
    "poptorch.Attribute": "attributes are for a graph compiler",
    "poptorch.HalfFloatCastingBehavior": "deprecated by PopTorch",
    "poptorch.Liveness": "memory of phases",
    "poptorch.MultiConv": "planning of convolutions; compilation checks its rules",
    "poptorch.MultiConvPlanType": "planning of convolutions",
    "poptorch.NameScope": "names in reports",
    "poptorch.OverlapMode": "host transfers",
    "poptorch.SyncPattern": "synchronisation of IPUs",
    "poptorch.TensorLocationSettings": "memory of IPUs",
    "poptorch.options._TensorLocationOptions": "memory of IPUs",
    "poptorch.set_available_memory": "memory of IPUs",
    "poptorch.set_overlap_for_input": "host transfers; compilation checks its rules",
    "poptorch.set_overlap_for_output": "host transfers; compilation checks its rules",
    "poptorch.Options.TensorLocations": "memory of IPUs",
    "poptorch.Options.appendToLocationExcludes": "names in reports",
    "poptorch.Options.autoRoundNumIPUs": "no IPUs to reserve",
    "poptorch.Options.disableModuleNamescope": "names in reports",
    "poptorch.Options.enableExecutableCaching": "compilation for a host is fast",
    "poptorch.Options.enableStableNorm": "PyTorch's norms are numerically stable",
    "poptorch.Options.enableSyntheticData": "the given data is used",
    "poptorch.Options.logDir": "a host writes no logs",
    "poptorch.Options.maxRepeatLogs": "a host writes no logs",
    "poptorch.Options.modelName": "names in reports",
    "poptorch.Options.setAvailableMemoryProportion": "memory of IPUs",
    "poptorch.Options.sourceLocationExcludes": "names in reports",
    "poptorch.Options.syncPattern": "synchronisation of IPUs",
    "poptorch.Options.useIpuId": "no IPUs to choose from",
    "poptorch.Options.useIpuModel": "no simulator",
    "poptorch.options._JitOptions.traceModel": "deprecated by PopTorch; True raises ValueError, as in PopTorch",
    "poptorch.options._PopartOptions": "options of a graph compiler, checked when a model is compiled",
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
    "poptorch.getIpuTensorId": "tensors are not part of a device's graph",
}

_REMARKS = {
    "poptorch.AsynchronousDataAccessor.__init__": "miss_sleep_time_in_ms is checked and unused, as nothing polls",
    "poptorch.CPU": "the function is called in place",
    "poptorch.Options.anchorTensor": "names are those of getTensorNames, not PopART's",
    "poptorch.Options.enableProfiling": "writes summary.txt; use torch.profiler to measure times",
    "poptorch.Options.logCycleCount": "a cycle is a nanosecond",
    "poptorch.Options.showCompilationProgressBar": "the bar is drawn once, at the end",
    "poptorch.PoplarExecutor._debugGetPopartIR": "operations of forward are PyTorch's, with PopART's names",
    "poptorch.PoplarExecutor.compileAndExport": "files have this package's own format",
    "poptorch.PoplarExecutor.cycleCount": "nanoseconds of the last call",
    "poptorch.PoplarExecutor.getPerfCounters": "times of the host's clock",
    "poptorch.PoplarExecutor.getTensorNames": "names of parameters, buffers, gradients and optimizer states",
    "poptorch.PoplarExecutor.loadExecutable": "files have this package's own format",
    "poptorch.PoplarExecutor.save": "files have this package's own format",
    "poptorch.RecoverableError": "never raised",
    "poptorch.UnrecoverableError": "never raised",
    "poptorch.options._PrecisionOptions.enableFloatingPointExceptions": "checks every result",
    "poptorch.options._TrainingOptions.setAutomaticLossScaling": "uses the rule in README.md",
    "poptorch.custom_op": "calls a function registered by custom_ops.implement; Error in a compiled model without one",
    "poptorch.fps": "in plain PyTorch",
    "poptorch.nearest": "in plain PyTorch",
    "poptorch.ctc_beam_search_decoder": "in plain Python: slow for long inputs",
    "poptorch.ipuHardwareIsAvailable": "POPTORCH_HOST_IPUS sets the number of IPUs (default 0)",
    "poptorch.ipuHardwareVersion": "AssertionError without IPUs, else 2; see POPTORCH_HOST_IPUS",
    "poptorch.profiling.Channel": "marks for torch.profiler instead of PopVision",
    "poptorch.registerGeometricCustomArgParsers": "raises Error if PyTorch Geometric is not installed",
}

_HEAD = """# Support for PopTorch 3.4 on a host

Generated by `python -m poptorch_host.supported`. Do not edit.

Every public name of PopTorch exists with its signature, and is one of three kinds:

- **implemented**: works as on a device;
- **recorded**: arguments are checked, stored and frozen as in PopTorch, but have no effect;
- **refused**: raises `poptorch.Error` with the reason.
"""


class Support(NamedTuple):
    """How a name is supported, and a remark on it."""

    kind: str
    remark: str


def recorded_names() -> Dict[str, Dict[str, Any]]:
    """Returns the public names of PopTorch and popdist with their entries in data/poptorch-api.json."""
    record = json.loads((PACKAGE / "data" / "poptorch-api.json").read_text(encoding="utf-8"))
    wrapped = {f"wrapped model.{name}": entry for name, entry in record["wrapped_user_model_members"].items()}
    return {**record["names"], **wrapped, **record["popdist_observed"]}


def support_of(name: str) -> Support:
    """Returns how `name` is supported: its own entry, else that of its innermost owner with one."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        part = ".".join(parts[:length])
        for kind, table in ((RECORDED, _RECORDED), (REFUSED, _REFUSED), (IMPLEMENTED, _REMARKS)):
            if part in table:
                return Support(kind, table[part] if part == name else "")
    return Support(IMPLEMENTED, "")


def render() -> str:
    """Returns the text of SUPPORTED.md."""
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
    """Returns the names by the module or class that they belong to, in the order of the record."""
    owners: Dict[str, List[str]] = {}
    for name in names:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    return owners


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m poptorch_host.supported",
        description="Writes SUPPORTED.md, the support for every public name of PopTorch, into the package's folder.",
    ).parse_args()
    (PACKAGE / "SUPPORTED.md").write_text(render(), encoding="utf-8")
