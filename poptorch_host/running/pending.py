# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The results of a call, which a GPU may still be computing."""

import math
from typing import Any, NamedTuple, Optional

from ..updating.update import WeightUpdate
from .link import Link


class Results(NamedTuple):
    """What a call has found.

    Attributes:
        outputs: what the call returns.
        gradient_norm: the global norm of the gradients of its last weight update before clipping; NaN: not computed.
        skipped: the number of its weight updates that were skipped.
    """

    outputs: Any
    gradient_norm: float
    skipped: int


class Pending:
    """The results of a call that was started. Those of several calls are waited for in the order of the calls.

    Args:
        outputs: its outputs, which are there as soon as the device has done its work.
        link: copies from the device; None: everything is there.
        update: the weight update; None for inference.
        skipped: the number of weight updates that had been skipped before the call.
    """

    def __init__(self, outputs: Any, link: Optional[Link], update: Optional[WeightUpdate], skipped: int) -> None:
        self._outputs, self._update, self._skipped = outputs, update, skipped
        self._findings = None if update is None else update.take_findings()
        if self._findings is not None and link is not None:
            self._findings = link.fetch(self._findings)
        self._done = None if link is None else link.mark()

    def wait(self) -> Results:
        """Waits for the device, if need be. Call once."""
        if self._done is not None:
            self._done.synchronize()
        update = self._update
        if update is None:
            return Results(self._outputs, math.nan, 0)
        before = self._skipped if self._findings is None else update.skipped
        if self._findings is not None:
            update.note(self._findings)
        return Results(self._outputs, update.gradient_norm, update.skipped - before)
