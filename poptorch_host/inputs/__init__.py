# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The arguments of a call: binding, signatures, splitting into micro-batches, nested containers and custom types.

Imports `options`, `settings` and the modules below them. The arguments of forward enter; tensors in containers, and the
signatures of arguments, leave.
"""
