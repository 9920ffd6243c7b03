# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""DATA.INPUT_DTYPE uint8 against float: the same logits, losses and accuracy, through the loaders and the model.

Crops, flips and RandAugment work on bytes either way, and the device normalises bytes as the host would: equal to the
rounding of float32. Two augmentations work on normalised floats otherwise and are rounded to bytes here. Mixup and
cutmix, which the loader's collate function does on the host: to half a level of 255. The noise of random erasing, drawn
in the host's transform: to half a level, and cut off at black and white.
"""

import pytest
import torch

import accelerator
from common.launch import Launch
from dataset.build_ipu import build_dataset, build_loader
from models.build import build_pipeline
from optimizer import build_optimizer
from options import inference_options, training_options
from tests.backend import DEVICE
from tests.data_sets import small_config, write_folders
from training.evaluation import evaluate

ALONE = Launch(0, 1, 1, 1)
UNMIXED = {"AUG__MIXUP": 0.0, "AUG__CUTMIX": 0.0}
UNERASED = {"AUG__REPROB": 0.0}


@pytest.fixture(autouse=True)
def device():
    accelerator.select(DEVICE)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folders(
        tmp_path_factory.mktemp("photos"), {"train": {"a": 12, "b": 12, "c": 8}, "validation": {"a": 3, "b": 4, "c": 2}}
    )


def configured(root, dtype, **keys):
    return small_config(
        root,
        **{
            "DATA__INPUT_DTYPE": dtype,
            "MODEL__SWIN__EMBED_DIM": 24,
            "TRAIN__ACCUMULATION_STEPS": 2,
            "TRAIN__BASE_LR": 10.0,
            "TRAIN__CLIP_GRAD": 0.0,
            "TRAIN__OPTIMIZER__NAME": "sgd",
            **keys,
        },
    )


def trained(config):
    """Images, targets and losses of the eight updates of an epoch, and the weights after it."""
    torch.manual_seed(0)
    model, options = build_pipeline(config, 3), training_options(config, ALONE)
    trainer = accelerator.poptorch().trainingModel(model.train(), options, build_optimizer(config, model, ALONE))
    steps = [  # an asynchronous loader writes later batches into the memory of these
        (images.clone(), targets.clone(), trainer(images, targets)[1].item())
        for images, targets in build_loader(config, options, build_dataset(config, True), training=True)
    ]
    assert len(steps) == 8
    trainer.destroy()
    images, targets, losses = zip(*steps)
    return torch.cat(images), torch.cat(targets), torch.tensor(losses), model.state_dict()


def evaluated(config):
    """Logits of the validation images in order, and the accuracy that validate.py counts."""
    torch.manual_seed(0)
    model, options = build_pipeline(config, 3, training=False).eval(), inference_options(config, ALONE)
    for parameter in model.parameters():  # far from the fresh model, which says nearly the same of every image
        parameter.data.add_(0.2 * torch.randn(parameter.shape).to(parameter.dtype))
    validator, dataset = accelerator.poptorch().inferenceModel(model, options), build_dataset(config, False)

    def loader():
        return build_loader(config, options, dataset, training=False)

    logits = torch.cat([validator(images)[labels >= 0] for images, labels in loader()])  # without what fills a batch
    assert len(logits) == len(dataset)
    return logits, evaluate(validator, loader(), len(dataset), ALONE)


@pytest.mark.parametrize("precision, tolerance", [("32.32", 5e-6), ("16.32", 5e-3), ("16.16", 5e-3)])
def test_evaluation_is_equal_to_rounding_and_the_accuracy_exactly(root, precision, tolerance):
    floats, exact = evaluated(configured(root, "float", MODEL__PRECISION=precision))
    bytes_, counted = evaluated(configured(root, "uint8", MODEL__PRECISION=precision))
    assert floats.std() > 0.1
    torch.testing.assert_close(bytes_, floats, rtol=tolerance, atol=tolerance)
    assert counted == exact


def test_training_on_bytes_is_equal_to_rounding_under_every_augmentation_of_bytes(root):
    images, targets, losses, weights = trained(configured(root, "float", **UNMIXED, **UNERASED))
    as_bytes, same_targets, same_losses, same_weights = trained(configured(root, "uint8", **UNMIXED, **UNERASED))
    assert as_bytes.dtype == torch.uint8 and images.dtype == torch.float32 and torch.equal(targets, same_targets)
    assert losses.std() > 0.01
    torch.testing.assert_close(same_losses, losses, rtol=2e-6, atol=0)
    for name in weights:
        torch.testing.assert_close(same_weights[name], weights[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "keys, tolerance", [(UNERASED, 1e-3), (UNMIXED, 1e-2), ({}, 1e-2)], ids=["mixed", "erased", "both"]
)
def test_training_losses_are_close_where_mixing_or_erasing_is_rounded_to_bytes(root, keys, tolerance):
    images, targets, losses, _ = trained(configured(root, "float", **keys))
    as_bytes, same_targets, same_losses, _ = trained(configured(root, "uint8", **keys))
    assert torch.equal(targets, same_targets)
    assert not torch.equal(losses, same_losses)
    torch.testing.assert_close(same_losses, losses, rtol=tolerance, atol=0)


def test_mixed_bytes_are_at_most_half_a_level_off(root):
    config = configured(root, "float", **UNERASED)
    images = trained(config)[0]
    as_bytes = trained(configured(root, "uint8", **UNERASED))[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.DATA.MEAN, config.DATA.STD))
    levels = (images * std + mean) * 255
    assert (levels - as_bytes).abs().max() <= 0.5 + 1e-3
    assert (levels - levels.round()).abs().max() > 0.1  # or nothing would have been rounded
