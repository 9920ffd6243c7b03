# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Compares float16 products on a CPU: PyTorch's kernels against poptorch_host, which computes them in float32.

Times forward and backward of a linear layer, attention scores and two convolutions, at the sizes of Swin-T and small
convolutional networks. The first ratio is PyTorch's CPU time over ours in one round; above 1, ours is faster. The
second is our time with float16 partial sums (Precision.setPartialsType) over that without.

    python -m benchmarks.half_products [--rounds 5]
"""

import argparse
import statistics
from typing import Callable, Dict, List, Tuple

import poptorch_host as poptorch
import torch
from poptorch_host.precision.half import HalfArithmetic
from poptorch_host.precision.partials import HalfPartials
from torch.nn import functional

from benchmarks.poptorch_host_overhead import ratios

Product = Callable[..., torch.Tensor]

CASES: Dict[str, Tuple[Product, List[Tuple[int, ...]]]] = {
    "linear 784 x 384 x 1536": (functional.linear, [(784, 384), (1536, 384), (1536,)]),
    "scores of 192 windows of 49 x 32": (lambda q, k: q @ k.transpose(1, 2), [(192, 49, 32), (192, 49, 32)]),
    "patches, 2 x 3 x 224 x 224 by 4 x 4": (
        lambda x, w: functional.conv2d(x, w, stride=4),
        [(2, 3, 224, 224), (96, 3, 4, 4)],
    ),
    "convolution, 2 x 32 x 32 x 32 by 3 x 3": (
        lambda x, w: functional.conv2d(x, w, padding=1),
        [(2, 32, 32, 32), (32, 32, 3, 3)],
    ),
}


def step(product: Product, shapes: List[Tuple[int, ...]]) -> Callable[[], None]:
    """Returns a function that computes the product and its gradients once, in float16."""
    operands = [torch.randn(shape).half().requires_grad_() for shape in shapes]

    def run() -> None:
        result = product(*operands)
        torch.autograd.grad(result, operands, torch.ones_like(result))

    return run


def within(arithmetic: HalfArithmetic, run: Callable[[], None]) -> Callable[[], None]:
    """Returns a function that runs under a device's arithmetic."""

    def ours() -> None:
        with arithmetic:
            run()

    return ours


def spread(found: List[float]) -> str:
    """Median and range."""
    return f"{statistics.median(found):.1f} [{min(found):.1f}-{max(found):.1f}]"


def main() -> None:
    """Prints the median and range of the ratios for each product."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="number of measured rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    half = poptorch.Options()
    half.Precision.setPartialsType(torch.half)
    in_float, in_half = (HalfArithmetic(HalfPartials(options)) for options in (poptorch.Options(), half))
    for name, (product, shapes) in CASES.items():
        run = step(product, shapes)
        ours = within(in_float, run)
        kernels = ratios(run, ours, arguments.rounds, steps=3)
        partials = ratios(within(in_half, run), ours, arguments.rounds, steps=3)
        print(f"{name}: {spread(kernels)}; float16 partial sums {spread(partials)}")


if __name__ == "__main__":
    main()
