# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Losslessly rewrites JPEGs with restart markers, using libjpeg-turbo's `jpegtran`, for dataset/jpeg_parts.py."""

import shutil
import subprocess
from typing import Optional

import numpy as np

from common.errors import EXIT_DATA, Refusal
from dataset.decode import MAX_FILE_BYTES, BadImage, decode
from dataset.jpeg_parts import read_header

TOOL = "jpegtran"
# A marker after every MCU: with longer intervals, more would be read than a crop needs. Optimised Huffman tables save
# more bytes than the markers take, except in small pictures.
ARGUMENTS = ("-copy", "all", "-optimize", "-restart", "1B")
SECONDS = 120  # per picture; a megapixel takes a few hundredths


def find_tool() -> str:
    """The path of jpegtran; raises Refusal if it is not installed."""
    path = shutil.which(TOOL)
    if path is None:
        raise Refusal(
            f"--restart-markers needs {TOOL}: install libjpeg-turbo-progs (apt), libjpeg-turbo-utils (dnf) or "
            "jpeg-turbo (brew), or leave the flag out",
            EXIT_DATA,
        )
    return path


def with_restart_markers(data: bytes, tool: str) -> Optional[bytes]:
    """A JPEG with restart markers that decodes to the same pixels; None if it cannot be rewritten.

    Args:
        tool: from `find_tool`.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        pixels = np.asarray(decode(data))
        done = subprocess.run([tool, *ARGUMENTS], input=data, capture_output=True, timeout=SECONDS)
        if done.returncode or not 0 < len(done.stdout) <= MAX_FILE_BYTES:
            return None
        header = read_header(done.stdout)
        if header is None or not header.interval:
            return None
        return done.stdout if np.array_equal(np.asarray(decode(done.stdout)), pixels) else None
    except (BadImage, subprocess.TimeoutExpired):
        return None
