# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""How long the program waits before it says who does not answer, in seconds; GUARANTEES.md has them in a table."""

BATCH = 60.0  # a batch of data workers,
BATCH_SAMPLE = 0.25  # and so much more for each of its samples
HAND_OVER = 5.0  # a finished batch to be passed on
WORKER_DEATH = 5.0  # a dying worker to be gone, once its connections are
LAST_WORD = 3.0  # the word of a process that left the run
RETRY = 0.2  # before storage is asked a second time; twice as long before the third
