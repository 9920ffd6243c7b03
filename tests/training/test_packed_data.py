# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Training and validation from packed data: the same run as from the folder."""

import shutil

import pytest

import dataset.prepare
import train_swin
import validate
from dataset.restart_markers import TOOL
from tests.backend import DEVICE
from tests.data_sets import write_folders
from tests.runs import SMALL, assert_same_run
from training import checkpoint

AUGMENTED = ("AUG.AUTO_AUGMENT", "rand-m9-mstd0.5-inc1", "AUG.REPROB", "0.25")
KINDS = {"shards": [], "tiles": ["--restart-markers"]}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same pictures in a folder and packed in every way that this machine can."""
    root = tmp_path_factory.mktemp("data")
    counts = {"train": {"a": 40, "b": 40, "c": 40}, "validation": {"a": 5, "b": 4, "c": 4}}
    found = {"folder": write_folders(root / "folder", counts, (40, 40))}
    for kind, flags in KINDS.items():
        if not flags or shutil.which(TOOL):
            dataset.prepare.main(["shards", "--source", str(root / "folder"), "--out", str(root / kind), *flags])
            found[kind] = root / kind
    return found


def train(place, output, *more):
    command = [*SMALL, *AUGMENTED, *more, "--epochs", "2", "--data-path", str(place), "--output", str(output)]
    train_swin.main(command)
    return checkpoint.load(output / "last.pth")


@pytest.fixture(scope="module")
def expected(places, tmp_path_factory):
    output = tmp_path_factory.mktemp("folder")
    return output, train(places["folder"], output)


def test_run_goes_on_inside_an_epoch_with_the_same_pictures_packed_otherwise(places, expected, tmp_path):
    for step, kind in enumerate(places, start=1):
        begun = train(places[kind], tmp_path, "--training-steps", str(2 * step - 1))
        assert begun["progress"]["update"] == 2 * step - 1  # of three in an epoch
    assert_same_run(train(places[kind], tmp_path), expected[1])


def test_validation_of_packed_data_says_what_that_of_the_folder_says(places, expected, capsys):
    said = {}
    for kind, place in places.items():
        capsys.readouterr()
        validate.main(["--checkpoint", str(expected[0] / "last.pth"), "--data-path", str(place), "--device", DEVICE])
        said[kind] = capsys.readouterr().out.splitlines()[-1]
    results = {line.split("INFO")[-1] for line in said.values()}
    assert len(results) == 1 and "%" in results.pop(), said
