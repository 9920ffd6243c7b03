# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The tests of every room, in folders of the rooms' names."""

# How `pytest --backend` reaches tests.backend and the processes that tests start.
BACKEND_VARIABLE = "POPTORCH_TEST_BACKEND"
