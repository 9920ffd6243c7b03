# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The Swin Transformer: its mathematics, the configured model with its loss and pipeline stages, pretrained weights.

Imports `accelerator`, `planning` and `common`; knows neither data nor options nor optimizer. A configuration, or a file
of weights, goes in; a module with the parameter names of the official checkpoints comes out.
"""
