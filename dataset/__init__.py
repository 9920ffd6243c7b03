# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Data: image sources, decoding, augmentation, sampling and loading; `dataset.prepare` writes data sets.

Imports `accelerator`, `planning` and `common`, but not models, options or optimizer. Takes a configuration and
untrusted files; returns combined batches for PopTorch.
"""
