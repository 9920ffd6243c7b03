# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The configured loss: values of PyTorch's own functions, operations that PopTorch has, and an empty state dict."""

import pytest
import torch
from torch.nn import functional

from common.errors import Refusal
from config import get_config
from models.losses import ClassificationLoss
from tests.operations import Recorder

WEIGHTS = torch.tensor([0.5, 1.0, 4.0])
WEIGHTED = ["TRAIN.CLASS_WEIGHTS", "[0.5, 1.0, 4.0]"]
BCE = ["TRAIN.LOSS.NAME", "bce"]
LOGITS = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.2, -0.4]])
LABELS = torch.tensor([2, 0])
MIXED = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.4, 0.0]])


def loss_of(*opts, smoothing=0.0):
    made = ClassificationLoss(get_config("SWIN_TINY", [*opts, "MODEL.LABEL_SMOOTHING", str(smoothing)]), 3)
    if "TRAIN.CLASS_WEIGHTS" in opts:
        made.weigh(WEIGHTS)
    assert not made.state_dict()
    return made


def smoothed(smoothing):
    return functional.one_hot(LABELS, 3) * (1 - smoothing) + smoothing / 3


def test_class_weights_multiply_the_terms_of_classes():
    mixed = functional.cross_entropy(LOGITS, MIXED, WEIGHTS)  # which divides by the number of samples
    torch.testing.assert_close(loss_of(*WEIGHTED)(LOGITS, MIXED), mixed)
    labels = functional.cross_entropy(LOGITS, LABELS, WEIGHTS, reduction="sum") / 2
    torch.testing.assert_close(loss_of(*WEIGHTED)(LOGITS, LABELS), labels)
    both = functional.cross_entropy(LOGITS, smoothed(0.3), WEIGHTS)
    torch.testing.assert_close(loss_of(*WEIGHTED, smoothing=0.3)(LOGITS, LABELS), both)


def test_binary_cross_entropy_is_that_of_every_class():
    of_all = functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(loss_of(*BCE)(LOGITS, MIXED), of_all(LOGITS, MIXED))
    torch.testing.assert_close(loss_of(*BCE, smoothing=0.3)(LOGITS, LABELS), of_all(LOGITS, smoothed(0.3)))
    summed = loss_of(*BCE, "TRAIN.LOSS.SUM_CLASSES", "True")(LOGITS, MIXED)
    torch.testing.assert_close(summed, 3 * of_all(LOGITS, MIXED))
    above = loss_of(*BCE, "TRAIN.LOSS.TARGET_THRESHOLD", "0.2")(LOGITS, MIXED)
    torch.testing.assert_close(above, of_all(LOGITS, torch.tensor([[0.0, 0, 1], [1, 1, 0]])))
    positive = loss_of(*BCE, *WEIGHTED, "TRAIN.LOSS.POSITIVE_WEIGHT", "3")(LOGITS, MIXED)
    torch.testing.assert_close(positive, of_all(LOGITS, MIXED, WEIGHTS, pos_weight=torch.tensor(3.0)))


@pytest.mark.parametrize("targets", [LABELS, MIXED], ids=["indices", "probabilities"])
@pytest.mark.parametrize("opts", [WEIGHTED, [*BCE, *WEIGHTED, "TRAIN.LOSS.TARGET_THRESHOLD", "0.1"]])
def test_losses_run_only_operations_that_poptorch_compiles(opts, targets):
    loss = loss_of(*opts, smoothing=0.1)
    with Recorder() as recorder:
        loss(LOGITS, targets)
    assert recorder.names and not recorder.refused


@pytest.mark.parametrize(
    "opts, said",
    [
        (["TRAIN.LOSS.SUM_CLASSES", "True"], "TRAIN.LOSS.SUM_CLASSES True is for bce"),
        (["TRAIN.CLASS_WEIGHTS", "equal"], "'equal': expected balanced, or a list"),
        (["TRAIN.CLASS_WEIGHTS", "[0, 0]"], "all weights are 0"),
        (["TRAIN.CLASS_WEIGHTS", "[-1.0, 1]"], "out of range"),
    ],
)
def test_settings_without_effect_are_refused(opts, said):
    with pytest.raises(Refusal, match=said.replace("[", r"\[")):
        get_config("SWIN_TINY", opts)
