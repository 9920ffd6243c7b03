# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Progress bars: what a terminal shows, what anything else does not, and the lines above them."""

import io
import re
import sys

import pytest

import dataset.prepare
from common import progress_bar
from common.logs import REPEATED, console_log, file_log, logger
from tests.runs import train

pytest_plugins = ["tests.digits"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture()
def connect(monkeypatch):
    """Makes a stream standard error, to which bars are written at once. pytest replaces that between two fixtures."""

    def to(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(progress_bar, "DELAY", 0)
        monkeypatch.setattr(progress_bar, "REDRAW", 0.01)
        return stream

    return to


def test_terminal_shows_what_runs_with_loss_rate_speed_and_time_left(digits, tmp_path, connect):
    terminal = connect(Terminal())
    train(digits, tmp_path, "--epochs", "2")
    shown = terminal.getvalue()
    for what in ("indexing .*classes", "compiling the training program: 00:", "epoch 2/2: ", "validation: .* images"):
        assert re.search(what, shown), what
    assert re.search(r"epoch 2/2: .*<\d\d:\d\d, .*samples/s, loss=\d\.\d{4}, lr=[\d.e-]+\]", shown)


def test_standard_error_that_is_no_terminal_stays_empty(digits, tmp_path, connect):
    stream = connect(io.StringIO())
    train(digits, tmp_path, "--training-steps", "2")
    assert stream.getvalue() == ""


def test_preparing_data_shows_its_images(tmp_path, connect):
    terminal = connect(Terminal())
    dataset.prepare.main(["digits", "--out", str(tmp_path / "digits")])
    assert re.search(r"writing validation: .* images", terminal.getvalue())


def test_processes_other_than_the_leader_show_no_bar(connect):
    terminal = connect(Terminal())
    with console_log(is_leader=False), progress_bar.progress_bar("reading", 2, " files") as bar:
        bar.update()
    assert terminal.getvalue() == ""


def test_line_of_the_log_clears_the_bar_which_is_drawn_again(connect, monkeypatch):
    terminal = connect(Terminal())
    monkeypatch.setattr(sys, "stdout", terminal)
    with console_log(is_leader=True), progress_bar.progress_bar("reading", 2, " files"):
        logger.info("a line")
    before, after = terminal.getvalue().split("a line\n")
    assert re.search(r"reading: .*\r +\r\S+ \S+ INFO $", before, re.DOTALL) and "reading: " in after


def test_terminal_shows_at_most_two_repeated_lines_a_second_and_files_show_all(tmp_path, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    with console_log(is_leader=True), file_log(tmp_path / "log.txt"):
        for number in range(5):
            logger.info("step %d", number, extra=REPEATED)
            logger.warning("warning %d", number)
    assert stream.getvalue().count("step") == 1 and stream.getvalue().count("warning") == 5
    assert (tmp_path / "log.txt").read_text().count("step") == 5


def test_output_that_is_no_terminal_has_every_line(capsys):
    with console_log(is_leader=True):
        for number in range(5):
            logger.info("step %d", number, extra=REPEATED)
    assert capsys.readouterr().out.count("step") == 5
