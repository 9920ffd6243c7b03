# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The command of the package."""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from program_data import MAKERS

    parser = argparse.ArgumentParser(
        prog="program_data", description="Makes a small random data set or model where a program expects a real one."
    )
    parser.add_argument("maker", choices=sorted(MAKERS), help="what is made; see its function for its arguments")
    parser.add_argument("arguments", nargs="*", help="strings; paths are relative to the current folder")
    args = parser.parse_args()
    MAKERS[args.maker](*args.arguments)
