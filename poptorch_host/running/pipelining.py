# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Pipelined training for real: every stage of a model in a process of its own, only activations crossing.

PopTorch pipelines a whole model over the IPUs of one process. Here a program hands over the stage that this process is
to run, and torch.distributed.pipelining moves activations and their gradients (the 1F1B schedule of Narayanan et al.
2019, "PipeDream", with a flush before each weight update, as PopTorch has it). Processes come in rows: those of one row
are the stages of one data-parallel instance. All must make the same calls in the same order.
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
from .randomness import DeviceRandomness


class Place(NamedTuple):
    """Where this process stands.

    Attributes:
        stage: the index of its stage.
        stages: how many there are.
        row: the group of the stages of one model, in their order.
        column: the group of the processes with the same stage of other instances; None where there is one instance.
    """

    stage: int
    stages: int
    row: "dist.ProcessGroup"
    column: "Optional[dist.ProcessGroup]"

    def global_rank(self, stage: int) -> int:
        """The rank, among all processes, of the process of this row that runs a stage."""
        return dist.get_global_rank(self.row, stage)


def take_place(stages: int) -> Place:
    """Joins the groups of this process: rank r runs stage r % stages of instance r // stages.

    Args:
        stages: a divisor of the number of processes; torch.distributed must be initialised.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    rows = [dist.new_group(list(range(first, first + stages))) for first in range(0, size, stages)]
    columns = [dist.new_group(list(range(stage, size, stages))) for stage in range(stages)] if size > stages else None
    return Place(rank % stages, stages, rows[rank // stages], columns and columns[rank % stages])


class StageExecutor:
    """Trains the stage of this process. Its calls are those of the executor that `trainingModel` returns.

    Weights live twice, as everywhere in this package: the model's are the host's, whole in every process; the stage's
    are the device's, and with their gradients and optimizer states nowhere else. Weights whose dtype is float16 are not
    supported, nor buffers that training changes.

    Args:
        model: the whole model on the host.
        stage: this process's part: what the previous stage returns, or the first input -> one tensor.
        parameters: the stage's parameters by their names in the model.
        loss: (what the last stage returns, targets) -> the mean loss of a micro-batch, a scalar.
        options: of one data-parallel instance.
        optimizer: over the parameters of `model`.
        place: from `take_place`.

    Attributes:
        options, parameters: as they were given.
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
        self._schedule: Optional[Schedule1F1B] = None
        self._losses: List[torch.Tensor] = []
        self._attached = False

    def compile(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Agrees with the other stages on the shapes of activations, for combined batches like these."""
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
        # gradients are averaged by the weight update; versions of torch that would do it themselves are told not to
        known = inspect.signature(Schedule1F1B).parameters
        extra = {"scale_grads": False} if "scale_grads" in known else {}
        self._schedule = Schedule1F1B(stage, self._micro_batches, loss_fn=self._scaled_loss, **extra)
        self._attached = True

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> Tuple[None, torch.Tensor]:
        """Device iterations weight updates.

        Args:
            inputs, targets: this instance's combined batch, the same in all processes of the row.

        Returns:
            None for the outputs, which stay in the last stage; and for each replica the sum of its micro-batches'
            losses (replicas,), as OutputMode.Sum gives them, in every process.
        """
        check(self._attached, "attach the stage to its device, and compile it, before it is called")
        self._update.upload()
        self._losses = []
        size = self._micro_batches * len(self._micro_batch(inputs))
        with self._randomness, torch.enable_grad():
            for update in zip(inputs.split(size), targets.split(size)):
                self._run_update(*update)
        self._update.mark_run()
        losses = torch.zeros(self._replicas, device=self._device)
        if self._losses:
            losses += torch.stack(self._losses).view(-1, self._replicas).sum(0)
        dist.broadcast(losses, src=self._place.global_rank(self._place.stages - 1), group=self._place.row)
        return None, losses.cpu()

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """See `PoplarExecutor.setOptimizer`."""
        self._update.latch(optimizer)

    def copyWeightsToHost(self) -> None:
        """Brings the weights of all stages to the host's model of every process, and the state to its optimizer."""
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
        """Fetches weights and optimizer state; until `attachToDevice` the stage does not run."""
        self.copyWeightsToHost()
        self._attached = False

    def attachToDevice(self) -> None:
        """Brings the host's weights to the stage."""
        whole = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(whole[name])
        self._attached = True

    @property
    def rng_state(self) -> List[int]:
        """See `PoplarExecutor.rng_state`; every process has its own."""
        return [*self._randomness.state, *self._update.rounding_state]

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        self._randomness.state = state[:-2]
        self._update.rounding_state = tuple(state[-2:])

    def _micro_batch(self, batch: torch.Tensor) -> torch.Tensor:
        """The first micro-batch of a combined one."""
        pieces = self.options.device_iterations * self._micro_batches
        check(len(batch) % pieces == 0, f"a combined batch of {len(batch)} cannot be cut into {pieces} micro-batches")
        return batch[: len(batch) // pieces]

    def _shapes(self, inputs: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Tensors like those that the stage takes and returns. Each stage tries itself with what the last one told."""
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
        """All micro-batches of a weight update through the pipeline, and the update."""
        first, last = self._place.stage == 0, self._place.stage == self._place.stages - 1
        arguments = (inputs.to(self._device),) if first else ()
        self._schedule.step(*arguments, **({"target": targets.to(self._device)} if last else {}))
        self._update.accumulate(self._micro_batches)
        self._update.apply()

    def _scaled_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = self._loss(outputs, targets)
        self._losses.append(loss.detach())
        return loss * self._update.root_gradient()


class _StageUpdate(WeightUpdate):
    """The weight update of a stage, whose optimizer state is read as part of the whole model's."""

    _gathered: Optional[Tuple[State, State]] = None

    def gather(self, place: Place) -> None:
        """Brings the states of all stages to the first, which gives them to its optimizer when that is read."""
        parts: Optional[List[Any]] = [None] * place.stages if place.stage == 0 else None
        dist.gather_object(super().read_state(), parts, dst=place.global_rank(0), group=place.row)
        if parts is not None:
            self._gathered = tuple(
                {name: tensor for part in parts for name, tensor in part[index].items()} for index in range(2)
            )

    def read_state(self) -> Tuple[State, State]:
        """See `WeightUpdate`: of all stages in the first, as they were gathered last; elsewhere of this stage."""
        return self._gathered or super().read_state()
