# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Predicts the classes of images with the weights of a checkpoint.

python predict.py --checkpoint ./output/swin_tiny_224/best.pth photo.jpg ./more_photos
"""

import sys
from pathlib import Path
from typing import Optional, Sequence

from common.command_line import run_command
from common.logs import console_log
from training import arguments


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Entry of predict.py."""
    args = arguments.parse_prediction(argv)

    # torch, torchvision and timm take seconds to import, which --help and invalid command lines do not wait for.
    import accelerator
    from dataset.decode import shown
    from training import processes
    from training.compiling import errors_refused
    from training.evaluation import configured_weights
    from training.prediction import find_images, predict

    path = Path(args.checkpoint)
    config, state = configured_weights(args, path)
    files = find_images(args.images)
    accelerator.select(args.device)
    with processes.joined(config) as launch, console_log(is_leader=False), errors_refused("the device failed"):
        for file, prediction in predict(config, path, state, files, args.top, launch):
            print(f"{shown(file)}: " + "; ".join(f"{name} {probability:.1%}" for name, probability in prediction))


if __name__ == "__main__":
    sys.exit(run_command(main))
