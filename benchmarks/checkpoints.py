# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Measures how long a training step waits for a checkpoint, and the time to verify and load a file.

The state is a configuration's model with the two moments of AdamW (SWIN_BASE: 1.06 GB), in float32. Each round times
foreground and background saving in turn; a ratio is foreground over background.

    python -m benchmarks.checkpoints [--cfg SWIN_BASE] [--folder FOLDER] [--rounds 3]
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import torch

from common.archive import read_archive
from config import get_config
from models.build import build_pipeline
from planning.geometry import configured_classes
from training import checkpoint
from training.progress import Progress
from training.saving import Saver
from training.status import Status


def state_of(name: str) -> Dict[str, Any]:
    """Returns the contents of a checkpoint of a named configuration, with random moments."""
    config = get_config(name)
    model = dict(build_pipeline(config, configured_classes(config)).state_dict())
    moments = {f"Accl{index}___{key}": torch.randn(value.shape) for key, value in model.items() for index in (1, 2)}
    return {
        "model": model,
        "optimizer": {"ipu_state": moments, "ipu_param": {}, "state": {}, "param_groups": [{"lr": 0.1, "params": []}]},
        "rng_states": [[0]],
        "progress": dataclasses.asdict(Progress()),
        "config": config.dump(),
        "classes": ["a"],
        "training_images": 1,
    }


def seconds(call: Callable[[], Any]) -> float:
    """Returns the wall time of a call in seconds."""
    start = time.monotonic()
    call()
    return time.monotonic() - start


def show(name: str, unit: str, figures: List[float]) -> None:
    """Prints the median and range of measured values."""
    print(f"{name}: {statistics.median(figures):.2f} [{min(figures):.2f}-{max(figures):.2f}] {unit}")


def main() -> None:
    """Prints one line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", default="SWIN_BASE", help="named configuration")
    parser.add_argument("--folder", default=None, help="where to write (default: the temporary folder of the system)")
    parser.add_argument("--rounds", type=int, default=3, help="number of measured rounds")
    arguments = parser.parse_args()
    state = state_of(arguments.cfg)
    waits, digests = [], []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        path = folder / checkpoint.LAST
        with Saver(folder, Status(folder, get_config(arguments.cfg)), keep=0).running() as saver:
            for _ in range(arguments.rounds + 1):  # the first warms up
                before = seconds(lambda: checkpoint.save(folder, state, is_best=False))
                waits.append((before, seconds(lambda: saver.start(state, is_best=False))))
                saver.finish()
                plain = seconds(lambda: torch.load(path, weights_only=True))
                digests.append((plain, seconds(lambda: read_archive(path))))
        gigabytes = path.stat().st_size / 1e9
    print(f"{arguments.cfg}: a checkpoint of {gigabytes:.2f} GB")
    show("a step waits, saved in the foreground", "s", [before for before, _ in waits[1:]])
    show("a step waits, saved in the background", "s", [after for _, after in waits[1:]])
    show("ratio", "times shorter", [before / after for before, after in waits[1:]])
    show("torch.load, nothing verified", "s/GB", [plain / gigabytes for plain, _ in digests[1:]])
    show("digest verified and loaded", "s/GB", [ours / gigabytes for _, ours in digests[1:]])


if __name__ == "__main__":
    main()
