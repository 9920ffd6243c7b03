# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The weight update: latched optimizers, update rules, gradient accumulation and reduction over processes.

Imports `precision`, `optim` and the modules below them, not `weights`. The gradients of micro-batches and the user's
optimizer enter; updated weights and the optimizer state leave.
"""
