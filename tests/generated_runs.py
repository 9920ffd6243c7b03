# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The smallest training runs: a few updates of a Swin Transformer of two blocks, on generated images or a few files."""

import train_swin
from tests.backend import DEVICE
from tests.data_sets import write_folders
from training import checkpoint

SMALL = ["--cfg", "SWIN_DEMO", "--device", DEVICE, "--num-workers", "0", "--batch-size", "4", "--opts"]
SMALL += ["DATA.DATASET", "generated", "MODEL.NUM_CLASSES", "10", "IPU.LAYERS_PER_IPU", "[2]"]
SMALL += ["MODEL.SWIN.EMBED_DIM", "8", "MODEL.SWIN.DEPTHS", "[1, 1]", "MODEL.SWIN.NUM_HEADS", "[1, 2]"]


def train_small(folder, updates, *opts):
    """Trains to a number of updates (0: to the end), from where the folder's checkpoint stands, with `opts`."""
    train_swin.main([*SMALL, "TRAIN.TRAINING_STEPS", str(updates), *opts, "OUTPUT", str(folder)])


def train(folder, updates, *opts):
    """The same; returns the newest checkpoint."""
    train_small(folder, updates, *opts)
    return checkpoint.load(folder / checkpoint.LAST)


def pictures(root, **classes):
    """Settings for training on files, which are written there: so many pictures of each class, two to validate."""
    write_folders(root, {"train": classes, "validation": dict.fromkeys(classes, 2)}, (16, 16))
    return ["DATA.DATASET", "imagenet", "DATA.DATA_PATH", str(root), "MODEL.NUM_CLASSES", "0", "AUG.MIXUP", "0.2"]
