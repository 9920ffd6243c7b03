# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Training step and evaluation on a GPU, beside timm's, as a table and a JSON file.

    python -m benchmarks.gpu [--batch 128] [--json gpu.json]

Ours is what train_swin.py --device gpu runs, timm's is forward, loss, backward, clipping and the fused AdamW; both take
turns in one process. float32 is measured with PyTorch's precision of products "highest" and "high" (TF32), bfloat16
under autocast. A ratio is timm's time over ours in one round: above 1 ours is faster. Peak memory is that of PyTorch's
allocator. Without a GPU nothing is measured, which is no error.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor

import accelerator
from benchmarks.peers import peers
from benchmarks.train_step import (
    Step,
    at,
    configured,
    our_evaluation,
    our_training,
    peer_evaluation,
    peer_training,
    spread,
)

MODES = {"float32": ("float32", "highest"), "tf32": ("float32", "high"), "bfloat16": ("bfloat16", "highest")}


def timed(step: Step) -> float:
    """Seconds of one step, to the end of its work on the GPU."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(step: Step) -> int:
    """The most bytes that the allocator has given out during a step."""
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def compare(ours: Step, timms: Step, rounds: int, batch: int) -> Dict[str, Any]:
    """Speed and memory of both, after three steps each that warm up."""
    for step in (ours, timms) * 3:
        step()
    seconds: Dict[str, List[float]] = {"ours": [], "timm": []}
    for turn in range(rounds):
        for name, step in (("ours", ours), ("timm", timms))[:: 1 if turn % 2 else -1]:
            seconds[name].append(timed(step))
    return {
        "images_per_second": {name: batch / statistics.median(values) for name, values in seconds.items()},
        "ratio": spread([peer / own for peer, own in zip(seconds["timm"], seconds["ours"])]),
        "peak_bytes": {"ours": peak(ours), "timm": peak(timms)},
    }


def measure(args: argparse.Namespace, images: Tensor, labels: Tensor) -> Dict[str, Any]:
    """All modes, training and evaluation."""
    rows = {}
    on_gpu, classes = images.cuda(), labels.cuda()
    for mode, (dtype, precision) in MODES.items():
        config, peer = configured(args.cfg, dtype, args.batch), peers(args.cfg, only="timm")["timm"].cuda()
        pairs = {
            "training": (our_training(config, images, labels), peer_training(peer, on_gpu, classes, dtype, True)),
            "evaluation": (our_evaluation(config, images), peer_evaluation(peer, on_gpu, dtype)),
        }
        for task, steps in pairs.items():
            peer.train(task == "training")
            row = rows[f"{task} {mode}"] = compare(*(at(precision, step) for step in steps), args.rounds, args.batch)
            print(f"{task} {mode}: {row}", flush=True)
    return rows


def parse(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="SWIN_TINY", help="named configuration at 224 pixels")
    parser.add_argument("--batch", type=int, default=128, help="images in a step")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each that are counted")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="file to write")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Prints the comparison and writes it."""
    args = parse(argv)
    if not torch.cuda.is_available():
        print("no GPU: nothing measured")
        return
    accelerator.select("gpu")
    images, labels = torch.randn(args.batch, 3, 224, 224), torch.randint(0, 1000, (args.batch,))
    result = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cfg": args.cfg,
        "batch": args.batch,
        "rows": measure(args, images.pin_memory(), labels),
    }
    args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
