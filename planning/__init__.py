# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Computes the cost and placement of a configuration without hardware: sizes, costs, memory, stages, report.

Imports `common` and no torch. Takes a configuration; returns layer shapes, units with their costs, pipeline stages and
the plan of a run.
"""
