# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The C code of the input pipeline."""

import ctypes
import functools
from pathlib import Path
from typing import Optional

from common import compiled
from common.logs import logger
from utils import one_line

PARTS = ("pixels.c", "resize.c", "levels.c", "jpeg.c", "huffman.c", "samples.c", "baseline.c")
SOURCES = [Path(__file__).with_name(name) for name in PARTS]
HEADERS = [Path(__file__).with_name(name) for name in ("pixels.h", "jpeg.h", "samples.h")]
FLAGS = ["-ffp-contract=off", "-Wno-psabi", "-lm"]
# Argument types of the functions called from Python; see common/compiled.py.
ARGUMENTS = {
    "resize": "pliiiiiiiiiiiiiiip",
    "mirror": "piip",
    "affine": "piipipp",
    "histogram": "plp",
    "look_up": "plpp",
    "sum_of_greys": "plp",
    "saturate": "plfp",
    "sharpen": "piifp",
    "mapped_planes_of_bytes": "plpp",
    "mapped_planes_of_floats": "plpp",
    "planes_of_bytes": "plp",
    "planes_of_floats": "plppp",
    "mix_bytes": "pplff",
    "mix_floats": "pplff",
    "exchange": "pplllll",
    "to_levels": "pllffpl",
    "describe_jpeg": "plp",
    "decode_part": "plllllp",
}


@functools.lru_cache(maxsize=None)
def library() -> Optional[ctypes.CDLL]:
    """The compiled code of SOURCES, or None if it cannot be built or would not help; the log says why."""
    try:
        return compiled.load([*SOURCES, *HEADERS], FLAGS, ARGUMENTS)
    except compiled.FAILURES as error:
        logger.info(
            "pixels.c cannot be compiled (%s): Pillow augments instead, with the same result at half the speed. If "
            "the processor has AVX2, set CC to a C compiler",
            one_line(error),
        )
        return None
