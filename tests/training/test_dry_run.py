# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""--dry-run: what it tells of a run, and that it leaves nothing behind."""

import contextlib
import re
import sys
import types

import pytest
import torch

import train_swin
from common.errors import Refusal
from config import get_config
from tests.runs import SMALL
from training import arguments, dry_run

pytest_plugins = ["tests.digits"]


def section(text, title):
    """The lines of a section, up to the empty line after it."""
    return text.split(f"{title}:\n")[1].split("\n\n")[0].splitlines()


@pytest.fixture(scope="module")
def told(digits, tmp_path_factory):
    """What a dry run prints, with its output folder and its picture."""
    folder = tmp_path_factory.mktemp("dry")
    with pytest.MonkeyPatch.context() as patch, (folder / "told.txt").open("w+") as stream:
        patch.setattr(sys, "stdout", stream)
        argv = [*SMALL, "--data-path", str(digits), "--output", str(folder / "out"), "--seed", "3", "--epochs", "7"]
        train_swin.main([*argv, "--schedule-output", str(folder / "rates.png")])
        stream.seek(0)
        return stream.read(), folder


def test_every_key_has_its_value_and_who_set_it(told):
    lines = section(told[0], "Configuration")
    rows = dict(line.split(maxsplit=1) for line in lines)
    assert re.fullmatch(r"3 +--seed", rows["SEED"])
    assert re.fullmatch(r"\[1, 1\] +--opts", rows["MODEL.SWIN.DEPTHS"])
    assert re.fullmatch(r"16 +configs.yaml: SWIN_DEMO", rows["DATA.IMG_SIZE"])
    assert re.fullmatch(r"adamw +default", rows["TRAIN.OPTIMIZER.NAME"])


def test_model_schedule_data_and_cost_are_told(told):
    text = told[0]
    assert re.search(r"^layers\.1 .* 1, 4x4, 32, 2, 4x4 ", "\n".join(section(text, "Model")), re.MULTILINE)
    rates = [line.split()[2] for line in section(text, "Learning rate")[1:-1]]
    assert re.search(r"^ +2 +5 +\S+  end of the warm-up$", "\n".join(section(text, "Learning rate")), re.MULTILINE)
    assert len(rates) >= 10 and max(map(float, rates)) == pytest.approx(0.05 * 32 / 512)
    assert float(rates[0]) < float(rates[-1]) < 0.05 * 32 / 512 / 10
    data = "\n".join(section(text, "Data"))
    assert "training images: 160; validation images: 37; classes: 10" in data and "0 (16), 1 (16)" in data
    cost = "\n".join(section(text, "Cost"))
    assert re.search(r"losses \d\.\d{4}, \d\.\d{4}\n", cost) and "in 5 updates of 32 samples" in cost
    assert re.search(r"memory: \d[\d,]* MB of the host", cost)
    assert re.search(r"a validation: about \d+ s, 37 images", cost)


def test_time_of_a_run_has_that_of_its_validations(digits, monkeypatch, capsys):
    """Of five epochs with an interval of two, the second, fourth and last are validated, each by both weights."""
    monkeypatch.setattr(dry_run, "_validation_seconds", lambda run: 1e6)
    train_swin.main([*SMALL, "--dry-run", "--data-path", str(digits), "--epochs", "5", "--opts", "TEST.INTERVAL", "2"])
    days = re.search(r"5 epochs with 3 validations: about (\d+) days", capsys.readouterr().out)
    assert int(days[1]) == 3e6 // (24 * 3600)


def test_validation_is_measured_by_its_second_batch_and_counts_twice_with_averaged_weights(monkeypatch):
    clock = iter([0.0, 100.0, 103.0] * 2)
    monkeypatch.setattr(dry_run.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(dry_run, "validating", lambda run: contextlib.nullcontext())
    monkeypatch.setattr(dry_run, "batches", iter)
    loader = [(torch.zeros(1), torch.zeros(1))] * 7
    for average, seconds in ((None, 21), ("some", 42)):
        data = types.SimpleNamespace(validation_loader=loader)
        run = types.SimpleNamespace(data=data, validator=lambda images: None, average=average)
        assert dry_run._validation_seconds(run) == seconds


def test_nothing_is_written_but_the_picture_that_was_asked_for(told):
    folder = told[1]
    assert {path.name for path in folder.iterdir()} == {"told.txt", "rates.png"}
    assert (folder / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert dry_run._without_traces(get_config("SWIN_DEMO")).IPU.EXECUTABLE_CACHE == ""  # of IPUs


def test_dry_run_names_the_checkpoint_that_a_run_would_resume_from(digits, tmp_path, capsys):
    (tmp_path / "last.pth").write_bytes(b"not read")
    train_swin.main([*SMALL, "--dry-run", "--data-path", str(digits), "--output", str(tmp_path)])
    assert f"a run would resume from {tmp_path / 'last.pth'}" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]


def test_picture_that_cannot_be_drawn_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    with pytest.raises(Refusal, match="--schedule-output .*rates.jpg: the name must end in .png"):
        train_swin.main([*SMALL, "--synthetic", "--schedule-output", str(tmp_path / "rates.jpg")])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Refusal, match="pip install matplotlib, or use --dry-run alone"):
        train_swin.main([*SMALL, "--synthetic", "--schedule-output", str(tmp_path / "rates.png")])


def test_dry_run_excludes_other_commands():
    with pytest.raises(Refusal, match="--eval and --dry-run: give only one of them"):
        arguments.parse_training(["--cfg", "SWIN_TINY", "--eval", "--dry-run"])


def test_origins_follow_the_order_of_precedence(tmp_path):
    (tmp_path / "base.yaml").write_text("TRAIN: {EPOCHS: 90, BASE_LR: 0.1}")
    (tmp_path / "child.yaml").write_text("BASE: ['base.yaml']\nTRAIN: {EPOCHS: 100}")
    argv = [
        "--cfg",
        str(tmp_path / "child.yaml"),
        "--opts",
        "SEED",
        "1",
        "TRAIN.KEEP",
        "2",
        "--seed",
        "4",
        "--synthetic",
    ]
    args = arguments.parse_training(argv)
    origins = arguments.origins(args)
    assert origins.keys() == arguments.origins(arguments.parse_training(["--cfg", "SWIN_TINY"])).keys()
    assert origins["TRAIN.EPOCHS"].endswith("child.yaml") and origins["TRAIN.BASE_LR"].endswith("base.yaml")
    assert (origins["SEED"], origins["TRAIN.KEEP"], origins["TAG"]) == ("--seed", "--opts", "default")
    assert origins["DATA.DATASET"] == "--synthetic"
    assert get_config(args.cfg).TRAIN.EPOCHS == 100
