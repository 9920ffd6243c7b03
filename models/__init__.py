# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The Swin Transformer: its mathematics, the configured model with its loss and pipeline stages, pretrained weights.

Imports `accelerator`, `planning` and `common`, but not data, options or optimizer. Takes a configuration or a file of
weights; returns a module with the parameter names of the official checkpoints.
"""
