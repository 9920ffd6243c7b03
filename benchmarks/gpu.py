# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Training step and evaluation on a GPU, beside timm's, as a table and a JSON file.

    python -m benchmarks.gpu [--cfg SWIN_TINY] [--batch 128] [--json gpu.json] [--no-compile]

Ours is what train_swin.py --device gpu runs: images come from pinned memory, as numbers or as bytes that the GPU
normalises, and the results of a step are read when the next one has begun. timm's is forward, loss, backward, clipping
and the fused AdamW on images that are on the GPU already: as it is, with channels last, and compiled. All take turns in
one process, a few steps at a time. float32 is measured with PyTorch's precision of products "highest" and "high" (TF32,
also of convolutions), bfloat16 under autocast. A ratio is the time of the other over ours in one round: above 1 ours is
faster. Memory is what a step takes of PyTorch's allocator beside weights and states; `waits` counts the operations of
our training step at which PyTorch sees the host wait for the GPU, and `tf32_error` is the largest error of a product
with and without TF32.

Without a GPU nothing is measured, which is no error. `--device cpu` runs the same on a CPU, to try the program.
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import timm
import torch
from torch import Tensor, nn

import accelerator
from benchmarks.peers import peers
from benchmarks.train_step import Step, configured, peer_evaluation, peer_training
from common.launch import Launch
from models.build import build_pipeline
from optimizer import build_optimizer
from options import inference_options, training_options

MODES = {"float32": ("float32", "highest"), "tf32": ("float32", "high"), "bfloat16": ("bfloat16", "highest")}


def wait(device: str) -> None:
    """Returns when the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(step: Step, steps: int, device: str) -> float:
    """Seconds of a step, the mean over some that follow each other."""
    wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    return (time.perf_counter() - start) / steps


def peak(step: Step, device: str) -> Optional[int]:
    """The most bytes that a step takes of a GPU beside what all contenders hold before it; None on a CPU."""
    if device != "cuda":
        return None
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held


def waits(begin: Callable[[], Any], device: str) -> Optional[int]:
    """How often the host waits for the GPU while it begins a step, by PyTorch's own count; None on a CPU."""
    if device != "cuda":
        return None
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            begin()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in found)


def late(begin: Callable[[], Callable[[], Any]]) -> Step:
    """A step that begins a call, then reads the one before it, as training and validation do on a GPU."""
    begun: List[Callable[[], Any]] = []

    def step() -> None:
        begun.append(begin())
        if len(begun) > 1:
            begun.pop(0)()

    return step


def our_training(config: Any, images: Tensor, labels: Tensor) -> Step:
    """A step as train_swin.py runs it."""
    launch = Launch(0, 1, 1, 1)
    model = build_pipeline(config).train()
    optimizer = build_optimizer(config, model, launch)
    trainer = accelerator.poptorch().trainingModel(model, training_options(config, launch), optimizer)

    def begin() -> Callable[[], Any]:
        trainer.setOptimizer(optimizer)
        return accelerator.start(trainer, images, labels)

    return late(begin)


def our_evaluation(config: Any, images: Tensor, _: Tensor) -> Step:
    """A call as validate.py makes it."""
    model = build_pipeline(config, training=False).eval()
    validator = accelerator.poptorch().inferenceModel(model, inference_options(config, Launch(0, 1, 1, 1)))
    return late(lambda: accelerator.start(validator, images))


