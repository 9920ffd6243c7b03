# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Builds and loads the C code of the input pipeline, once for each machine and version of the code."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import List, Optional

from common.files import user_cache
from common.logs import logger
from utils import one_line

SOURCES = [Path(__file__).with_name(name) for name in ("pixels.c", "resize.c", "levels.c", "jpeg.c")]
HEADER = Path(__file__).with_name("pixels.h")
FLAGS = ["-O3", "-march=native", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi", "-shared", "-fPIC"]
BUILD_SECONDS = 120
# Of each function that Python calls: its arguments, p for an address, l for an int64_t.
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
    "read_headers": "plp",
    "find_tiles": "plllp",
    "copy_tiles": "ppllllllp",
}
TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}


@functools.lru_cache(maxsize=None)
def library() -> Optional[ctypes.CDLL]:
    """The compiled code of SOURCES, or None where it cannot be built or would not help; the log says why.

    It is compiled by $CC or cc on first use, and kept in the user's cache.
    """
    try:
        code = ctypes.CDLL(str(_built()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.info(
            "pixels.c cannot be compiled (%s): Pillow augments instead, with the same result at half the speed. Where "
            "the processor has AVX2, set CC to a C compiler",
            one_line(error),
        )
        return None
    for name, kinds in ARGUMENTS.items():
        getattr(code, name).argtypes = [TYPES[kind] for kind in kinds]
    return code


def _built() -> Path:
    """The shared library, compiled if this machine has none of this version."""
    folder = user_cache()
    if folder is None:
        raise RuntimeError("there is no folder to keep it in: set XDG_CACHE_HOME")
    command = [*shlex.split(os.environ.get("CC") or "cc"), *FLAGS]
    sources = b"".join(path.read_bytes() for path in (*SOURCES, HEADER))
    version = hashlib.sha256(sources + "\n".join([*command, platform.platform(), _processor()]).encode())
    built = folder / f"pixels-{version.hexdigest()[:20]}.so"
    if not built.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=str(folder)) as place:
            made = os.path.join(place, built.name)
            _compile([*command, "-o", made, *map(str, SOURCES), "-lm"])
            os.replace(made, str(built))  # atomic: other processes may be doing the same
    status = built.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise RuntimeError(f"{built} can be written by other users")
    return built


def _processor() -> str:
    """Tells processors with other instructions apart, since several machines may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _compile(command: List[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=BUILD_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr or done.stdout}")
