# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Classes with different numbers of images: weights of their losses, and how often each is drawn."""

import pytest
import torch

from common.errors import EXIT_DATA, Refusal
from dataset.balance import class_weights
from dataset.build_ipu import build_dataset
from tests.data_sets import small_config, write_folders


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """12, 3 and 1 images of three classes."""
    counts = {"a": 12, "b": 3, "c": 1}
    return write_folders(tmp_path_factory.mktemp("uneven"), {"train": counts, "validation": counts}, (8, 8))


def test_balanced_weights_are_in_inverse_proportion_to_the_images(uneven):
    weights = class_weights("balanced", build_dataset(small_config(uneven), training=True), 3)
    torch.testing.assert_close(weights, torch.tensor([16 / 36, 16 / 9, 16 / 3]))
    torch.testing.assert_close(12 * weights[0] + 3 * weights[1] + weights[2], torch.tensor(16.0))


def test_class_without_images_weighs_nothing(uneven):
    weights = class_weights("balanced", build_dataset(small_config(uneven), training=True), 4)
    torch.testing.assert_close(weights, torch.tensor([16 / 36, 16 / 9, 16 / 3, 0]))


def test_wrong_number_of_weights_for_the_classes_of_the_data_is_refused(uneven):
    with pytest.raises(Refusal, match=r"TRAIN.CLASS_WEIGHTS has 2 numbers: the model has 3 classes") as caught:
        class_weights([1, 2], build_dataset(small_config(uneven), training=True), 3)
    assert caught.value.code == EXIT_DATA
