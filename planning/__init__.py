# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What a configuration costs and where it runs, computed without hardware: sizes, costs, memory, stages, report.

Imports `common` and no torch. A configuration goes in; layer shapes, units with their costs, pipeline stages and the
plan of a run come out.
"""
