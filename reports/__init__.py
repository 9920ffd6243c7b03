# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""report.html of a training run: a page with its curves, confusions, mistakes and provenance.

The page is self-contained: it opens from disk without a network, and its content policy forbids access to one. The
browser draws the curves with an embedded script, plotly, so an epoch costs writing a file of 5 MB, but no plotting.
Names of classes and files are untrusted: the template escapes them.

Does not import torch: rows, counts, pictures and facts come from training/reporting.py.
"""
