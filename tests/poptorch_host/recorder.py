# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""An execution that writes down what operations tell it, for tests of operations."""

import contextlib

from poptorch_host import context


class Recorder(context.Execution):
    """Keeps every call of a hook as a tuple in `events`."""

    def __init__(self):
        super().__init__()
        self.events = []

    def begin_block(self, user_id, ipu_id):
        self.events.append(("begin", user_id, ipu_id))

    def end_block(self):
        self.events.append(("end",))

    def mark_loss(self, tensor, reduction):
        self.events.append(("loss", tensor, reduction))

    def recomputation_checkpoint(self, tensors):
        self.events.append(("checkpoint", list(tensors)))

    def note_op(self, name, **info):
        self.events.append((name, info))


@contextlib.contextmanager
def recording():
    """Runs what is inside as the forward of a compiled model and yields the list of events."""
    with context.activate(Recorder()) as recorder:
        yield recorder.events
