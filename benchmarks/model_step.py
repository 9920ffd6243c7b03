# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Speed of our Swin-T beside timm's, on the CPU.

    python -m benchmarks.model_step --batch 16

Both models run in one process on one thread and take turns, so that whatever else the machine does hits both. A
training step is forward, loss and backward; optimizers are the same for both and left out. A ratio is timm's CPU time
over ours in one round: above 1 ours is faster. Printed are the median and the range of all rounds.
"""

import argparse
import statistics
import time
from typing import Callable, Dict, List, Optional, Sequence

import timm
import torch
from torch import nn

from models.swin_transformer import SwinTransformer

NAME = "swin_tiny_patch4_window7_224"
DROP_PATH = 0.2
MODES = {"highest": ("highest", False), "medium": ("medium", False), "bfloat16": ("highest", True)}  # matmul, autocast


def training_step(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, autocast: bool) -> Callable[[], None]:
    """A function that runs forward, loss and backward once."""
    model.train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def evaluation_step(model: nn.Module, images: torch.Tensor, autocast: bool) -> Callable[[], None]:
    """A function that runs the forward pass once."""
    model.eval()

    def step() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(images)

    return step


def take_turns(steps: Dict[str, Callable[[], None]], rounds: int) -> Dict[str, List[float]]:
    """CPU seconds of each step in each round; a first round that warms caches up is not counted."""
    seconds: Dict[str, List[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            steps[name]()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def report(label: str, seconds: Dict[str, List[float]], batch: int) -> str:
    """One line: images per second of both, and the ratio's median and range."""
    ratios = [peer / own for peer, own in zip(seconds["timm"], seconds["ours"])]
    speeds = {name: batch / statistics.median(values) for name, values in seconds.items()}
    return (
        f"{label:<20} timm {speeds['timm']:6.2f} images/s  ours {speeds['ours']:6.2f} images/s  "
        f"ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
    )


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Prints a line for each precision, training and evaluation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="images in a step")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each model that are counted")
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        default=["highest", "bfloat16"],
        help="float32 with torch's precision of products highest or medium, or bfloat16 autocast",
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    images, labels = torch.randn(args.batch, 3, 224, 224), torch.randint(0, 1000, (args.batch,))
    models = {
        "timm": timm.create_model(NAME, drop_path_rate=DROP_PATH),
        "ours": SwinTransformer(drop_path_rate=DROP_PATH),
    }
    for mode in args.modes:
        precision, autocast = MODES[mode]
        torch.set_float32_matmul_precision(precision)
        for task, make in (("train", training_step), ("eval", evaluation_step)):
            data = (images, labels) if task == "train" else (images,)
            steps = {name: make(model, *data, autocast) for name, model in models.items()}
            print(report(f"{task} {mode}", take_turns(steps, args.rounds), args.batch), flush=True)


if __name__ == "__main__":
    main()
