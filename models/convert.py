# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Converts weights to the format of another program.

python -m models.convert ./output/swin_tiny_224/best.pth ./swin-tiny --to huggingface
"""

import argparse
import sys
from pathlib import Path
from typing import Optional, Sequence

from common.command_line import CommandLine, run_command
from common.errors import Refusal
from common.logs import console_log
from common.results import check_free
from config import get_config

FORMATS = ("microsoft", "timm", "huggingface", "safetensors", "onnx")


def parse(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """The command line."""
    parser = CommandLine(
        prog="python -m models.convert",
        description="Converts weights from this program, Microsoft, timm, torchvision or Hugging Face.",
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="IN", help="checkpoint, file of weights, or folder of Hugging Face or timm")
    parser.add_argument("target", metavar="OUT", help="new file, or new folder for huggingface and timm")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format of OUT")
    parser.add_argument("--cfg", metavar="NAME", help="name in configs/configs.yaml, or a YAML file, if IN has none")
    parser.add_argument(
        "--optimizer", action="store_true", help="include the optimizer state in PopTorch's form (--to microsoft)"
    )
    parser.add_argument("--use-ema", action="store_true", help="use the averaged weights (EMA) of IN")
    args = parser.parse(argv)
    if args.optimizer and args.to != "microsoft":
        raise Refusal(f"--optimizer: the format {args.to} cannot hold optimizer state: leave the flag out")
    return args


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Entry of models.convert."""
    args = parse(argv)
    source, target = Path(args.source), Path(args.target)
    check_free(target)
    if args.cfg is not None:
        get_config(args.cfg)  # refuses an invalid one before the weights are read

    # torch and timm take seconds to import; --help and invalid command lines do not wait for them.
    from models import exporting

    with console_log(is_leader=True):
        leaving = exporting.read(source, args.cfg, args.optimizer, args.use_ema)
        exporting.write(leaving, args.to, target)
    print(f"{target}: {len(leaving.weights)} tensors for {args.to}")


if __name__ == "__main__":
    sys.exit(run_command(main))
