# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Signals that ask a run to stop."""

import contextlib
import signal
from typing import Any, Iterator

from common.errors import Preempted


@contextlib.contextmanager
def stop_signals_go_to(handler: Any) -> Iterator[None]:
    """While this context is open, SIGTERM, SIGUSR1 and Ctrl-C go to `handler`, as signal.signal takes it."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, one in zip(numbers, before):
            signal.signal(number, one)


class StopRequest:
    """SIGTERM, SIGUSR1 and Ctrl-C as a polite request: the step in progress ends, the state is saved, the run stops.

    While `deferred`, the first signal only sets `name`; a second Ctrl-C interrupts at once. Otherwise a signal raises
    `Preempted` on the spot, since there is nothing to save.

    Attributes:
        name: of the signal that came first; empty while none has.
        agreed: all processes of the run know of it, so that all stop after the same step.
    """

    def __init__(self) -> None:
        self.name = ""
        self.agreed = False
        self._deferred = False

    @contextlib.contextmanager
    def installed(self) -> Iterator["StopRequest"]:
        """While this context is open, the three signals of this process come here."""
        with stop_signals_go_to(self._handle):
            yield self

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While this context is open, signals are noted instead of raised."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def check(self) -> None:
        """Raises `Preempted` when a stop was requested."""
        if self.name:
            raise Preempted(f"stopped by {self.name}; run the same command to go on")

    def _handle(self, number: int, frame: Any) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.name:  # torchrun sends a signal more to those that are still stopping when the first has stopped
            return
        self.name = signal.Signals(number).name
        if not self._deferred:
            self.check()
