# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Faults injected into whole runs and files; `python -m tests.faults [NAME]` prints what survived."""
