# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Data: where images come from, how they are augmented, and how they reach the device as combined batches."""
