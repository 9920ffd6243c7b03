# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Validates a checkpoint.

python validate.py --data-path ./data/imagenet1k --checkpoint ./output/swin_tiny_224/best.pth
"""

import sys
from pathlib import Path
from typing import Optional, Sequence

from common.command_line import run_command
from common.logs import console_log
from training import arguments


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Entry of validate.py."""
    args = arguments.parse_validation(argv)

    # torch, torchvision and timm take seconds to import; --help and invalid command lines do not wait for them.
    import accelerator
    from training import processes
    from training.compiling import errors_refused
    from training.evaluation import configured_weights, validate_weights
    from training.tables import Tables

    path = Path(args.checkpoint)
    config, state = configured_weights(args, path)
    accelerator.select(args.device)
    with processes.joined(config) as launch, console_log(launch.is_leader), errors_refused("the device failed"):
        arguments.log_keys_without_meaning(args)
        accelerator.choose_threads()
        files = (args.per_class, args.confusion_matrix, args.predictions)
        tables = Tables(*(Path(file) if file else None for file in files))
        validate_weights(config, path, state, launch, args.per_class is not None, tables)


if __name__ == "__main__":
    sys.exit(run_command(main))
