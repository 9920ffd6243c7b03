# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Timeouts in seconds; GUARANTEES.md lists them in a table."""

BATCH = 60.0  # for a batch of data workers,
BATCH_SAMPLE = 0.25  # plus this for each of its samples
HAND_OVER = 5.0  # for a finished batch to be passed on
WORKER_DEATH = 5.0  # for a dying worker to exit, once its connections are closed
LAST_WORD = 3.0  # for the refusal of a process that left the run
RETRY = 0.2  # before storage is read a second time; twice as long before the third
