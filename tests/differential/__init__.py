# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Random programs on both back ends: poptorch_host does what PopTorch's own front end did with them."""
