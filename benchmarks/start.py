# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Seconds from the command to the first weight update of the demonstration.

    python -m benchmarks.start --data-path ./data/digits

Each round starts new processes that take turns: train_swin.py, until it logs its first step, and an interpreter that
imports torch, torchvision and timm and ends, which any program with timm waits for. Printed are median and range of
both, and of their ratio. An uncounted first round fills the caches of the disk.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

IMPORTS = "import torch, torchvision, timm"
ENTRY = Path(__file__).resolve().parents[1] / "train_swin.py"


def first_step(data_path: Path) -> None:
    """Runs the demonstration until its first step is logged."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ENTRY), "--cfg", "SWIN_DEMO", "--data-path", str(data_path), "--output", folder]
        command += ["--device", "cpu", "--training-steps", "2", "--opts", "LOG_INTERVAL", "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if "step: 1/" in line:
                    process.kill()
                    return
    raise RuntimeError(f"train_swin.py made no step:\n{''.join(lines)}")


def imports() -> None:
    """Imports the libraries alone."""
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)


def seconds(task: Callable[[], None]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}-{max(values):.2f}]"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=Path, required=True, help="from python -m dataset.prepare digits")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each that are counted")
    args = parser.parse_args(argv)
    tasks: Dict[str, Callable[[], None]] = {"first step": lambda: first_step(args.data_path), IMPORTS: imports}
    found: Dict[str, List[float]] = {name: [] for name in tasks}
    for turn in range(args.rounds + 1):
        for name, task in tasks.items():
            taken = seconds(task)
            if turn:
                found[name].append(taken)
    for name, values in found.items():
        print(f"{name}: {spread(values)} s")
    print(f"ratio: {spread([ours / alone for ours, alone in zip(*found.values())])}")


if __name__ == "__main__":
    main()
