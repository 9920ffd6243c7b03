# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""A run: its command line, processes and output folder, building, the training loop, evaluation, checkpoints.

Imports every room, and is imported by entries only. Command-line arguments and a configuration go in; checkpoints,
metrics, logs and predictions come out. `arguments` imports no torch, so that entries answer before they load it.
"""
