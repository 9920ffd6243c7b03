# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What follows from the predictions for a data set: exact counts, confusions, calibration."""

import numpy as np
import pytest
import torch

import accelerator
from common.launch import Launch
from dataset.build_ipu import build_dataset, build_loader
from dataset.samples import UNREADABLE
from models.build import build_pipeline
from options import inference_options
from tests.data_sets import small_config, write_uneven
from training.evaluation import evaluate_images
from training.outcomes import Accuracy, Outcomes


@pytest.mark.parametrize("classes, said", [(2, "top-1: 50.00 % images: 4"), (5, "top-1: 50.00 % images: 4")])
def test_top_5_is_left_out_where_every_class_is_among_five(classes, said):
    accuracy = Accuracy(4, 2, 4, [(1, 1)] * classes)
    assert accuracy.top5 is None and str(accuracy) == said


def test_top_5_is_told_from_six_classes_on():
    assert str(Accuracy(4, 2, 3, [(1, 1)] * 6)) == "top-1: 50.00 % top-5: 75.00 % images: 4"


LABELS = np.array([0, 0, 1, UNREADABLE, 2])
PREDICTED = np.array([[0, 1], [1, 0], [1, 2], [0, 1], [0, 1]])
FIVE = Outcomes(LABELS, PREDICTED, np.tile(np.float32([0.75, 0.25]), (5, 1)), 3)


def test_unreadable_images_count_as_wrong_and_in_no_class():
    accuracy = FIVE.accuracy()
    assert accuracy == Accuracy(5, 2, 3, [(2, 1), (1, 1), (1, 0)])
    assert FIVE.class_counts().tolist() == [[2, 1, 2], [1, 1, 1], [1, 0, 0]]


def test_confusions_are_the_cells_that_hold_images():
    assert FIVE.confusions().tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1], [2, 0, 1]]


def test_calibration_error_is_the_mean_gap_between_accuracy_and_probability_in_15_bins():
    probabilities = np.float32([1.0, 1.0, 0.95, 0.5, 0.46, 0.02, 0.9])
    right = np.array([True, False, True, True, False, False, True])
    outcomes = Outcomes(np.zeros(7, int), np.where(right, 0, 1)[:, None], probabilities[:, None], 2)
    expected = 0.0
    for number in range(15):
        inside = (probabilities > number / 15) & (probabilities <= (number + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - probabilities[inside].mean())
    assert outcomes.calibration_error() == pytest.approx(expected, rel=1e-6) and expected > 0.1


def test_calibration_error_of_certain_and_correct_predictions_is_zero_and_of_none_undefined():
    perfect = Outcomes(np.array([1, 0]), np.array([[1], [0]]), np.ones((2, 1), np.float32), 2)
    assert perfect.calibration_error() == 0.0
    nothing = perfect._replace(labels=np.array([UNREADABLE] * 2))
    assert np.isnan(nothing.calibration_error()) and nothing.confusions().shape == (0, 3)


@pytest.mark.parametrize(
    "batch, replicas, loader, late",
    [(1, 1, "sync", False), (5, 2, "sync", False), (3, 1, "rebatched", False), (2, 1, "sync", True)],
)
def test_outcomes_are_in_the_order_of_the_data_set_for_every_loader(
    tmp_path, batch, replicas, loader, late, monkeypatch
):
    """And where the device answers when the next batch has begun."""
    monkeypatch.setattr(accelerator, "answers_late", lambda: late)
    root = write_uneven(tmp_path)
    (root / "validation" / "b" / "002.jpg").write_bytes(b"damaged")
    keys = {"DATA__BATCH_SIZE": batch, "IPU__REPLICAS": replicas, "DATA__LOADER": loader, "DATA__NUM_WORKERS": 0}
    config, launch = small_config(root, **keys), Launch(0, 1, replicas, replicas)
    torch.manual_seed(0)
    model = build_pipeline(config, 3, training=False).eval()
    for parameter in model.parameters():  # a fresh model says nearly the same of every image
        parameter.data.add_(0.2 * torch.randn(parameter.shape))
    dataset = build_dataset(config, training=False)
    validator = accelerator.poptorch().inferenceModel(model, inference_options(config, launch))
    outcomes = evaluate_images(validator, build_loader(config, validator.options, dataset, training=False), 13, launch)
    images, labels = zip(*(dataset[index] for index in range(13)))
    assert outcomes.labels.tolist() == list(labels) and labels[7] == UNREADABLE
    with torch.no_grad():
        best = model(torch.stack(images)).softmax(1).topk(3)
    assert outcomes.predicted.tolist() == best.indices.tolist()
    np.testing.assert_allclose(outcomes.probabilities, best.values, atol=1e-5)
