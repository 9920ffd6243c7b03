# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The named configurations (configs.yaml), and the checks that every configuration passes before anything is built.

Imports `planning` and `common`, and nothing heavy. A configuration tree goes in; a `Refusal` comes out, or nothing.
"""
