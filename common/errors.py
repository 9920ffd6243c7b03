# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Errors that a user can fix, and the exit codes of the command lines."""

# Exit codes of the command lines; 128 + n means an unhandled signal n.
EXIT_OK = 0
EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_CHECKPOINT = 4
EXIT_NONFINITE = 5
EXIT_RESOURCE = 6
EXIT_BUSY = 7
EXIT_FINDINGS = 8  # of dataset.check: training would run, but some files need attention
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130  # by a second Ctrl-C


class Refusal(Exception):
    """An error that the user can fix: one line that says what is wrong, with which value, and what to do.

    Args:
        message: the line to print.
        code: the exit code, one of the EXIT_ constants of this module.
    """

    def __init__(self, message: str, code: int = EXIT_USAGE):
        super().__init__(message)
        self.code = code


class Preempted(Refusal):
    """A signal stopped the run after its state was saved; the same command resumes it."""

    def __init__(self, message: str):
        super().__init__(message, EXIT_PREEMPTED)
