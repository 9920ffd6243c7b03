# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""report.html of a training run: one page with its curves, confusions, mistakes and origin.

The page is self-contained: it opens from a disk without a network, and its content policy forbids one. plotly draws
the curves in the browser, from the numbers in the page; its script is embedded. So an epoch costs a file of 5 MB, and
no drawing by matplotlib. Names of classes and files are untrusted: the template escapes them.

Imports neither torch nor a device: rows, counts, pictures and facts come from training/reporting.py.
"""
