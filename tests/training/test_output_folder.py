# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The output folder: one run at a time, a status that tells the truth, metrics without repeats."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from common import files, logs
from common.errors import (
    EXIT_BUSY,
    EXIT_CHECKPOINT,
    EXIT_DATA,
    EXIT_INTERRUPTED,
    EXIT_RESOURCE,
    EXIT_USAGE,
    Preempted,
    Refusal,
)
from common.launch import Launch
from common.logs import console_log, file_log, logger
from common.signals import StopRequest
from config import get_config
from tests import forked
from training import output_folder
from training.progress import Progress
from training.status import recorded

LEADER, FOLLOWER = Launch(0, 2, 2, 1), Launch(1, 2, 2, 1)


def config_of(folder, tag=""):
    return get_config("SWIN_DEMO", overrides=[("OUTPUT", str(folder)), ("TAG", tag)])


def test_folder_is_made_with_its_tag(tmp_path):
    with output_folder.opened(config_of(tmp_path / "a b" / "ü", "first"), LEADER) as folder:
        assert folder == tmp_path / "a b" / "ü" / "first" and folder.is_dir()


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    path = str(tmp_path / "file" / "run")
    with pytest.raises(Refusal, match="--output") as caught, output_folder.opened(config_of(path), LEADER):
        pass
    assert caught.value.code == EXIT_USAGE


@pytest.mark.parametrize(
    "output, tag, said",
    [
        ("run", "../a", "out of --output"),
        ("run", "/a", "out of --output"),
        ("run", "a/../..", "out of --output"),
    ],
)
def test_tag_that_is_no_folder_in_the_output_is_refused(tmp_path, output, tag, said):
    config = get_config(
        "SWIN_DEMO",
        overrides=[("OUTPUT", str(tmp_path / output)), ("TAG", tag), ("TRAIN.TRAINING_STEPS", 1)],
    )
    with pytest.raises(Refusal, match=said), output_folder.opened(config, LEADER):
        pass
    assert list(tmp_path.iterdir()) == []


def test_second_run_in_one_folder_is_refused_and_followers_are_not(tmp_path):
    config = config_of(tmp_path)
    with output_folder.opened(config, LEADER):
        with pytest.raises(Refusal) as caught, output_folder.opened(config, LEADER):
            pass
        assert caught.value.code == EXIT_BUSY
        with output_folder.opened(config, FOLLOWER) as folder:
            assert folder == tmp_path


def killed_with_the_lock(folder):
    with output_folder.opened(config_of(folder), LEADER):
        os.kill(os.getpid(), signal.SIGKILL)


def test_lock_of_a_killed_run_does_not_stay(tmp_path):
    process = forked.start(killed_with_the_lock, tmp_path)
    process.join()
    assert process.exitcode == -signal.SIGKILL and (tmp_path / ".lock").exists()
    with output_folder.opened(config_of(tmp_path), LEADER):
        pass


def status_after(folder, error=None):
    with console_log(is_leader=True), recorded(folder, config_of(folder), LEADER, StopRequest()) as status:
        status.begin(Progress(update=7))
        with output_folder.logged(folder, LEADER):
            logger.info("something happened")
            if error:
                raise error
    return read_status(folder)


def read_status(folder):
    return json.loads((folder / "status.json").read_text())


def test_status_tells_how_a_run_ended(tmp_path):
    status = status_after(tmp_path)
    assert (status["pid"], status["host"]) == (os.getpid(), socket.gethostname())
    told = ("state", "exit_code", "cause", "last_update", "checkpoint")
    assert [status[name] for name in told] == ["done", 0, "", 7, None]
    ends = {
        Refusal("bad data", EXIT_DATA): (EXIT_DATA, "bad data"),
        ZeroDivisionError("ours"): (1, "ZeroDivisionError: ours"),
        KeyboardInterrupt(): (EXIT_INTERRUPTED, "interrupted"),
    }
    for error, end in ends.items():
        with pytest.raises(type(error)):
            status_after(tmp_path, error)
        status = read_status(tmp_path)
        assert (status["state"], status["exit_code"], status["cause"]) == ("stopped", *end)


def killed_at_update_9(folder):
    with recorded(folder, config_of(folder), LEADER, StopRequest()) as status:
        status.begin(Progress(update=9))
        os.kill(os.getpid(), signal.SIGKILL)


def test_run_that_was_killed_says_running_and_not_how_the_one_before_it_ended(tmp_path):
    status_after(tmp_path)
    process = forked.start(killed_at_update_9, tmp_path)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    status = read_status(tmp_path)
    told = (status["state"], status["exit_code"], status["pid"], status["last_update"])
    assert told == ("running", None, process.pid, 9)


def test_refusal_before_training_is_in_the_status_with_where_the_run_stands(tmp_path):
    with pytest.raises(Refusal):
        status_after(tmp_path, Refusal("memory", EXIT_RESOURCE))
    with pytest.raises(Refusal), recorded(tmp_path, config_of(tmp_path), LEADER, StopRequest()):
        raise Refusal("no checkpoint can be used", EXIT_CHECKPOINT)
    status = read_status(tmp_path)
    assert (status["exit_code"], status["cause"]) == (EXIT_CHECKPOINT, "no checkpoint can be used")
    assert status["last_update"] == 7


def test_signal_after_the_end_changes_neither_the_status_nor_the_exit_code(tmp_path):
    with StopRequest().installed() as stop:
        with recorded(tmp_path, config_of(tmp_path), LEADER, stop) as status:
            status.begin(Progress())
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        stop.check()
    assert read_status(tmp_path)["exit_code"] == 0


