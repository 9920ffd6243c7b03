# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The implementations of operations that are longer than a few lines: blocks, searches, and printing of tensors.

Imports `inputs` and the modules below it. `ops` exports them as PopTorch's operations. Tensors enter and leave.
"""
