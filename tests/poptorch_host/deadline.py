# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""A limit for tests that wait for other processes."""

import signal

import pytest

SECONDS = 100


@pytest.fixture(autouse=True)
def deadline():
    """Ends a test that hangs, by an exception. Import it into the module of the tests."""

    def late(*_):
        raise TimeoutError(f"the test took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