def contenders(args: argparse.Namespace, dtype: str, training: bool, batch: Sequence[Tensor]) -> Dict[str, Step]:
    """All steps of a mode, ours first."""
    pixels, images, labels = batch
    make = our_training if training else our_evaluation
    plain = configured(args.cfg, dtype, args.batch)
    steps = {"ours": make(plain, images, labels), "ours, bytes": make(plain, pixels, labels)}
    if args.compile:
        steps["ours, compiled"] = make(configured(args.cfg, dtype, args.batch, compiled=True), images, labels)
    inputs, classes = images.to(args.device), labels.to(args.device)
    for label in ("timm", "timm, channels last", "timm, compiled")[: 2 + args.compile]:
        model: nn.Module = peers(args.cfg, only="timm")["timm"].to(args.device)
        given = inputs
        if label.endswith("last"):
            model, given = model.to(memory_format=torch.channels_last), inputs.to(memory_format=torch.channels_last)
        if label.endswith("compiled"):
            model = torch.compile(model)
        tuned = args.device == "cuda"
        steps[label] = (
            peer_training(model, given, classes, dtype, tuned) if training else peer_evaluation(model, given, dtype)
        )
    return steps


def compare(steps: Dict[str, Step], args: argparse.Namespace) -> Dict[str, Any]:
    """Speed of all over ours, in turns that begin with another one each, after three steps each that warm up."""
    for step in steps.values():
        seconds(step, 3, args.device)
    found: Dict[str, List[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(args.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(seconds(steps[name], args.steps, args.device))
    rows = {}
    for name, values in found.items():
        ratios = [value / own for value, own in zip(values, found["ours"])]
        rows[name] = {
            "images_per_second": args.batch / statistics.median(values),
            "over_ours": {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]},
            "peak_bytes": peak(steps[name], args.device),
        }
    return rows


def measure(args: argparse.Namespace, batch: Sequence[Tensor]) -> Dict[str, Any]:
    """All modes, training and evaluation."""
    found: Dict[str, Any] = {}
    for mode, (dtype, precision) in MODES.items():
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision == "high"
        for task in ("training", "evaluation"):
            steps = contenders(args, dtype, task == "training", batch)
            row = found[f"{task} {mode}"] = {"rows": compare(steps, args)}
            if task == "training":
                row["waits"] = waits(steps["ours"], args.device)
            show(f"{task} {mode}", row)
            if args.compile:
                torch._dynamo.reset()  # which keeps compiled models, and refuses to compile more than a few
    return found


def show(title: str, row: Dict[str, Any]) -> None:
    """Prints the rows of one mode and task."""
    print(f"{title}; waits: {row.get('waits')}" if "waits" in row else title)
    for name, values in row["rows"].items():
        ratio, memory = values["over_ours"], values["peak_bytes"]
        low, high = ratio["range"]
        held = "" if memory is None else f", {memory / 1e9:.2f} GB"
        speed = f"{values['images_per_second']:9.1f} images/s, {ratio['median']:.2f} [{low:.2f}-{high:.2f}] x ours"
        print(f"  {name:<20} {speed}{held}", flush=True)


def described(args: argparse.Namespace) -> Dict[str, Any]:
    """What the numbers depend on."""
    place: Dict[str, Any] = {"device": "cpu"}
    if args.device == "cuda":
        place = {
            "device": torch.cuda.get_device_name(),
            "capability": list(torch.cuda.get_device_capability()),
            "bytes": torch.cuda.get_device_properties(0).total_memory,
            "tf32_error": {mode: accelerator.product_error(mode, "cuda") for mode in ("highest", "high")},
        }
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "timm": timm.__version__}
    return {**place, "versions": versions, "cfg": args.cfg, "batch": args.batch, "steps": args.steps}


def parse(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="SWIN_TINY", help="named configuration at 224 pixels")
    parser.add_argument("--batch", type=int, default=128, help="images in a step")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each that are counted")
    parser.add_argument("--steps", type=int, default=5, help="steps in a turn")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="file to write")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Prints the comparison and writes it."""
    args = parse(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: nothing measured")
        return
    accelerator.select("gpu" if args.device == "cuda" else "cpu")
    pixels = torch.randint(0, 256, (args.batch, 3, 224, 224), dtype=torch.uint8)
    batch = [pixels, torch.randn(args.batch, 3, 224, 224), torch.randint(0, 1000, (args.batch,))]
    if args.device == "cuda":
        batch = [tensor.pin_memory() for tensor in batch]
    result = {**described(args), "results": measure(args, batch)}
    args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
