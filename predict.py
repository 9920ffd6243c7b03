# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Predicts the classes of images with the weights of a checkpoint.

python predict.py --checkpoint ./output/swin_tiny_224/best.pth photo.jpg ./more_photos

Predictions go to standard output, or to --output; the log goes to standard error.
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

    # torch, torchvision and timm take seconds to import; --help and invalid command lines do not wait for them.
    import accelerator
    from training import processes
    from training.compiling import errors_refused
    from training.evaluation import configured_weights
    from training.prediction_files import Destination, write_predictions

    path = Path(args.checkpoint)
    config, state = configured_weights(args, path)
    accelerator.select(args.device)
    files = [Path(name) if name else None for name in (args.output, args.features, args.attention)]
    with processes.joined(config) as launch, errors_refused("the device failed"):
        with console_log(is_leader=False, bars=launch.is_leader, stream=sys.stderr):
            write_predictions(config, path, state, args.images, args.top, launch, Destination(args.format, *files))


if __name__ == "__main__":
    sys.exit(run_command(main))
