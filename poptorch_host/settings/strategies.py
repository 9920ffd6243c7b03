# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Execution strategies: how blocks are assigned to stages, phases and devices. A host runs them in sequence."""

import copy
from typing import Any, Dict, Iterable, List, NamedTuple, NoReturn, Optional, Tuple, Union

from ..enums import AutoStage, Liveness
from ..errors import check

BlockId = str


class Stage:
    """Blocks that run in sequence on one device.

    Args:
        block_ids: the user ids of the blocks.

    Raises:
        AssertionError: if an id is not a string.
    """

    def __init__(self, *block_ids: BlockId) -> None:
        for block_id in block_ids:
            check(isinstance(block_id, BlockId), f"block ids must be strings, not {block_id!r}")
        self._blocks = block_ids
        self._ipu: Optional[int] = None

    @property
    def blocks(self) -> Tuple[BlockId, ...]:
        """The ids of the stage's blocks."""
        return self._blocks

    def ipu(self, ipu: int) -> "Stage":
        """Sets the device of the stage. The default is the device of its blocks, else the index of the stage."""
        check(isinstance(ipu, int), f"the IPU of a stage must be an int, not {ipu!r}")
        self._ipu = ipu
        return self

    def __repr__(self) -> str:
        return f"Stage({', '.join(map(repr, self._blocks))})" + ("" if self._ipu is None else f".ipu({self._ipu})")


class Phase:
    """Stages that run in parallel between two exchanges with off-chip memory.

    Args:
        arg: stages, or the ids of the blocks of a single stage.
    """

    def __init__(self, *arg: Union[BlockId, Stage]) -> None:
        stages = [item for item in arg if isinstance(item, Stage)]
        self.stages = stages if len(stages) == len(arg) else [Stage(*arg)]  # type: ignore[arg-type]  # it checks them

    def stage(self, idx: int) -> Stage:
        """Returns the stage at index `idx`."""
        return self.stages[idx]

    def ipus(self, *ipus: int) -> None:
        """Sets the devices of the stages.

        Raises:
            AssertionError: if the numbers of devices and stages differ.
        """
        check(len(ipus) == len(self.stages), f"{len(self.stages)} stages need as many IPUs, not {len(ipus)}")
        for stage, ipu in zip(self.stages, ipus):
            stage.ipu(ipu)


class Placement(NamedTuple):
    """The place of a block in a program."""

    stage: int
    phase: int
    ipu: int


class _NamedStages:
    """Explicitly given stages, each with its index and phase. As in PopTorch, they can be copied but not pickled."""

    def __init__(self) -> None:
        self._entries: Dict[BlockId, Any] = {}

    def __deepcopy__(self, memory: Dict[int, Any]) -> "_NamedStages":
        copied = memory[id(self)] = type(self)()
        copied._entries = copy.deepcopy(self._entries, memory)
        return copied

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise AttributeError(
            "an execution strategy with listed stages or phases has a class that PopTorch makes inside a function, "
            "where pickle does not find it"
        )

    def add(self, stage: Stage, index: int, phase: int, default_ipu: int) -> None:
        for block_id in stage.blocks:
            check(block_id not in self._entries, f"block {block_id!r} is in two stages")
            self._entries[block_id] = (stage, index, phase, default_ipu)

    def restart(self) -> None:
        """Explicit stages do not change between traces."""

    def begin(self, block_id: BlockId, ipu_id: Optional[int], block_map: Dict[BlockId, Stage]) -> Placement:
        check(
            block_id in self._entries, f"Unknown Block {block_id!r}: the execution strategy has {sorted(self._entries)}"
        )
        stage, index, phase, default_ipu = self._entries[block_id]
        ipu = next(candidate for candidate in (stage._ipu, ipu_id, default_ipu) if candidate is not None)
        return Placement(index, phase, ipu)


class _AutoStages:
    """Stages that are created as blocks begin."""

    def __init__(self, mode: AutoStage) -> None:
        self.mode = mode
        self._indices: Dict[BlockId, int] = {}

    def restart(self) -> None:
        self._indices.clear()

    def begin(self, block_id: BlockId, ipu_id: Optional[int], block_map: Dict[BlockId, Stage]) -> Placement:
        if self.mode == AutoStage.SameAsIpu:
            if ipu_id is None:
                raise AssertionError(f"block {block_id!r} needs an ipu_id: AutoStage.SameAsIpu makes stages from them")
            index = ipu_id
        else:
            index = self._indices.setdefault(block_id, len(self._indices) + 1)
        stage = block_map.setdefault(block_id, Stage(block_id))
        ipu = next(candidate for candidate in (stage._ipu, ipu_id, index) if candidate is not None)
        return Placement(index, 0, ipu)


class _IExecutionStrategy:
    """Base class of the execution strategies.

    Args:
        stages_manager: assigns a place to each block as it begins.
        block_map: the stages of the known block ids.
    """

    def __init__(self, stages_manager: Any, block_map: Dict[BlockId, Stage]) -> None:
        self._stages_manager = stages_manager
        self._block_map = block_map

    def stage(self, block_id: BlockId) -> Stage:
        """Returns the stage of block `block_id`. Raises AssertionError for an unknown block."""
        check(
            block_id in self._block_map,
            f"Unknown Block {block_id!r}: the execution strategy has {sorted(self._block_map)}",
        )
        return self._block_map[block_id]

    def onStartTracing(self) -> None:
        """Called when tracing begins. Removes stages of an earlier trace."""
        self._stages_manager.restart()

    def onEndTracing(self) -> None:
        """Called when tracing ends, whether it failed or not."""

    def place(self, block_id: BlockId, ipu_id: Optional[int]) -> Placement:
        """Returns the place of a block that begins.

        Raises:
            AssertionError: for a block that is unknown or that the strategy cannot place.
        """
        placement: Placement = self._stages_manager.begin(block_id, ipu_id, self._block_map)
        return placement

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        """Returns the options that the strategy adds to a compilation."""
        raise TypeError(f"{type(self).__name__} is an abstract execution strategy: use one of its subclasses")


