# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The Swin Transformer, its placement on IPUs, and weights from elsewhere."""
