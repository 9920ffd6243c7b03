# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The share of time that training waits for data, and the remedies that the log names."""

import logging

import pytest

from config import get_config
from training.loader_wait import LoaderWait, remedies, report_wait


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def slow_batches(clock, seconds):
    for number, wait in enumerate(seconds):
        clock.passes(wait)
        yield number


def test_share_is_the_time_spent_in_the_loader_over_all_time():
    clock = Clock()
    waits = LoaderWait(slow_batches(clock, [3.0, 1.0]), clock)
    for _ in waits:
        clock.passes(6.0)
    assert waits.share == pytest.approx(4 / 16)


def test_interval_counts_only_what_happened_since_the_last_reading():
    clock = Clock()
    waits, read = LoaderWait(slow_batches(clock, [3.0, 1.0]), clock), []
    for _ in waits:
        clock.passes(1.0)
        read.append(waits.read())
    assert read == pytest.approx([3 / 4, 1 / 2]) and waits.share == pytest.approx(4 / 6)


def test_error_of_the_loader_passes_through():
    def broken():
        yield 0
        raise OSError("gone")

    waits = LoaderWait(broken())
    assert next(waits) == 0
    with pytest.raises(OSError, match="gone"):
        next(waits)


@pytest.mark.parametrize(
    "share, count, level", [(9, 20, logging.INFO), (11, 20, logging.WARNING), (99, 19, logging.INFO)]
)
def test_remedies_are_named_above_a_tenth_of_a_time_that_is_more_than_the_start(share, count, level, caplog):
    clock = Clock()
    waits = LoaderWait(slow_batches(clock, [share] * count), clock)
    for _ in waits:
        clock.passes(100 - share)
    with caplog.at_level(logging.INFO, "swin"):
        report_wait(get_config("SWIN_TINY", ["DATA.NUM_WORKERS", "0"]), 3, waits)
    [record] = caplog.records
    assert record.levelno == level and f"{share:.1f} %" in record.getMessage()
    assert ("--num-workers" in record.getMessage()) == (level == logging.WARNING)


@pytest.mark.parametrize(
    "opts, named, not_named",
    [
        (["DATA.NUM_WORKERS", "0"], "--num-workers", "--synthetic"),
        (["DATA.NUM_WORKERS", "1024"], "DATA.INPUT_DTYPE uint8", "--num-workers"),
        (["DATA.INPUT_DTYPE", "uint8", "DATA.NUM_WORKERS", "0"], "--num-workers", "INPUT_DTYPE"),
        (["DATA.LOADER", "sync"], "DATA.LOADER async", "--synthetic"),
        (["DATA.DATASET", "generated"], "--synthetic device", "--num-workers"),
        (["DATA.INPUT_DTYPE", "uint8", "DATA.NUM_WORKERS", "1024"], "storage", "--num-workers"),
    ],
)
def test_only_remedies_that_are_left_are_named(opts, named, not_named):
    found = " ".join(remedies(get_config("SWIN_TINY", opts)))
    assert named in found and not_named not in found