class PipelinedExecution(_IExecutionStrategy):
    """Stages run in parallel, each on a different micro-batch.

    Args:
        args: at most one AutoStage; or the stages in order, each a `Stage`, a block id or an iterable of block ids.

    Raises:
        AssertionError: for a block id in two stages, or an argument of another type.
    """

    def __init__(self, *args: Union[AutoStage, Stage, BlockId, Iterable[BlockId]]) -> None:
        first = args[0] if args else AutoStage.SameAsIpu
        if isinstance(first, AutoStage):
            check(len(args) <= 1, "an AutoStage must be the only argument")
            super().__init__(_AutoStages(first), {})
            return
        manager, block_map = _NamedStages(), {}
        for index, stage in enumerate([_as_stage(arg) for arg in args]):
            manager.add(stage, index, 0, index)
            block_map.update(dict.fromkeys(stage.blocks, stage))
        super().__init__(manager, block_map)

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        """Returns the options that the strategy adds to a compilation."""
        return {"execution_mode": 0}

    @property
    def counts_from_one(self) -> bool:
        """Whether stages get their numbers from 1 on, as they begin."""
        return isinstance(self._stages_manager, _AutoStages) and self._stages_manager.mode == AutoStage.AutoIncrement


class ShardedExecution(PipelinedExecution):
    """Stages run in sequence on the same micro-batch."""

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        """Returns the options that the strategy adds to a compilation."""
        return {"execution_mode": 1}


class _IPhasedExecution(_IExecutionStrategy):
    """Base class of strategies that run phases in sequence and keep tensors off-chip in between.

    Args:
        phases: the phases in order, each a `Phase`, a block id, or a list of block ids or stages.

    Raises:
        AssertionError: if there are no phases, or a block id is in two stages.
    """

    def __init__(self, *phases: Union[Phase, Stage, BlockId, List[Union[Stage, BlockId]]]) -> None:
        check(len(phases) > 0, f"{type(self).__name__} needs at least one phase")
        self._phases = [_as_phase(phase) for phase in phases]
        self._separate_backward_phase = False
        self._liveness = Liveness.AlwaysLive
        manager, block_map = _NamedStages(), {}
        for phase_index, phase in enumerate(self._phases):
            for stage_index, stage in enumerate(phase.stages):
                manager.add(stage, stage_index, phase_index, self._default_ipu(phase_index, stage_index))
                block_map.update(dict.fromkeys(stage.blocks, stage))
        super().__init__(manager, block_map)

    def _default_ipu(self, phase: int, stage: int) -> int:
        return stage

    def phase(self, phase: int) -> Phase:
        """Returns the phase at index `phase`.

        Raises:
            AssertionError: unless it is an integer of at least 0.
            IndexError: if there are fewer phases.
        """
        check(isinstance(phase, int) and phase >= 0, f"the index of a phase is an integer of at least 0, not {phase!r}")
        return self._phases[phase]

    def useSeparateBackwardPhase(self, use: bool = True) -> "_IPhasedExecution":
        """Whether the backward pass of the last phase is a separate phase."""
        check(isinstance(use, bool), f"expected a bool, not {use!r}")
        self._separate_backward_phase = use
        return self

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        """Returns the options that the strategy adds to a compilation."""
        return {
            "execution_mode": 2,
            "separate_backward_phase": self._separate_backward_phase,
            "tensors_liveness": int(self._liveness),
        }


class ParallelPhasedExecution(_IPhasedExecution):
    """Phases alternate between two groups of devices, one of which loads data while the other computes."""

    def _default_ipu(self, phase: int, stage: int) -> int:
        return 2 * stage + phase % 2

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> "ParallelPhasedExecution":
        """Whether to move tensors off-chip between their forward and backward phases."""
        check(isinstance(off_chip, bool), f"expected a bool, not {off_chip!r}")
        self._liveness = Liveness.OffChipAfterFwd if off_chip else Liveness.AlwaysLive
        return self

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        """Returns the options that the strategy adds to a compilation."""
        return {**super().backendOptions(), "serial_phases_execution": False}


class SerialPhasedExecution(_IPhasedExecution):
    """All phases run in sequence on the same devices."""

    def setTensorsLiveness(self, liveness: Liveness) -> "SerialPhasedExecution":
        """Sets when to move the tensors of a phase off-chip."""
        check(isinstance(liveness, Liveness), f"expected a poptorch.Liveness, not {liveness!r}")
        self._liveness = liveness
        return self

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        """Returns the options that the strategy adds to a compilation."""
        return {**super().backendOptions(), "serial_phases_execution": True}


def _as_stage(item: Any) -> Stage:
    if isinstance(item, Stage):
        return item
    if isinstance(item, BlockId):
        return Stage(item)
    check(hasattr(item, "__iter__"), f"a stage must be a Stage, a block id or an iterable of block ids, not {item!r}")
    return Stage(*item)


def _as_phase(item: Any) -> Phase:
    if isinstance(item, Phase):
        return item
    return Phase(*(item if isinstance(item, list) else [item]))
