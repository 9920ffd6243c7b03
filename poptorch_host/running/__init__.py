# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Runs compiled programs: engine, outputs, anchors, random numbers, latencies, and stages in several processes.

Imports `compiling` and the modules below it. A `Compiled` and the arguments of a call enter; outputs on the host
leave.
"""