@pytest.mark.parametrize("text", ["", "[]", '{"fruitless": "x"}', "{" * 10000, '{"fruitless": 1e999}'])
def test_status_that_is_none_is_passed_over(tmp_path, text):
    (tmp_path / "status.json").write_text(text)
    assert status_after(tmp_path)["fruitless"] == 0


def failing_start(folder, update, *options, error=None):
    config = get_config("SWIN_DEMO", options, [("OUTPUT", str(folder))])
    with recorded(folder, config, LEADER, StopRequest()) as status:
        status.begin(Progress(update=update))
        raise error or Refusal("the disk fails", EXIT_RESOURCE)


def test_starts_in_vain_are_counted_told_and_ended(tmp_path, caplog):
    limit = ("TRAIN.MAX_FRUITLESS_RESTARTS", "3")
    told = []
    for _ in range(5):
        caplog.clear()
        with pytest.raises(Refusal) as caught:
            failing_start(tmp_path, 12, *limit)
        told.append(("started" in caplog.text, str(caught.value).split(";")[0]))
    assert [first for first, _ in told] == [False, False, True, False, False]
    assert [cause for _, cause in told[:3]] == ["the disk fails"] * 3
    for _, cause in told[3:]:
        assert "from update 12 without reaching the next checkpoint (last: the disk fails)" in cause
    assert read_status(tmp_path)["fruitless"] == 4
    with pytest.raises(Refusal, match="the disk fails"):  # a checkpoint later the count begins anew
        failing_start(tmp_path, 13, *limit)
    assert read_status(tmp_path)["fruitless"] == 0


def test_starts_that_stopped_on_request_or_with_another_configuration_are_not_in_vain(tmp_path):
    for error in (Preempted("stopped"), Refusal("usage", EXIT_USAGE)):
        for _ in range(3):
            with pytest.raises(Refusal):
                failing_start(tmp_path, 0, error=error)
            assert read_status(tmp_path)["fruitless"] == 0
    for seed in ("1", "2"):
        with pytest.raises(Refusal):
            failing_start(tmp_path, 0, "SEED", seed)
        assert read_status(tmp_path)["fruitless"] == 0


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
@pytest.mark.parametrize(
    "name", ["log.txt", "metrics.csv", "status.json", ".lock", ".last.pth.tmp", "previous.pth", "best.pth"]
)
def test_what_is_no_file_in_the_place_of_one_is_named_at_once(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(Refusal, match=f"{name} .*move it away"), output_folder.opened(config_of(tmp_path), LEADER):
        pass
    assert (tmp_path / name).exists()


def test_what_a_killed_run_left_is_deleted_at_the_next_start(tmp_path):
    for name in (".last.pth.tmp", ".status.json.17.tmp", ".probe.17"):
        (tmp_path / name).write_bytes(b"half")
    with output_folder.opened(config_of(tmp_path), LEADER):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


class FullDisk:
    """Stands for the functions of `os` where nothing can be synchronised any more."""

    def __getattr__(self, name):
        return getattr(os, name)

    def fsync(self, _):
        raise OSError(28, "No space left on device")


def test_disk_that_is_full_hides_neither_the_cause_of_an_end_nor_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "os", FullDisk())
    with pytest.raises(Refusal, match="bad data"):
        status_after(tmp_path, Refusal("bad data", EXIT_DATA))
    output_folder.write_metrics(tmp_path, [{"epoch": 0}])
    assert "status.json cannot be written: No space left" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"log.txt"}


def test_log_that_cannot_be_written_is_told_of_once_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    monkeypatch.setattr(logs, "open_regular", lambda path, flags: os.open("/dev/full", flags))
    with file_log(tmp_path / "log.txt"):
        logger.warning("one line")
        logger.warning("another line")
    assert capsys.readouterr().err.count("log.txt cannot be written: [Errno 28]") == 1


def test_folder_without_locks_is_refused(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(output_folder.fcntl, "flock", unsupported)
    with pytest.raises(Refusal, match="cannot be locked"), output_folder.opened(config_of(tmp_path), LEADER):
        pass


def test_only_the_leader_writes(tmp_path):
    with output_folder.opened(config_of(tmp_path), FOLLOWER), recorded(
        tmp_path, config_of(tmp_path), FOLLOWER, StopRequest()
    ):
        logger.warning("said, not written")
    assert list(tmp_path.iterdir()) == []


def test_log_is_written_to_the_folder(tmp_path):
    status_after(tmp_path)
    assert "something happened" in (tmp_path / "log.txt").read_text()


def test_metrics_are_rewritten_whole(tmp_path):
    rows = [{"epoch": 0, "loss": 2.0, "top1": None}, {"epoch": 1, "loss": 1.5, "top1": 50.0}]
    output_folder.write_metrics(tmp_path, rows[:1])
    output_folder.write_metrics(tmp_path, rows)
    assert (tmp_path / "metrics.csv").read_text().split() == ["epoch,loss,top1", "0,2.0,", "1,1.5,50.0"]


def test_run_cut_short_may_keep_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = get_config("SWIN_DEMO", overrides=[("TRAIN.TRAINING_STEPS", 3)])
    with output_folder.opened(config, LEADER) as folder, recorded(folder, config, LEADER, StopRequest()):
        assert folder is None
    assert list(tmp_path.iterdir()) == []
