# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Names of classes in predictions."""

from training.prediction import describe


def test_classes_are_named_by_words_where_they_are_those_of_imagenet():
    assert describe([], 1000)[0] == describe(["n01440764", "a"], 2)[0]
    assert describe(["n01440764", "a"], 3) == ["n01440764 (tench, Tinca tinca)", "a", "2"]
