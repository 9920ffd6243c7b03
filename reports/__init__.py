# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""report.html of a training run: one page with its curves, confusions, mistakes and origin.

The page is self-contained: it opens from a disk without a network, and its content policy forbids one. plotly draws
the curves in the browser. Its script, 4.8 MB, is embedded, which costs an epoch some milliseconds; drawing four charts
by matplotlib took 0.2 s, and importing it 0.8 s. Names of classes and files are untrusted: the template escapes them.

Imports neither torch nor a device: rows, counts, pictures and facts come from training/reporting.py.
"""
