# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Fixtures with real scans; a test module takes them by `pytest_plugins = ["tests.digits"]`."""

import shutil

import pytest

import dataset.prepare


@pytest.fixture(scope="session")
def all_digits(tmp_path_factory):
    """The scikit-learn digits in ImageNet layout: 1,438 scans to train on, 359 to validate on."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    dataset.prepare.main(["digits", "--out", str(folder)])
    return folder


@pytest.fixture(scope="session")
def digits(all_digits, tmp_path_factory):
    """A few of them: 160 to train on and 37 to validate on, unevenly."""
    few = tmp_path_factory.mktemp("data") / "digits"
    for split, kept in (("train", 16), ("validation", 4)):
        for index, folder in enumerate(sorted((all_digits / split).iterdir())):
            (few / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[: kept - (split == "validation" and index < 3)]:
                shutil.copy(image, few / split / folder.name)
    return few
