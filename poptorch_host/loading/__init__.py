# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Reads datasets ahead in a separate process, through buffers in shared memory, and partitions them.

Imports `inputs` and the modules below it. A dataset enters; elements leave, as tensors in the shared buffers.
`dataloader` builds PopTorch's DataLoader on it.
"""
