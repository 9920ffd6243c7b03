# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The output folder: one run at a time, a status that tells the truth, metrics without repeats."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import files
from common.errors import EXIT_BUSY, EXIT_DATA, EXIT_USAGE, Refusal
from common.launch import Launch
from common.logs import console_log, file_log, logger
from config import get_config
from training import output_folder

LEADER, FOLLOWER = Launch(0, 2, 2, 1), Launch(1, 2, 2, 1)
ROOT = Path(__file__).resolve().parents[2]


def config_of(folder, tag=""):
    return get_config("SWIN_DEMO", overrides=[("OUTPUT", str(folder)), ("TAG", tag)])


def test_folder_is_made_with_its_tag(tmp_path):
    with output_folder.opened(config_of(tmp_path / "a b" / "ü", "first"), LEADER) as folder:
        assert folder == tmp_path / "a b" / "ü" / "first" and folder.is_dir()


@pytest.mark.parametrize("output", ["", "file"])
def test_folder_that_is_not_named_or_cannot_be_made_is_refused(tmp_path, output):
    (tmp_path / "file").write_text("")
    path = str(tmp_path / output / "run") if output else ""
    with pytest.raises(Refusal, match="--output") as caught, output_folder.opened(config_of(path), LEADER):
        pass
    assert caught.value.code == EXIT_USAGE


@pytest.mark.parametrize(
    "output, tag, said",
    [
        ("", "a", "--output is needed"),
        ("run", "../a", "out of --output"),
        ("run", "/a", "out of --output"),
        ("run", "a/../..", "out of --output"),
    ],
)
def test_tag_that_is_no_folder_in_the_output_is_refused(tmp_path, output, tag, said):
    config = get_config(
        "SWIN_DEMO",
        overrides=[("OUTPUT", output and str(tmp_path / output)), ("TAG", tag), ("TRAIN.TRAINING_STEPS", 1)],
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


def test_lock_of_a_killed_run_does_not_stay(tmp_path):
    script = (
        "import os, signal\nfrom training import output_folder\n"
        "from tests.training.test_output_folder import LEADER, config_of\n"
        f"with output_folder.opened(config_of({str(tmp_path)!r}), LEADER):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == -9
    with output_folder.opened(config_of(tmp_path), LEADER):
        pass


def status_after(folder, error=None):
    with console_log(is_leader=True), output_folder.recorded(folder, LEADER, lambda: 7):
        logger.info("something happened")
        if error:
            raise error
    return read_status(folder)


def read_status(folder):
    return json.loads((folder / "status.json").read_text())


def test_status_tells_how_a_run_ended(tmp_path):
    done = {"state": "done", "exit_code": 0, "cause": "", "last_update": 7, "checkpoint": None}
    assert status_after(tmp_path) == done
    with pytest.raises(Refusal):
        status_after(tmp_path, Refusal("bad data", EXIT_DATA))
    assert (read_status(tmp_path)["exit_code"], read_status(tmp_path)["cause"]) == (EXIT_DATA, "bad data")
    with pytest.raises(ZeroDivisionError):
        status_after(tmp_path, ZeroDivisionError("ours"))
    assert (read_status(tmp_path)["exit_code"], read_status(tmp_path)["cause"]) == (1, "ZeroDivisionError: ours")


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


def test_log_that_cannot_be_written_is_told_of_once_and_the_run_goes_on(capsys):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with file_log(Path("/dev/full")):
        logger.warning("one line")
        logger.warning("another line")
    assert capsys.readouterr().err.count("/dev/full cannot be written: [Errno 28]") == 1


def test_folder_without_locks_is_refused(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(output_folder.fcntl, "flock", unsupported)
    with pytest.raises(Refusal, match="cannot be locked"), output_folder.opened(config_of(tmp_path), LEADER):
        pass


def test_only_the_leader_writes(tmp_path):
    with output_folder.opened(config_of(tmp_path), FOLLOWER), output_folder.recorded(tmp_path, FOLLOWER, lambda: 7):
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
    with output_folder.opened(config, LEADER) as folder, output_folder.recorded(folder, LEADER, lambda: 3):
        assert folder is None
    assert list(tmp_path.iterdir()) == []


def test_missing_wandb_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = get_config("SWIN_DEMO", overrides=[("WANDB", True)])
    with pytest.raises(Refusal, match="pip install wandb"):
        output_folder.open_tracker(config, LEADER)
