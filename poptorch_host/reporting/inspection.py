# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The methods of an executor that report on its program and its last call."""

import datetime
import json
from typing import Any, List, Optional

import torch

from ..compiling.compiler import Compiled
from ..compiling.placement import popart_name
from ..errors import createPoptorchError
from ..inputs.nested import tensors_of
from ..options import Options
from ..running import latency
from ..running.engine import Engine
from ..running.program import Program


class Inspection:
    """The methods of an executor that report and change nothing."""

    _program: Optional[Program]
    _options: Options
    _compilation_seconds: float

    @property
    def options(self) -> Options:
        """The executor's own copy of the options."""
        return self._options

    @property
    def compiled(self) -> Optional[Compiled]:
        """The result of compilation (see `compiling.compiler.Compiled`); None before. Not part of PopTorch."""
        return None if self._program is None else self._program.compiled

    @property
    def skipped_updates(self) -> int:
        """The number of weight updates that were skipped since their gradients were not finite; not in PopTorch."""
        update = None if self._program is None else self._program.update
        return 0 if update is None else update.skipped

    def isCompiled(self) -> bool:
        """Returns whether the model is compiled."""
        return self.compiled is not None

    @property
    def _executable(self) -> Optional[Compiled]:
        """`compiled` under PopTorch's private name, which PyTorch Lightning compares with None."""
        return self.compiled

    def _require_program(self, what: str) -> Program:
        if self._program is None:
            raise createPoptorchError(
                f"Model has not been compiled or has been destroyed: {what} needs a call, or compile(), first"
            )
        return self._program

    def _require_engine(self, what: str) -> Engine:
        engine = None if self._program is None else self._program.engine
        if engine is None:
            raise AssertionError(f"Model has not been compiled: {what} needs a program")
        return engine

    def _debugGetPopartIR(self) -> str:
        """Returns the program as JSON: lists of operations by graph, with PopART's names for operation types.

        Operations of forward are those of PyTorch, with their name scopes, IPU and stage.
        """
        program = self._require_program("_debugGetPopartIR")
        operations = [
            {
                "type": kind,
                "name": scopes + kind,
                "inputs": [],
                "outputs": [],
                "attributes": {"__ipu_number": stage.ipu, "__pipeline_stage": index},
            }
            for index, stage in enumerate(program.compiled.stages)
            for scopes, kind in map(popart_name, stage.run)
        ]
        update = program.update.operations() if program.update else []
        return json.dumps({"maingraph": operations + update}, separators=(",", ":"))

    def getTensorNames(self) -> List[str]:
        """Returns the names for `Options.anchorTensor`. Raises AssertionError before compilation."""
        return self._require_engine("getTensorNames").anchors.names()

    def getAnchoredTensor(self, short_name: str) -> torch.Tensor:
        """Returns the value of an anchored tensor in the last call.

        Raises:
            AssertionError: for an unknown name, or before a call.
        """
        return self._require_engine("getAnchoredTensor").anchors.get(short_name)

    def cycleCount(self) -> int:
        """Returns the duration of the last call in cycles. On a host, a cycle is a nanosecond.

        Raises:
            Error: without Options.logCycleCount(True), or before a call.
        """
        if not self._options._Popart.options["instrumentWithHardwareCycleCounter"]:
            raise createPoptorchError("Cycle count logging is disabled. Set Options.logCycleCount(True) to enable it")
        nanoseconds = None if self._program is None else self._program.run_nanoseconds
        if nanoseconds is None:
            raise createPoptorchError("Please run the model at least once before cycleCount()")
        return nanoseconds

    def compilationTime(self) -> datetime.timedelta:
        """Returns the duration of compilation.

        Raises:
            Error: before compilation, or with Options.showCompilationProgressBar(False).
        """
        self._require_program("compilationTime")
        if not self._options._show_compilation_progress_bar:
            raise createPoptorchError("compilationTime needs Options.showCompilationProgressBar(True)")
        return datetime.timedelta(seconds=self._compilation_seconds)

    def getPerfCounters(self) -> latency.Counters:
        """Returns the times of the events input, input_complete, output and output_complete of the last call.

        For each event, there is one list per tensor with the time in seconds of each transferred micro-batch.
        """
        program = self._program
        if program is None or program.engine is None or not program.engine.times:
            return {event: [[]] for event in latency.EVENTS}
        engine = program.engine
        inputs = sum(len(_tensor_signatures(signature)) for _, signature in program.compiled.inputs.signatures)
        return latency.counters(engine.times, inputs, len(tensors_of(engine.template)), engine.returned())

    def getHostIpuLatency(self) -> latency.Latency:
        """Returns the (minimum, maximum, average) seconds to transfer the inputs of a micro-batch to the device."""
        return self._latency("input", "input_complete")

    def getComputeLatency(self) -> latency.Latency:
        """Returns the (minimum, maximum, average) seconds to compute a micro-batch."""
        return self._latency("input_complete", "output")

    def getIpuHostLatency(self) -> latency.Latency:
        """Returns the (minimum, maximum, average) seconds to transfer the outputs of a micro-batch to the host."""
        return self._latency("output", "output_complete")

    def getLatency(self) -> latency.Latency:
        """Returns the (minimum, maximum, average) seconds from sending inputs to receiving outputs of a micro-batch."""
        return self._latency("input", "output_complete")

    def _latency(self, begin: str, end: str) -> latency.Latency:
        engine = None if self._program is None else self._program.engine
        if engine is None or not engine.times:
            return latency.NOTHING_RAN
        return latency.latency(engine.times, engine.returned(), begin, end)


def _tensor_signatures(signature: Any) -> List[Any]:
    """Returns the signatures of the tensors in the signature of an argument."""
    if signature[0] in ("tensor", "constant"):
        return [signature] if signature[0] == "tensor" else []
    return [inner for part in signature[-1] for inner in _tensor_signatures(part)]
