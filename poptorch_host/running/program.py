# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""A compiled model with everything that runs it: device weights, random numbers, engine and weight update."""

import contextlib
import time
from typing import Any, Dict, List, Optional

import torch

from .. import host
from .._logging import logger
from ..compiling.compiler import Compiled
from ..errors import createPoptorchError
from ..inputs.arguments import Bound
from ..inputs.blank import BlankTensors
from ..options import Options
from ..updating.latch import OptimizerLatch
from ..updating.reduce import process_group
from ..updating.update import WeightUpdate
from ..weights.device import DeviceWeights, ReplicaGrouping, untouched
from .engine import Engine
from .pending import Pending
from .randomness import DeviceRandomness

_NOTHING = contextlib.nullcontext()


class Device:
    """The device that a model is compiled for: its copies of the weights, and its random number generator.

    Args:
        model: the model whose weights to copy.
        options: the executor's options.
        latch: the optimizer of a training model; None for inference.
        groupings: how replicas share parameters, by name.

    Attributes:
        weights: the copies of parameters and buffers.
        randomness: the random number generator.
        has_values: False on the device "meta", where models are only compiled.

    Raises:
        Error: for an updatable buffer that the model does not have.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        options: Options,
        latch: Optional[OptimizerLatch],
        groupings: Dict[str, ReplicaGrouping],
    ) -> None:
        device, blank = host.device(), None
        self.has_values = device.type != "meta"
        if not self.has_values:
            device, blank = torch.device("cpu"), BlankTensors()
        trained = set()
        if latch is not None:
            with untouched():
                trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        self.weights = DeviceWeights(model, device, trained, groupings, options, blank)
        unknown = set(updatable_buffers(options)) - {name for name, _, _ in self.weights.buffers}
        if unknown:
            raise createPoptorchError(
                f"Options.updatableNamedBuffers: the model has no buffer {', '.join(sorted(unknown))}"
            )
        seed = options.random_seed if options.exists("random_seed") else None
        self.randomness = DeviceRandomness(device, None if seed is None else seed + options.Distributed.processId)


class Program:
    """A compiled model on its device.

    Args:
        model: the model that runs, which shares its modules with the user's.
        compiled: the result of compilation.
        device: the device that the model was compiled for.
        options: the executor's options.
        latch: the optimizer of a training model; None for inference.
        runs: whether the program may be run rather than only compiled.

    Attributes:
        compiled, weights, randomness: as given.
        update: the weight update; None for inference and for a program that is only compiled.
        engine: runs the calls; None for a program that is only compiled.
        run_nanoseconds: duration of the last call; None before the first.
        is_late: whether a call returns before its results are there, so that `Pending` has to wait for them.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        compiled: Compiled,
        device: Device,
        options: Options,
        latch: Optional[OptimizerLatch],
        runs: bool,
    ) -> None:
        self.compiled = compiled
        self.weights, self.randomness = device.weights, device.randomness
        self.update: Optional[WeightUpdate] = None
        self.engine: Optional[Engine] = None
        self.is_late = False
        self.run_nanoseconds: Optional[int] = None
        self.weights.latch_training_flags(model, compiled.training_flags)
        if compiled.updated_buffers and options.replication_factor > 1:
            self.weights.keep_buffers_apart(set(compiled.updated_buffers))
        if not runs:
            return
        if latch is not None:
            group = process_group(options, self.weights.device)
            if group is not None:
                self.weights.broadcast(group)
                self.weights.download()
            self.update = WeightUpdate(
                latch,
                self.weights.parameters,
                options,
                seed=self.randomness.seed,
                replica_groups=self.weights.replica_groups(),
            )
        self.engine = Engine(model, compiled, self.weights, options, self.update)
        self.is_late = self.engine.link is not None or (self.update is not None and self.update.is_late)

    def run(self, bound: Bound) -> Any:
        """Runs one call and returns its outputs on the host, or on their way to it. For programs with an engine."""
        assert self.engine is not None  # the executor attaches and runs no program that is only compiled
        self._start = time.perf_counter_ns()
        with self.randomness if self.compiled.draws_random_numbers else _NOTHING:
            outputs = self.engine.run(bound)
        self.run_nanoseconds = time.perf_counter_ns() - self._start
        logger.debug("Ran the program")
        return outputs

    def finished(self, outputs: Any) -> Any:
        """Waits for the results of the last call, whose time ends then. Returns its outputs."""
        assert self.engine is not None
        self.pending(outputs, 0).wait()
        self.engine.end_call()
        self.run_nanoseconds = time.perf_counter_ns() - self._start
        return outputs

    def pending(self, outputs: Any, skipped: int) -> Pending:
        """Returns the results of the last call, which had these outputs.

        Args:
            skipped: the number of weight updates that had been skipped before it.
        """
        assert self.engine is not None
        return Pending(outputs, self.engine.link, self.update, skipped)

    @property
    def rng_state(self) -> List[int]:
        """The seed, the words of the generator's state, and two numbers of stochastic rounding."""
        rounding = (self.randomness.seed, 0) if self.update is None else self.update.rounding_state
        return [*self.randomness.state, *rounding]

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        self.randomness.state = state[:-2]
        if self.update is not None:
            self.update.rounding_state = (state[-2], state[-1])


def updatable_buffers(options: Options) -> List[str]:
    """The names given to `Options.updatableNamedBuffers`."""
    return list(options._Popart.options.get("updatableNamedBuffers", []))
