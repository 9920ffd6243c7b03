# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Number formats: half arithmetic, partial sums, rounding, and loss scaling.

Imports `options`, `inputs` and the modules below them. Tensors of a forward, or of a weight update, enter and leave.
"""
