# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Stands in the place of the package poptorch: importing it gives poptorch_host, and PyTorch torch.ops.poptorch."""

import poptorch_host.torch_ops  # noqa: F401, for what it does
from poptorch_host._alias import alias

alias(__name__, "poptorch_host")
