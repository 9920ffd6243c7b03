# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Loss curves of the demonstration in float32, and in bfloat16 with and without the blocks for CPUs.

    python -m benchmarks.precision_curves --data-path ./data/digits [--epochs 6] [--seeds 2]

Three models start from the same weights and see the same batches in turns: float32; MODEL.PRECISION mix as
train_swin.py runs it on a CPU; and mix in the ordinary blocks, which is torch.autocast alone. Printed are, for each
epoch, the mean training loss of float32 and what the others' are above it; and at the end the accuracy on
the validation images. Each is the median over seeds, with the range.
"""

import argparse
import collections
import statistics
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type

import torch

import accelerator
from common.launch import Launch
from config import get_config
from dataset.build_ipu import build_dataset, build_loader
from lr_scheduler import build_scheduler
from models.build import HostSwinClassifier, SwinClassifier
from optimizer import build_optimizer
from options import inference_options, training_options

ALONE = Launch(0, 1, 1, 1)
VARIANTS: Dict[str, Tuple[str, Type[SwinClassifier]]] = {
    "float32": ("32.32", HostSwinClassifier),
    "mix": ("mix", HostSwinClassifier),
    "autocast": ("mix", SwinClassifier),
}


class Learner(NamedTuple):
    """A model in training."""

    model: SwinClassifier
    trainer: Any
    optimizer: Any
    schedule: Any

    def step(self, update: int, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Makes a weight update. Returns the loss before it."""
        self.schedule.step_update(update)
        self.trainer.setOptimizer(self.optimizer)
        return float(self.trainer(images, labels)[1])

    def right(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """The share of images that are classified rightly."""
        self.trainer.copyWeightsToHost()
        with torch.no_grad():
            return (self.model.eval()(images).argmax(1) == labels).float().mean().item()


def configured(args: argparse.Namespace, precision: str, seed: int) -> Any:
    """The configuration of the demonstration, with a schedule of the given epochs."""
    opts = ["DATA.DATA_PATH", str(args.data_path), "MODEL.PRECISION", precision, "SEED", str(seed)]
    opts += ["TRAIN.EPOCHS", str(args.epochs), "TRAIN.WARMUP_EPOCHS", "1", "MODEL.NUM_CLASSES", "10"]
    return get_config("SWIN_DEMO", opts)


def learner(config: Any, kind: Type[SwinClassifier], updates: int) -> Learner:
    """A model with the weights of the configured seed, and what trains it."""
    torch.manual_seed(config.SEED)
    model = kind(config, config.MODEL.NUM_CLASSES).train()
    optimizer = build_optimizer(config, model, ALONE)
    schedule = build_scheduler(config, optimizer, updates, ALONE)
    trainer = accelerator.poptorch().trainingModel(model, training_options(config, ALONE), optimizer)
    return Learner(model, trainer, optimizer, schedule)


def curves(args: argparse.Namespace, seed: int) -> Tuple[Dict[str, List[float]], Dict[str, float]]:
    """The mean loss of each epoch, and the final accuracy, of each variant."""
    config = configured(args, "32.32", seed)
    loader = build_loader(config, training_options(config, ALONE), build_dataset(config, True), training=True)
    updates = len(loader)
    learners = {
        name: learner(configured(args, precision, seed), kind, updates) for name, (precision, kind) in VARIANTS.items()
    }
    losses: Dict[str, List[float]] = collections.defaultdict(list)
    for epoch in range(args.epochs):
        found: Dict[str, List[float]] = collections.defaultdict(list)
        for step, (images, labels) in enumerate(loader):
            for name, each in learners.items():
                found[name].append(each.step(epoch * updates + step, images, labels))
        for name, values in found.items():
            losses[name].append(statistics.fmean(values))
    held_out = build_loader(config, inference_options(config, ALONE), build_dataset(config, False), training=False)
    batches = [(images, labels) for images, labels in held_out]
    images, labels = (torch.cat(parts) for parts in zip(*batches))
    known = labels >= 0  # without the rows that fill the last batch
    right = {name: each.right(images[known], labels[known]) for name, each in learners.items()}
    return losses, right


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3f} [{min(values):.3f} {max(values):.3f}]"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Prints the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=Path, required=True, help="from python -m dataset.prepare digits")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args(argv)
    accelerator.select("cpu")
    torch.set_num_threads(1)
    found = [curves(args, seed) for seed in range(args.seeds)]
    others = [name for name in VARIANTS if name != "float32"]
    print("epoch | float32 | " + " | ".join(f"{name} - float32" for name in others))
    for epoch in range(args.epochs):
        exact = [losses["float32"][epoch] for losses, _ in found]
        above = [spread([losses[name][epoch] - losses["float32"][epoch] for losses, _ in found]) for name in others]
        print(f"{epoch + 1} | {spread(exact)} | " + " | ".join(above))
    print("right | " + " | ".join(f"{name} {spread([right[name] for _, right in found])}" for name in VARIANTS))


if __name__ == "__main__":
    main()
