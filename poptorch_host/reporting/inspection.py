# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What a program may ask an executor about its program and its last call."""

import datetime
import json
from typing import Any, List, Optional

import torch

from ..compiling.compiler import Compiled
from ..compiling.placement import popart_name
from ..errors import check, createPoptorchError
from ..inputs.nested import tensors_of
from ..options import Options
from ..running import latency
from ..running.engine import Engine
from ..updating.update import WeightUpdate


class Inspection:
    """The part of an executor that only looks.

    Attributes:
        compiled: what was compiled (see `compiler.Compiled`); None before. Of this package, not of PopTorch.
    """

    compiled: Optional[Compiled]
    _engine: Optional[Engine]
    _update: Optional[WeightUpdate]
    _options: Options
    _compilation_seconds: float
    _run_nanoseconds: Optional[int]

    def isCompiled(self) -> bool:
        """Whether there is a compiled program."""
        return self.compiled is not None

    @property
    def _executable(self) -> Optional[Compiled]:
        """The program under PopTorch's private name, which trainers compare with None (PyTorch Lightning does)."""
        return self.compiled

    def _require_compiled(self, what: str) -> None:
        if not self.isCompiled():
            raise createPoptorchError(
                f"Model has not been compiled or has been destroyed: {what} needs a call, or compile(), first"
            )

    def _debugGetPopartIR(self) -> str:
        """The program as JSON: a list of operations under the name of the graph, by PopART's names for them.

        Those of the forward are as coarse as PyTorch's, and have their name scopes, their IPU and their stage.
        """
        self._require_compiled("_debugGetPopartIR")
        operations = [
            {
                "type": kind,
                "name": scopes + kind,
                "inputs": [],
                "outputs": [],
                "attributes": {"__ipu_number": stage.ipu, "__pipeline_stage": index},
            }
            for index, stage in enumerate(self.compiled.stages)
            for scopes, kind in map(popart_name, stage.run)
        ]
        return json.dumps(
            {"maingraph": operations + (self._update.operations() if self._update else [])}, separators=(",", ":")
        )

    def getTensorNames(self) -> List[str]:
        """The names that `Options.anchorTensor` takes. AssertionError before compilation."""
        check(self._engine is not None, "Model has not been compiled: getTensorNames needs a program")
        return self._engine.anchors.names()

    def getAnchoredTensor(self, short_name: str) -> torch.Tensor:
        """The value of an anchored tensor in the last call. AssertionError for an unknown name or before a call."""
        check(self._engine is not None, "Model has not been compiled: getAnchoredTensor needs a program")
        return self._engine.anchors.get(short_name)

    def cycleCount(self) -> int:
        """How long the last call took, in cycles of a nominal 1 GHz clock: nanoseconds on this host.

        Raises:
            Error: unless Options.logCycleCount(True), and before a call.
        """
        if not self._options._Popart.options["instrumentWithHardwareCycleCounter"]:
            raise createPoptorchError("Cycle count logging is disabled. Set Options.logCycleCount(True) to enable it")
        if self._run_nanoseconds is None:
            raise createPoptorchError("Please run the model at least once before cycleCount()")
        return self._run_nanoseconds

    def compilationTime(self) -> datetime.timedelta:
        """How long compilation took.

        Raises:
            Error: before compilation, or with Options.showCompilationProgressBar(False).
        """
        self._require_compiled("compilationTime")
        if not self._options._show_compilation_progress_bar:
            raise createPoptorchError("compilationTime needs Options.showCompilationProgressBar(True)")
        return datetime.timedelta(seconds=self._compilation_seconds)

    def getPerfCounters(self) -> latency.Counters:
        """Times in seconds of the events input, input_complete, output and output_complete of the last call.

        For each event a list with one list for each tensor, of one time for each micro-batch that was transferred.
        """
        if self._engine is None or not self._engine.times:
            return {event: [[]] for event in latency.EVENTS}
        inputs = sum(len(_tensor_signatures(signature)) for _, signature in self.compiled.inputs.signatures)
        outputs = len(tensors_of(self._engine.template))
        return latency.counters(self._engine.times, inputs, outputs, self._engine.returned())

    def getHostIpuLatency(self) -> latency.Latency:
        """(minimum, maximum, average) seconds from sending a micro-batch's inputs to having them on the device."""
        return self._latency("input", "input_complete")

    def getComputeLatency(self) -> latency.Latency:
        """(minimum, maximum, average) seconds of computing a micro-batch."""
        return self._latency("input_complete", "output")

    def getIpuHostLatency(self) -> latency.Latency:
        """(minimum, maximum, average) seconds from having outputs to having them on the host."""
        return self._latency("output", "output_complete")

    def getLatency(self) -> latency.Latency:
        """(minimum, maximum, average) seconds from sending a micro-batch's inputs to having outputs on the host."""
        return self._latency("input", "output_complete")

    def _latency(self, begin: str, end: str) -> latency.Latency:
        if self._engine is None or not self._engine.times:
            return latency.NOTHING_RAN
        return latency.latency(self._engine.times, self._engine.returned(), begin, end)


def _tensor_signatures(signature: Any) -> List[Any]:
    """The signatures of the tensors inside an argument's."""
    if signature[0] in ("tensor", "constant"):
        return [signature] if signature[0] == "tensor" else []
    return [inner for part in signature[-1] for inner in _tensor_signatures(part)]
