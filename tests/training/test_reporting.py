# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The report of a run: written at every epoch, true to the run, and never the reason for its end."""

import csv
import json
import re

import pytest

import train_swin
from common import seal
from tests.runs import SMALL, assert_same_run, train
from training import reporting

pytest_plugins = ["tests.digits"]


def data_of(folder):
    return json.loads(re.search(r'id="data">(.*?)</script>', (folder / "report.html").read_text()).group(1))


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, train(digits, folder, "--epochs", "2", "--seed", "3")


def test_report_has_the_rows_results_and_origin_of_the_run(finished, digits):
    folder, _ = finished
    text, data = (folder / "report.html").read_text(), data_of(folder)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    [loss] = [chart for chart in data["charts"] if chart["title"] == "Loss"]
    assert (loss["x"], loss["lines"][0]["y"]) == ([1, 2], [float(row["loss"]) for row in rows])
    assert "finished: epoch 2 of 2" in text and "Confusion after epoch 2" in text
    mistakes = round(37 * (1 - float(rows[-1]["top1"]) / 100))
    assert text.count("<figcaption>") == min(mistakes, reporting.SHOWN_MISTAKES)
    shares = [float(share) for share in re.findall(r"<figcaption><b>.*?</b> ([\d.]+) %", text)]
    assert len(set(shares)) > 1 and shares == sorted(shares, reverse=True)
    manifest = data["manifest"]
    assert manifest["configuration"]["SEED"] == {"value": "3", "origin": "--seed"}
    assert manifest["configuration"]["DATA.IMG_SIZE"]["origin"] == "configs.yaml: SWIN_DEMO"
    assert manifest["data"]["path"] == str(digits) and manifest["data"]["training images"] == "160"
    assert manifest["run"]["seed"] == "3" and "torch" in manifest["code"] and "commit" in manifest["code"]


def test_checkpoints_are_named_with_the_digests_that_they_carry(finished):
    folder, _ = finished
    found = {row["name"]: row["digest"] for row in data_of(folder)["manifest"]["checkpoints"]}
    assert found.keys() == {"last.pth", "previous.pth", "best.pth"}
    assert found["last.pth"] == seal.digest_of(folder / "last.pth")
    assert re.fullmatch("[0-9a-f]{64}", found["last.pth"]) and found["last.pth"] != found["previous.pth"]


def test_resumed_run_reports_the_epochs_before_and_changes_nothing(digits, finished, tmp_path):
    train(digits, tmp_path, "--epochs", "2", "--seed", "3", "--training-steps", "7")
    assert "<title>swin_demo_patch2_window4_16: epoch 1 of 2</title>" in (tmp_path / "report.html").read_text()
    assert_same_run(train(digits, tmp_path, "--epochs", "2", "--seed", "3"), finished[1])
    assert data_of(tmp_path)["charts"][0]["x"] == [1, 2]


def test_report_that_is_off_is_not_written_and_the_run_is_the_same(digits, finished, tmp_path):
    state = train(digits, tmp_path, "--epochs", "2", "--seed", "3", "--opts", "REPORT", "False")
    assert not (tmp_path / "report.html").exists()
    assert_same_run(state, finished[1])


@pytest.mark.parametrize("broken", ["_data_facts", "_mistakes", "_head"])
def test_error_in_the_report_does_not_end_the_run(digits, finished, tmp_path, monkeypatch, broken, capsys):
    def fail(*_):
        raise RuntimeError("no report today")

    monkeypatch.setattr(reporting, broken, fail)
    state = train(digits, tmp_path, "--epochs", "2", "--seed", "3")
    assert capsys.readouterr().out.count("report.html is no longer written: RuntimeError: no report today") == 1
    assert_same_run(state, finished[1])


def test_generated_images_have_a_report_without_pictures(tmp_path):
    argv = [*SMALL, "--synthetic", "--epochs", "2", "--ga", "1", "--batch-size", "2"]
    train_swin.main([*argv, "--output", str(tmp_path)])
    assert "<figcaption>" not in (tmp_path / "report.html").read_text()
    assert data_of(tmp_path)["manifest"]["data"]["path"] == "generated on the host"
