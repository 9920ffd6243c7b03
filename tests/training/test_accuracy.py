# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Accuracies: exact counts, and no fifth place among fewer than six classes."""

import pytest

from training.evaluation import Accuracy


@pytest.mark.parametrize("classes, said", [(2, "top-1: 50.00 % images: 4"), (5, "top-1: 50.00 % images: 4")])
def test_top_5_is_left_out_where_every_class_is_among_five(classes, said):
    accuracy = Accuracy(4, 2, 4, [(1, 1)] * classes)
    assert accuracy.top5 is None and str(accuracy) == said


def test_top_5_is_told_from_six_classes_on():
    assert str(Accuracy(4, 2, 3, [(1, 1)] * 6)) == "top-1: 50.00 % top-5: 75.00 % images: 4"
