# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Stands in the place of the package popdist: importing it gives poptorch_host.popdist."""

from poptorch_host._alias import alias

alias(__name__, "poptorch_host.popdist")
