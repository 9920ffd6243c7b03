# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""How a model's blocks become stages and phases on devices. On a host they run one after the other all the same."""

import copy
from typing import Any, Dict, Iterable, List, NamedTuple, NoReturn, Optional, Union

from ..enums import AutoStage, Liveness
from ..errors import check

BlockId = str


class Stage:
    """Blocks that run on one device, one after the other.

    Args:
        block_ids: the user ids of the blocks.

    Raises:
        AssertionError: when an id is not a string.
    """

    def __init__(self, *block_ids: BlockId) -> None:
        for block_id in block_ids:
            check(isinstance(block_id, BlockId), f"block ids must be strings, not {block_id!r}")
        self._blocks = list(block_ids)
        self._ipu: Optional[int] = None

    @property
    def blocks(self) -> List[BlockId]:
        """The ids of the stage's blocks."""
        return self._blocks

    def ipu(self, ipu: int) -> "Stage":
        """Places the stage on device `ipu`; otherwise its blocks say, or the stage's index."""
        check(isinstance(ipu, int), f"the IPU of a stage must be an int, not {ipu!r}")
        self._ipu = ipu
        return self

    def __repr__(self) -> str:
        return f"Stage({', '.join(map(repr, self._blocks))})" + ("" if self._ipu is None else f".ipu({self._ipu})")


class Phase:
    """Stages that run side by side between two exchanges with the memory outside the devices.

    Args:
        arg: stages, or the ids of blocks that make up a single stage.
    """

    def __init__(self, *arg: Union[BlockId, Stage]) -> None:
        check(len(arg) > 0, "a phase needs at least one block id or stage")
        if all(isinstance(item, Stage) for item in arg):
            self.stages = list(arg)
        else:
            self.stages = [Stage(*arg)]

    def stage(self, idx: int) -> Stage:
        """The stage at position `idx` of the phase."""
        return self.stages[idx]

    def ipus(self, *ipus: int) -> "Phase":
        """Places the stages on devices, one each.

        Raises:
            AssertionError: when there are not as many devices as stages.
        """
        check(len(ipus) == len(self.stages), f"{len(self.stages)} stages need as many IPUs, not {len(ipus)}")
        for stage, ipu in zip(self.stages, ipus):
            stage.ipu(ipu)
        return self


class Placement(NamedTuple):
    """Where a block that begins runs."""

    stage: int
    phase: int
    ipu: int


class _NamedStages:
    """Stages that were listed, with the position and phase of each. It can be copied, not pickled, as in PopTorch."""

    def __init__(self) -> None:
        self._entries: Dict[BlockId, Any] = {}

    def __deepcopy__(self, memory: Dict[int, Any]) -> "_NamedStages":
        copied = memory[id(self)] = type(self)()
        copied._entries = copy.deepcopy(self._entries, memory)
        return copied

    def __reduce_ex__(self, protocol: int) -> NoReturn:
        raise AttributeError(
            "an execution strategy with listed stages or phases has a class that PopTorch makes inside a function, "
            "where pickle does not find it"
        )

    def add(self, stage: Stage, index: int, phase: int, default_ipu: int) -> None:
        for block_id in stage.blocks:
            check(block_id not in self._entries, f"block {block_id!r} is in two stages")
            self._entries[block_id] = (stage, index, phase, default_ipu)

    def restart(self) -> None:
        """Named stages stay as they are from one tracing to the next."""

    def begin(self, block_id: BlockId, ipu_id: Optional[int], block_map: Dict[BlockId, Stage]) -> Placement:
        check(
            block_id in self._entries, f"Unknown Block {block_id!r}: the execution strategy has {sorted(self._entries)}"
        )
        stage, index, phase, default_ipu = self._entries[block_id]
        ipu = next(candidate for candidate in (stage._ipu, ipu_id, default_ipu) if candidate is not None)
        return Placement(index, phase, ipu)


class _AutoStages:
    """Stages that come into being while blocks begin."""

    def __init__(self, mode: AutoStage) -> None:
        self._mode = mode
        self._indices: Dict[BlockId, int] = {}

    def restart(self) -> None:
        self._indices.clear()

    def begin(self, block_id: BlockId, ipu_id: Optional[int], block_map: Dict[BlockId, Stage]) -> Placement:
        if self._mode == AutoStage.SameAsIpu:
            check(ipu_id is not None, f"block {block_id!r} needs an ipu_id: AutoStage.SameAsIpu makes stages from them")
            index = ipu_id
        else:
            index = self._indices.setdefault(block_id, len(self._indices) + 1)
        stage = block_map.setdefault(block_id, Stage(block_id))
        ipu = next(candidate for candidate in (stage._ipu, ipu_id, index) if candidate is not None)
        return Placement(index, 0, ipu)


