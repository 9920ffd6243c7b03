# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Shared by all packages: errors and exit codes, command lines, logging, signals, files, a process's place in a run.

Imports `utils` and, in `archive`, torch; nothing else of the application.
"""
