# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Errors that a user can fix, and the exit codes of the command lines."""

# What a caller of the command lines can rely on; 128 + n stands for an unhandled signal n.
EXIT_OK = 0
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_CHECKPOINT = 4
EXIT_NONFINITE = 5
EXIT_RESOURCE = 6
EXIT_BUSY = 7
EXIT_PREEMPTED = 75


class Refusal(Exception):
    """The run cannot go on, for a reason the user can mend: one line that says what, which value and what to do.

    Args:
        message: the line.
        code: the exit code, one of the EXIT_ constants of this module.
    """

    def __init__(self, message: str, code: int = EXIT_USAGE):
        super().__init__(message)
        self.code = code


class Preempted(Refusal):
    """A signal asked the run to stop; its state is saved and the same command goes on from there."""

    def __init__(self, message: str):
        super().__init__(message, EXIT_PREEMPTED)
