# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Training, evaluation and prediction runs: command line, processes, output folder, training loop, checkpoints.

May import every other package and is imported by the entry points only. Takes command-line arguments and a
configuration; produces checkpoints, metrics, logs and predictions. `arguments` does not import torch, which keeps
--help fast.
"""
