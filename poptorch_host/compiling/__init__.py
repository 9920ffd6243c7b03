# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Compilation: tracing of forward, the checks of a device's compiler, and program files.

Imports `weights`, `updating` and the modules below them. A model, the arguments of the first call and options enter; a
`Compiled` leaves, or an error of the kind that PopTorch raises.
"""
