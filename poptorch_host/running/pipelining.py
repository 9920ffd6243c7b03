# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Pipeline-parallel training with each stage of a model in a process of its own.

PopTorch pipelines a model over the IPUs of one process. Here, each process runs one stage, and
torch.distributed.pipelining transfers activations and their gradients (the 1F1B schedule of Narayanan et al. 2019,
"PipeDream", with a flush before each weight update, as in PopTorch). Processes are arranged in rows: a row contains the
stages of one data-parallel instance. All processes must make the same calls in the same order.
"""

import inspect
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from .. import host
from ..errors import check
from ..options import Options
from ..updating.latch import OptimizerLatch
from ..updating.update import State, WeightUpdate
from .pending import Pending
from .randomness import DeviceRandomness


class Place(NamedTuple):
    """The place of this process among the stages.

    Attributes:
        stage: the index of its stage.
        stages: the number of stages.
        row: the process group of the stages of one instance, in order.
        column: the process group of the same stage in all instances; None if there is one instance.
    """

    stage: int
    stages: int
    row: "dist.ProcessGroup"
    column: "Optional[dist.ProcessGroup]"

    def global_rank(self, stage: int) -> int:
        """Returns the global rank of the process in this row that runs a stage."""
        return dist.get_global_rank(self.row, stage)


def take_place(stages: int) -> Place:
    """Creates the process groups: rank r runs stage r % stages of instance r // stages.

    Args:
        stages: the number of stages, a divisor of the number of processes. torch.distributed must be initialised.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    rows: List[Any] = [dist.new_group(list(range(first, first + stages))) for first in range(0, size, stages)]
    columns: List[Any] = [None] * stages
    if size > stages:
        columns = [dist.new_group(list(range(stage, size, stages))) for stage in range(stages)]
    return Place(rank % stages, stages, rows[rank // stages], columns[rank % stages])


class StageExecutor:
    """Trains the stage of this process, with the methods of the executor that `trainingModel` returns.

    Every process has all weights of the model on the host, but only the weights, gradients and optimizer states of its
    stage on the device. Weights in float16 and buffers that change in training are not supported.

    Args:
        model: the whole model on the host.
        stage: the module of this process, which maps the output of the previous stage, or the input, to one tensor.
        parameters: the parameters of the stage by their names in the model.
        loss: maps the output of the last stage and the targets to the mean loss of a micro-batch, a scalar.
        options: the options of one data-parallel instance.
        optimizer: the optimizer of the parameters of `model`.
        place: the result of `take_place`.

    Attributes:
        options, parameters: as given.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        stage: torch.nn.Module,
        parameters: Dict[str, torch.nn.Parameter],
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        options: Options,
        optimizer: torch.optim.Optimizer,
        place: Place,
    ) -> None:
        self.options, self.parameters = options, parameters
        self._model, self._loss, self._place = model, loss, place
        self._device = host.device()
        self._stage = stage.to(self._device).train()
        self._randomness = DeviceRandomness(self._device, options.random_seed + dist.get_rank())
        self._latch = OptimizerLatch(options)
        self._latch.set(optimizer)
        whole = dict(model.named_parameters())
        self._update = _StageUpdate(
            self._latch,
            [(name, whole[name], parameter) for name, parameter in parameters.items()],
            options,
            self._randomness.seed,
            place.column,
            place.row,
        )
        self._replicas = options.replication_factor
        self._micro_batches = options.Training.gradient_accumulation * self._replicas  # of a weight update
        self._schedule: Schedule1F1B  # from `compile` on
        self._losses: List[torch.Tensor] = []
        self._attached = False

    def compile(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Exchanges the shapes of activations with the other stages, for combined batches like the given ones."""
        received, sent = self._shapes(self._micro_batch(inputs))
        stage = PipelineStage(
            self._stage,
            self._place.stage,
            self._place.stages,
            self._device,
            input_args=(received,),
            output_args=(sent,),
            group=self._place.row,
        )
        # the weight update averages gradients; newer versions of torch must be told not to
        known = inspect.signature(Schedule1F1B).parameters
        extra: Dict[str, Any] = {"scale_grads": False} if "scale_grads" in known else {}
        self._schedule = Schedule1F1B(stage, self._micro_batches, loss_fn=self._scaled_loss, **extra)
        self._attached = True

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> Tuple[None, torch.Tensor]:
        """Runs as many weight updates as there are device iterations.

        Args:
            inputs, targets: the combined batch of this instance, the same in all processes of the row.

        Returns:
            None in place of the outputs, which stay in the last stage; and, in every process, the sum of the losses of
            each replica's micro-batches, of shape (replicas,), as with OutputMode.Sum.
        """
        check(self._attached, "compile the stage and attach it to its device before calling it")
        self._update.upload()
        self._losses = []
        size = self._micro_batches * len(self._micro_batch(inputs))
        with self._randomness, torch.enable_grad():
            for update in zip(torch.split(inputs, size), torch.split(targets, size)):
                self._run_update(*update)
        self._update.mark_run()
        losses = torch.zeros(self._replicas, device=self._device)
        if self._losses:
            losses += torch.stack(self._losses).view(-1, self._replicas).sum(0)
        dist.broadcast(losses, src=self._place.global_rank(self._place.stages - 1), group=self._place.row)
        return None, losses.cpu()

    def launch(self, inputs: torch.Tensor, targets: torch.Tensor) -> Pending:
        """See `PoplarExecutor.launch`. The results are there at once, since the processes wait for each other."""
        skipped = self.skipped_updates
        return Pending(self(inputs, targets), None, self._update, skipped)

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """See `PoplarExecutor.setOptimizer`."""
        self._update.latch(optimizer)

    def copyWeightsToHost(self) -> None:
        """Copies the weights of all stages to the host's model in every process, and the state to its optimizer."""
        if not self._attached:
            return
        whole = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                whole[name].copy_(parameter)
            names: List[Any] = [None] * self._place.stages
            dist.all_gather_object(names, list(self.parameters), group=self._place.row)
            for stage, members in enumerate(names):
                for name in members:
                    dist.broadcast(whole[name].data, src=self._place.global_rank(stage), group=self._place.row)
        self._update.gather(self._place)

    def detachFromDevice(self) -> None:
        """Copies weights and optimizer state to the host. The stage cannot run until `attachToDevice`."""
        self.copyWeightsToHost()
        self._attached = False

    def attachToDevice(self) -> None:
        """Copies the weights of the host to the stage."""
        whole = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(whole[name])
        self._attached = True

    @property
    def rng_state(self) -> List[int]:
        """See `PoplarExecutor.rng_state`. Every process has its own."""
        return [*self._randomness.state, *self._update.rounding_state]

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        self._randomness.state = state[:-2]
        self._update.rounding_state = (state[-2], state[-1])

    @property
    def skipped_updates(self) -> int:
        """See `PoplarExecutor.skipped_updates`."""
        return self._update.skipped

    def _micro_batch(self, batch: torch.Tensor) -> torch.Tensor:
        """Returns the first micro-batch of a combined batch."""
        pieces = self.options.device_iterations * self._micro_batches
        check(len(batch) % pieces == 0, f"a combined batch of {len(batch)} cannot be cut into {pieces} micro-batches")
        return batch[: len(batch) // pieces]

    def _shapes(self, inputs: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Returns example inputs and outputs of the stage. Stages run in order, each on the shape of the one before."""
        received = sent = inputs.to(self._device)
        for stage in range(self._place.stages):
            told: List[Any] = [None]
            if stage == self._place.stage:
                with self._randomness.rehearsing(), torch.no_grad():
                    sent = self._stage(received).requires_grad_()  # so that the schedule knows that gradients follow
                told = [(tuple(sent.shape), sent.dtype)]
            dist.broadcast_object_list(told, src=self._place.global_rank(stage), group=self._place.row)
            if stage + 1 == self._place.stage:
                shape, dtype = told[0]
                received = torch.zeros(shape, dtype=dtype, device=self._device, requires_grad=True)
        return received, sent

    def _run_update(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Runs the micro-batches of a weight update through the pipeline, then the update."""
        first, last = self._place.stage == 0, self._place.stage == self._place.stages - 1
        arguments = (inputs.to(self._device),) if first else ()
        expected: Dict[str, Any] = {"target": targets.to(self._device)} if last else {}
        self._schedule.step(*arguments, **expected)
        self._update.accumulate(self._micro_batches)
        self._update.apply()

    def _scaled_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = self._loss(outputs, targets)
        self._losses.append(loss.detach())
        return self._update.scaled(loss * self._update.root_gradient())


class _StageUpdate(WeightUpdate):
    """The weight update of a stage. Its optimizer state is read as part of that of the whole model."""

    _gathered: Optional[Tuple[State, State]] = None

    def gather(self, place: Place) -> None:
        """Gathers the states of all stages in the first, whose optimizer reads them from there."""
        parts: Optional[List[Any]] = [None] * place.stages if place.stage == 0 else None
        dist.gather_object(super().read_state(), parts, dst=place.global_rank(0), group=place.row)
        if parts is not None:
            state, values = [
                {name: tensor for part in parts for name, tensor in part[index].items()} for index in range(2)
            ]
            self._gathered = (state, values)

    def read_state(self) -> Tuple[State, State]:
        """See `WeightUpdate`. In the first stage, the last gathered states of all stages; else those of this stage."""
        return self._gathered or super().read_state()
