# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The README's lines for one's own photographs, run on a few small ones."""

import re
import shlex
from pathlib import Path

import pytest

import dataset.check
import dataset.prepare
import predict
import train_swin
import validate
from common.errors import EXIT_DATA, Refusal
from tests.data_sets import encoded, photo, write_folders

ROOT = Path(__file__).resolve().parent.parent
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own photographs")[1].split("\n## ")[0]
LINES = re.search(r"```bash\n(.*?)```", SECTION, re.DOTALL)[1].splitlines()
TINY = "DATA.IMG_SIZE 32 MODEL.SWIN.WINDOW_SIZE 4 MODEL.SWIN.EMBED_DIM 24 MODEL.SWIN.DEPTHS [1,1,1,1]"
TINY += " IPU.LAYERS_PER_IPU [1,1,1,1] TRAIN.WARMUP_EPOCHS 0 DATA.NUM_WORKERS 0"


def test_the_lines_lead_from_a_folder_of_classes_to_a_prediction(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path, {"photos": {"cat": 24, "dog": 20}}, size=(48, 40))
    (tmp_path / "photo.jpg").write_bytes(encoded(photo(99, (50, 50))))
    install, *commands = (shlex.split(line) for line in LINES)
    assert install[:3] == ["pip", "install", "-r"] and len(commands) == 5
    more = ["--device", "cpu"]
    dataset.prepare.main(commands[0][3:])
    assert len(list(Path("data/photos/validation").rglob("*.jpg"))) == 5 + 4
    dataset.check.main(commands[1][3:])
    assert "train: 35 images of 2 classes" in capsys.readouterr().out
    train_swin.main([*commands[2][2:], *more, "--epochs", "1", "--opts", *TINY.split()])
    validate.main([*commands[3][2:], *more])
    assert "class dog: top-1:" in capsys.readouterr().out
    predict.main([*commands[4][2:], *more])
    assert re.fullmatch(r"\./photo\.jpg: (cat|dog) [\d.]+%; (cat|dog) [\d.]+%\n", capsys.readouterr().out)


def test_class_of_one_picture_cannot_be_split(tmp_path):
    write_folders(tmp_path, {"photos": {"cat": 3, "dog": 1}})
    with pytest.raises(Refusal, match="dog has one image") as caught:
        dataset.prepare.main(["folder", "--source", str(tmp_path / "photos"), "--out", str(tmp_path / "out")])
    assert caught.value.code == EXIT_DATA and not (tmp_path / "out").exists()
