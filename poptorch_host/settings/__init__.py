# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What options consist of: nested options, execution strategies, PopART's option names, and the progress bar.

Imports `optim` and the modules below it. `options` builds `Options` from these classes. No tensor enters or leaves.
"""
