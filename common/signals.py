# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Signals that ask a run to stop."""

import contextlib
import signal
from typing import Any, Iterator

from common.errors import Preempted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextlib.contextmanager
def stop_signals_go_to(handler: Any) -> Iterator[None]:
    """Handles SIGTERM, SIGUSR1 and Ctrl-C by `handler` (see signal.signal) inside the context."""
    before = [signal.signal(number, handler) for number in STOP_SIGNALS]
    try:
        yield
    finally:
        for number, one in zip(STOP_SIGNALS, before):
            signal.signal(number, one)


class StopRequest:
    """A request to stop by SIGTERM, SIGUSR1 or Ctrl-C: the current step completes, the state is saved, the run ends.

    While `deferred`, the first signal only sets `name`; a second Ctrl-C interrupts immediately. Otherwise a signal
    raises `Preempted` immediately, since there is nothing to save.

    Attributes:
        name: name of the first signal received; empty if there was none.
        agreed: whether all processes know of the request, and stop after the same step.
    """

    def __init__(self) -> None:
        self.name = ""
        self.agreed = False
        self._deferred = False
        self._closed = False

    @contextlib.contextmanager
    def installed(self) -> Iterator["StopRequest"]:
        """Handles the three signals of this process inside the context."""
        with stop_signals_go_to(self._handle):
            yield self

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Records signals instead of raising inside the context."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def close(self) -> None:
        """Ignores signals from now on: the result of the run is recorded."""
        self._closed = True

    def check(self, saved: str = "") -> None:
        """Raises `Preempted` if a stop was requested; `saved` is the state that was saved since, if any."""
        if self.name:
            state = saved or "the last checkpoint, if there is one"
            raise Preempted(f"stopped by {self.name}; run the same command to resume from {state}")

    def _handle(self, number: int, frame: Any) -> None:
        if self._closed:
            return
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.name:  # torchrun signals the others again as soon as one exits
            return
        self.name = signal.Signals(number).name
        if not self._deferred:
            self.check()