class _IExecutionStrategy:
    """An execution strategy.

    Args:
        stages_manager: what gives a beginning block its place.
        block_map: the stage of each block id that is known.
    """

    def __init__(self, stages_manager: Any, block_map: Dict[BlockId, Stage]) -> None:
        self._stages_manager = stages_manager
        self._block_map = block_map

    def stage(self, block_id: BlockId) -> Stage:
        """The stage that has block `block_id`. AssertionError where there is none."""
        check(
            block_id in self._block_map,
            f"Unknown Block {block_id!r}: the execution strategy has {sorted(self._block_map)}",
        )
        return self._block_map[block_id]

    def onStartTracing(self) -> None:
        """Forgets the stages that an earlier tracing made."""
        self._stages_manager.restart()

    def onEndTracing(self) -> None:
        """Called when a tracing ends, whether it failed or not."""

    def place(self, block_id: BlockId, ipu_id: Optional[int]) -> Placement:
        """The place of a block that begins now.

        Raises:
            AssertionError: for a block that the strategy does not know, or cannot place.
        """
        return self._stages_manager.begin(block_id, ipu_id, self._block_map)

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        """What the strategy adds to the options of a compilation."""
        raise TypeError(f"{type(self).__name__} is no execution strategy of its own: use one of its subclasses")


class PipelinedExecution(_IExecutionStrategy):
    """Stages work at the same time, each on another micro-batch.

    Args:
        args: nothing or one AutoStage; or the stages in order, each a `Stage`, a block id or an iterable of block ids.

    Raises:
        AssertionError: for a block id in two stages, or an argument of another kind.
    """

    def __init__(self, *args: Union[AutoStage, Stage, BlockId, Iterable[BlockId]]) -> None:
        if not args or isinstance(args[0], AutoStage):
            check(len(args) <= 1, "an AutoStage must be the only argument")
            super().__init__(_AutoStages(args[0] if args else AutoStage.SameAsIpu), {})
            return
        manager, block_map = _NamedStages(), {}
        for index, stage in enumerate(map(_as_stage, args)):
            manager.add(stage, index, 0, index)
            block_map.update(dict.fromkeys(stage.blocks, stage))
        super().__init__(manager, block_map)

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        """What the strategy adds to the options of a compilation."""
        return {"execution_mode": 0}


class ShardedExecution(PipelinedExecution):
    """Stages work one after the other on the same micro-batch."""

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        """What the strategy adds to the options of a compilation."""
        return {"execution_mode": 1}


class _IPhasedExecution(_IExecutionStrategy):
    """Phases run one after the other, and tensors wait outside the devices in between.

    Args:
        phases: the phases in order, each a `Phase`, a block id, or a list of block ids or stages.

    Raises:
        AssertionError: without phases, or for a block id in two stages.
    """

    def __init__(self, *phases: Union[Phase, Stage, BlockId, Iterable[Union[Stage, BlockId]]]) -> None:
        if len(phases) == 1 and hasattr(phases[0], "__iter__") and not isinstance(phases[0], BlockId):
            phases = tuple(phases[0])
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
        """The phase at position `phase`."""
        check(
            isinstance(phase, int) and 0 <= phase < len(self._phases),
            f"there is no phase {phase!r} among {len(self._phases)}",
        )
        return self._phases[phase]

    def useSeparateBackwardPhase(self, use: bool = True) -> "_IPhasedExecution":
        """Whether the last phase's backward pass is a phase of its own."""
        check(isinstance(use, bool), f"expected a bool, not {use!r}")
        self._separate_backward_phase = use
        return self

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        """What the strategy adds to the options of a compilation."""
        return {
            "execution_mode": 2,
            "separate_backward_phase": self._separate_backward_phase,
            "tensors_liveness": int(self._liveness),
        }


class ParallelPhasedExecution(_IPhasedExecution):
    """Phases alternate between two groups of devices, so that one loads while the other computes."""

    def _default_ipu(self, phase: int, stage: int) -> int:
        return 2 * stage + phase % 2

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> "ParallelPhasedExecution":
        """Whether tensors leave the device between their forward and their backward phase."""
        check(isinstance(off_chip, bool), f"expected a bool, not {off_chip!r}")
        self._liveness = Liveness.OffChipAfterFwd if off_chip else Liveness.AlwaysLive
        return self

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        """What the strategy adds to the options of a compilation."""
        return {**super().backendOptions(), "serial_phases_execution": False}


class SerialPhasedExecution(_IPhasedExecution):
    """All phases run on the same devices, one after the other."""

    def setTensorsLiveness(self, liveness: Liveness) -> "SerialPhasedExecution":
        """When the tensors of a phase leave the device."""
        check(isinstance(liveness, Liveness), f"expected a poptorch.Liveness, not {liveness!r}")
        self._liveness = liveness
        return self

    def backendOptions(self) -> Dict[str, Union[int, bool]]:
        """What the strategy adds to the options of a compilation."""
        return {**super().backendOptions(), "serial_phases_execution": True}


def _as_stage(item: Union[Stage, BlockId, Iterable[BlockId]]) -> Stage:
    if isinstance(item, Stage):
        return item
    if isinstance(item, BlockId):
        return Stage(item)
    check(hasattr(item, "__iter__"), f"a stage must be a Stage, a block id or an iterable of block ids, not {item!r}")
    return Stage(*item)


def _as_phase(item: Union[Phase, Stage, BlockId, Iterable[Union[Stage, BlockId]]]) -> Phase:
    if isinstance(item, Phase):
        return item
    if isinstance(item, (Stage, BlockId)):
        return Phase(item)
    check(hasattr(item, "__iter__"), f"a phase must be a Phase, a block id, or a list of block ids or stages: {item!r}")
    return Phase(*item)
