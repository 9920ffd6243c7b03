# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""torch.amp.GradScaler for gradients that pass through float16 inside autocast, with its state by name."""

from typing import Any, Dict, MutableMapping

import torch

# What changes of its state_dict(), by the names in the optimizer's state.
_KEPT = {"gradScaler___scale": "scale", "gradScaler___growthTracker": "_growth_tracker"}


def gradient_scaler(device: torch.device) -> Any:
    """Returns a scaler for a device; before PyTorch 2.3 there is one for GPUs only."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type)
    return torch.cuda.amp.GradScaler()


def scaler_state(scaler: Any) -> Dict[str, float]:
    """Returns the scale and the number of updates since it has changed, by name."""
    found = scaler.state_dict()
    return {name: found[key] for name, key in _KEPT.items()}


def restore_scaler(scaler: Any, state: MutableMapping[str, torch.Tensor]) -> None:
    """Takes a scaler's entries out of `state`. Missing ones keep their values."""
    found = scaler.state_dict()
    changed = {key: found[key] if name not in state else state.pop(name).item() for name, key in _KEPT.items()}
    scaler.load_state_dict({**found, **changed})
