# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The training step of train_swin.py beside that of its peers and the matrix products alone, on one CPU thread.

    python -m benchmarks.train_step [--batch 16] [--official ../Swin-Transformer] [--cfg SWIN_BASE] [--compile]

All run in one process and take turns, so that whatever else the machine does hits all. Ours is what train_swin.py
runs: poptorch_host with AdamW and clipping. A peer's step is forward, loss, backward, clipping and AdamW. "tuned" has
the fused AdamW, and PyTorch's float32 matmul precision is ours: "medium" where that costs no accuracy. bfloat16 is
autocast. "compiled" is the same under torch.compile, as is ours with TRAIN.COMPILE. Evaluation is the forward pass. The
bound is the time of the matrix products of the ordinary model's step alone, each on tensors of its own shapes, at our
precision. Printed are the median and the range over rounds: of the CPU time of each over ours (above 1 ours is faster),
and of the bound over ours (the share of the bound; work that is left out raises it).

`--memory` prints the peak memory of a training step of each instead, measured in a process of its own.
"""

import argparse
import collections
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import accelerator
from benchmarks.peers import peers
from common.launch import Launch
from config import get_config
from models.build import build_pipeline
from models.swin_transformer import SwinTransformer
from optimizer import build_optimizer
from options import inference_options, training_options

Step = Callable[[], Any]
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
PRECISIONS = {"float32": "32.32", "bfloat16": "mix"}
PEERS = ("timm", "torchvision", "transformers", "official")
CLIP = 5.0


def configured(cfg: str, dtype: str, batch: int, use_checkpoint: bool = False, compiled: bool = False) -> Any:
    """The configuration of our step: one micro-batch, and one stage."""
    opts = ["MODEL.PRECISION", PRECISIONS[dtype], "DATA.BATCH_SIZE", str(batch), "TEST.BATCH_SIZE", str(batch)]
    opts += ["TRAIN.ACCUMULATION_STEPS", "1", "IPU.REPLICAS", "1", "MODEL.NUM_CLASSES", "1000"]
    opts += ["MODEL.LABEL_SMOOTHING", "0.0", "TRAIN.CLIP_GRAD", str(CLIP), "IPU.IPUS_PER_REPLICA", "1"]
    opts += ["TRAIN.USE_CHECKPOINT", str(use_checkpoint), "TRAIN.COMPILE", str(compiled)]
    opts += ["IPU.LAYERS_PER_IPU", str([sum(depths(cfg))])]
    return get_config(cfg, opts)


def depths(cfg: str) -> List[int]:
    """The numbers of blocks of a named configuration."""
    return list(get_config(cfg).MODEL.SWIN.DEPTHS)


def our_training(config: Any, images: Tensor, labels: Tensor) -> Step:
    """A step as train_swin.py runs it."""
    launch = Launch(0, 1, 1, 1)
    model = build_pipeline(config).train()
    optimizer = build_optimizer(config, model, launch)
    trainer = accelerator.poptorch().trainingModel(model, training_options(config, launch), optimizer)

    def step() -> None:
        trainer.setOptimizer(optimizer)
        trainer(images, labels)

    return step


def our_evaluation(config: Any, images: Tensor) -> Step:
    """A call as validate.py makes it."""
    model = build_pipeline(config, training=False).eval()
    validator = accelerator.poptorch().inferenceModel(model, inference_options(config, Launch(0, 1, 1, 1)))
    return lambda: validator(images)


def peer_training(model: nn.Module, images: Tensor, labels: Tensor, dtype: str, tuned: bool) -> Step:
    """A step as one writes it in PyTorch."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=tuned or None)

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = nn.functional.cross_entropy(logits_of(model(images)).float(), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


def peer_evaluation(model: nn.Module, images: Tensor, dtype: str) -> Step:
    """The forward pass."""
    model.eval()

    def step() -> None:
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            model(images)

    return step


def at(precision: str, step: Step) -> Step:
    """The step with PyTorch's precision of float32 products."""

    def run() -> None:
        torch.set_float32_matmul_precision(precision)
        step()

    return run


def logits_of(output: Any) -> Tensor:
    """The logits, which transformers returns in a record."""
    return output if isinstance(output, Tensor) else output.logits


class Products(TorchDispatchMode):
    """Counts the matrix products that run under it, by operation and form of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Dict[Tuple[Any, ...], int] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in PRODUCTS:
            forms = tuple((tuple(x.shape), x.stride(), x.dtype) for x in args)
            self.counts[(func, forms)] += 1
        return func(*args, **(kwargs or {}))


def products_alone(cfg: str, images: Tensor, labels: Tensor, dtype: str, training: bool) -> Step:
    """All matrix products of a step of the ordinary model, and nothing else."""
    swin = get_config(cfg).MODEL.SWIN
    model = SwinTransformer(embed_dim=swin.EMBED_DIM, depths=swin.DEPTHS, num_heads=swin.NUM_HEADS).train(training)
    with Products() as products, torch.set_grad_enabled(training):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
        if training:
            loss.backward()
    calls = []
    for (func, forms), count in products.counts.items():
        arguments = [torch.empty_strided(shape, stride, dtype=kind).normal_() for shape, stride, kind in forms]
        calls.append((func, arguments, func(*arguments), count))

    def step() -> None:
        for func, arguments, result, count in calls:
            for _ in range(count):
                torch.ops.aten.__getattr__(func.overloadpacket.__name__).out(*arguments, out=result)

    return step


def take_turns(steps: Dict[str, Step], rounds: int) -> Dict[str, List[float]]:
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


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]"


def contenders(args: argparse.Namespace, dtype: str, training: bool, images: Tensor, labels: Tensor) -> Dict[str, Step]:
    """The steps to compare, ours and the bound first."""
    config, precision = configured(args.cfg, dtype, args.batch), args.precision
    ours = our_training(config, images, labels) if training else our_evaluation(config, images)
    steps = {
        "ours": at(precision, ours),
        "bound": at(precision, products_alone(args.cfg, images, labels, dtype, training)),
    }
    if args.compile:
        config = configured(args.cfg, dtype, args.batch, compiled=True)
        ours = our_training(config, images, labels) if training else our_evaluation(config, images)
        steps["ours, compiled"] = at(precision, ours)
    for name, model in peers(args.cfg, args.official).items():
        if name not in args.peers:
            continue
        for label in ("default", "tuned", "compiled")[: 2 + args.compile] if name == "timm" else ("tuned",):
            tuned, called = label != "default", torch.compile(model) if label == "compiled" else model
            if training:
                step = peer_training(called, images, labels, dtype, tuned)
            else:
                step = peer_evaluation(called, images, dtype)
            steps[f"{name}, {label}"] = at(precision if tuned else "highest", step)
    return steps


def report(task: str, seconds: Dict[str, List[float]], batch: int) -> None:
    """Prints a line for each contender."""
    own = seconds.pop("ours")
    share = spread([bound / mine for bound, mine in zip(seconds.pop("bound"), own)])
    print(f"{task}: ours {batch / statistics.median(own):.2f} images/s, share of the bound {share}", flush=True)
    for name, values in seconds.items():
        print(f"  {name:<22} {spread([value / mine for value, mine in zip(values, own)])} x ours", flush=True)


def peak_memory(args: argparse.Namespace) -> None:
    """Prints the peak memory of two training steps of one contender, named by args.alone."""
    images, labels = torch.randn(args.batch, 3, 224, 224), torch.randint(0, 1000, (args.batch,))
    dtype, name = args.dtypes[0], args.alone
    if name.startswith("ours"):
        step = our_training(configured(args.cfg, dtype, args.batch, "recomputing" in name), images, labels)
    else:
        step = peer_training(peers(args.cfg, args.official, only=name)[name], images, labels, dtype, tuned=True)
    for _ in range(2):
        step()
    print(f"{name:<22} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB", flush=True)


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="SWIN_TINY", help="named configuration at 224 pixels: SWIN_TINY, SWIN_BASE")
    parser.add_argument("--batch", type=int, default=16, help="images in a step")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each that are counted")
    parser.add_argument("--dtypes", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--tasks", nargs="+", choices=("training", "evaluation"), default=["training", "evaluation"])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help="those that are at hand take part")
    parser.add_argument("--compile", action="store_true", help="add ours and timm under torch.compile, for minutes")
    parser.add_argument("--official", type=Path, help="checkout of the official Swin-Transformer repository")
    parser.add_argument("--memory", action="store_true", help="print peak memory instead of time")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Prints the comparison."""
    args = parse(argv)
    accelerator.select("cpu")
    torch.set_num_threads(1)
    if args.alone:
        peak_memory(args)
        return
    args.precision = torch.get_float32_matmul_precision()  # that `select` found to be best
    print(f"torch {torch.__version__}, timm {timm.__version__}, {args.cfg}, batch {args.batch}, 1 thread", flush=True)
    print(f"float32 products at PyTorch's precision {args.precision!r}", flush=True)
    images, labels = torch.randn(args.batch, 3, 224, 224), torch.randint(0, 1000, (args.batch,))
    present = list(peers(args.cfg, args.official)) if args.memory else []  # the names: models would count below
    for dtype in args.dtypes:
        if args.memory:
            for name in ("ours", "ours, recomputing", *(peer for peer in args.peers if peer in present)):
                given = list(sys.argv[1:] if argv is None else argv)
                command = [sys.executable, "-m", "benchmarks.train_step", *given, "--alone", name, "--dtypes", dtype]
                print(f"{dtype} ", end="", flush=True)
                subprocess.run(command, check=True)
            continue
        for task in args.tasks:
            steps = contenders(args, dtype, task == "training", images, labels)
            report(f"{task} {dtype}", take_turns(steps, args.rounds), args.batch)


if __name__ == "__main__":
    main()
