# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Data: image sources, decoding, augmentation, sampling and loading; `dataset.prepare` writes data sets.

Imports `accelerator`, `planning` and `common`; knows neither models nor options nor optimizer. A configuration and
untrusted files go in; combined batches for PopTorch come out.
"""
