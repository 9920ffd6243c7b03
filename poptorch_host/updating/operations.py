# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The operations of a weight update, with PopART's names."""

from typing import Any, Dict, List, Sequence

import torch

from .algorithms import StateTensor, state_tensors
from .gradients import GRADIENT_PREFIX, Slot
from .latch import Latched

_TYPES = {torch.float16: "FLOAT16", torch.float32: "FLOAT"}
_UPDATES = {
    "Adam": ["AdamUpdater", "AdamVarUpdate"],
    "AdamW": ["AdamUpdater", "AdamVarUpdate"],
    "LAMB": ["AdamUpdater", "LambSquare", "LambSquare", "AdamVarUpdate"],
    "RMSprop": ["RMSPropUpdater", "ScaledVarUpdate"],
}


def update_operations(latched: Latched, slots: Sequence[Slot], micro_batches: int) -> List[Dict[str, Any]]:
    """Returns the operations of the update of every weight, each with its type, inputs and outputs."""
    states = state_tensors(latched)
    return [_operation(kind, slot, states) for slot in slots for kind in _kinds(latched, states, micro_batches)]


def _kinds(latched: Latched, states: Sequence[StateTensor], micro_batches: int) -> List[str]:
    accumulation = ["Accumulate"] if micro_batches > 1 else []
    if latched.algorithm != "SGD":
        return accumulation + _casts(latched) + ["Accumulate"] * len(states) + _UPDATES[latched.algorithm]
    if not states and not accumulation:
        return ["SGD0VarUpdate"]
    if latched.structure["use_combined_accum"]:
        return ["Accumulate", "SGD1AcclUpdate", "SGD1VarUpdate"]
    return _casts(latched) + ["SGD2PartialAcclUpdate", "Accumulate", "SGD2VarUpdate"]


def _casts(latched: Latched) -> List[str]:
    """Returns the cast of a half accumulator, which is needed if all states that it is added to are float32."""
    state_types = {dtype for name, dtype in latched.structure.items() if name.endswith("_accum_type")}
    return ["Cast"] if latched.structure["accum_type"] == torch.float16 and state_types == {torch.float32} else []


def _operation(kind: str, slot: Slot, states: Sequence[StateTensor]) -> Dict[str, Any]:
    weight = _tensor(slot.name, slot.weight, slot.weight.dtype)
    gradient = _tensor(GRADIENT_PREFIX + slot.name, slot.weight, slot.accumulator_type or slot.weight.dtype)
    kept = [_tensor(state.prefix + slot.name, slot.weight, state.dtype or slot.weight.dtype) for state in states]
    return {
        "type": kind,
        "name": f"{kind}/{slot.name}",
        "inputs": [weight, gradient, *kept],
        "outputs": [weight],
        "attributes": {},
    }


def _tensor(name: str, weight: torch.Tensor, dtype: torch.dtype) -> Dict[str, Any]:
    return {"name": name, "type": _TYPES[dtype], "shape": list(weight.shape)}
