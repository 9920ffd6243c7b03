# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Measures the speedup of folding micro-batches into one forward and backward pass in poptorch_host.

For each model and fold size, prints the CPU time of a training call relative to the unfolded call, interleaved in one
process. The fold size that the package chooses by default is marked *.

    python -m benchmarks.poptorch_host_folding [--rounds 7] [--threads 1] [--models mlp swin]
"""

import argparse
import statistics
import time
from typing import Callable, Dict, List, Tuple

import poptorch_host as poptorch
import torch
from poptorch_host import host

from benchmarks.poptorch_host_overhead import Encoder, WithLoss, mlp

Batch = Tuple[torch.Tensor, torch.Tensor]


def swin_tiny() -> torch.nn.Module:
    """timm's Swin-T at 224 pixels."""
    import timm  # used by this case only

    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=10)


# Name: model, sample shape, micro-batch size, accumulation steps, fold sizes.
CASES: Dict[str, Tuple[Callable[[], torch.nn.Module], Tuple[int, ...], int, int, List[int]]] = {
    "mlp": (mlp, (784,), 4, 64, [4, 16, 64]),
    "wide mlp": (lambda: mlp(2048), (784,), 16, 16, [2, 4, 16]),
    "small transformer": (lambda: Encoder(64), (16, 64), 4, 16, [2, 4, 16]),
    "transformer": (Encoder, (32, 128), 4, 16, [2, 4, 16]),
    "large transformer": (lambda: Encoder(384, 4), (64, 384), 8, 8, [2, 4, 8]),
    "swin": (swin_tiny, (3, 224, 224), 4, 4, [2, 4]),
}


def build(name: str) -> Tuple[Dict[object, poptorch.PoplarExecutor], Batch]:
    """Returns an executor for each fold size, including 1 and "auto", and a batch for all of them."""
    make, shape, micro_batch, accumulation, folds = CASES[name]
    executors: Dict[object, poptorch.PoplarExecutor] = {}
    batch = (torch.randn(micro_batch * accumulation, *shape), torch.randint(0, 10, (micro_batch * accumulation,)))
    for fold in [1, "auto", *folds]:
        torch.manual_seed(0)
        model = WithLoss(make())
        options = poptorch.Options().showCompilationProgressBar(False)
        options.Training.gradientAccumulation(accumulation)
        host.configure(fold=fold)
        executors[fold] = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=1e-3))
        executors[fold].compile(*batch)
    return executors, batch


def measure(executors: Dict[object, poptorch.PoplarExecutor], batch: Batch, rounds: int) -> Dict[object, List[float]]:
    """Returns the CPU time relative to the unfolded call, one ratio per round."""
    ratios: Dict[object, List[float]] = {fold: [] for fold in executors if fold != 1}
    for number in range(rounds + 1):
        seconds = {}
        for fold, executor in executors.items():
            start = time.process_time()
            executor(*batch)
            seconds[fold] = time.process_time() - start
        if number:  # the first round warms up
            for fold, found in ratios.items():
                found.append(seconds[fold] / seconds[1])
    return ratios


def main() -> None:
    """Prints the median and range of the ratios for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, CPU time relative to one micro-batch at a time")
    for name in arguments.models:
        executors, batch = build(name)
        per_micro_batch = executors[1].compiled.activation_bytes / 2**20
        print(f"{name}, micro-batch {CASES[name][2]} x {CASES[name][3]}, {per_micro_batch:.2f} MiB each:")
        for fold, found in measure(executors, batch, arguments.rounds).items():
            chosen = f"* (chose {executors[fold]._program.engine.fold})" if fold == "auto" else ""
            print(f"  {fold:>5}{chosen}: {statistics.median(found):.3f} [{min(found):.3f}-{max(found):.3f}]")


if __name__ == "__main__":
    main()
