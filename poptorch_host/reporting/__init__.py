# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What an executor reports of its program and its last call.

Imports `running` and the modules below it. `executor` derives from `Inspection`. Reads a `Program`; texts, numbers and
anchored tensors leave.
"""
