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

<<<<<<< HEAD
SOURCES = [Path(__file__).with_name(name) for name in ("pixels.c", "resize.c", "levels.c", "jpeg.c")]
HEADER = Path(__file__).with_name("pixels.h")
FLAGS = ["-ffp-contract=off", "-Wno-psabi", "-lm"]
# Of each function that Python calls; see common/native.py.
=======
PARTS = ("pixels.c", "resize.c", "levels.c", "jpeg.c", "huffman.c", "samples.c", "baseline.c")
SOURCES = [Path(__file__).with_name(name) for name in PARTS]
HEADERS = [Path(__file__).with_name(name) for name in ("pixels.h", "jpeg.h", "samples.h")]
FLAGS = ["-O3", "-march=native", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi", "-shared", "-fPIC"]
BUILD_SECONDS = 120
# Of each function that Python calls: its arguments, p for an address, l for an int64_t.
>>>>>>> 0774d50 (JPEGs are decoded by C code of our own, as far as a crop needs them, to libjpeg-turbo's pixels)
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
    """The compiled code of SOURCES, or None where it cannot be built or would not help; the log says why."""
    try:
        return compiled.load([*SOURCES, HEADER], FLAGS, ARGUMENTS)
    except compiled.FAILURES as error:
        logger.info(
            "pixels.c cannot be compiled (%s): Pillow augments instead, with the same result at half the speed. Where "
            "the processor has AVX2, set CC to a C compiler",
            one_line(error),
        )
        return None
<<<<<<< HEAD
=======
    for name, kinds in ARGUMENTS.items():
        getattr(code, name).argtypes = [TYPES[kind] for kind in kinds]
    return code


def _built() -> Path:
    """The shared library, compiled if this machine has none of this version."""
    folder = user_cache()
    if folder is None:
        raise RuntimeError("there is no folder to keep it in: set XDG_CACHE_HOME")
    command = [*shlex.split(os.environ.get("CC") or "cc"), *FLAGS]
    sources = b"".join(path.read_bytes() for path in (*SOURCES, *HEADERS))
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
>>>>>>> 0774d50 (JPEGs are decoded by C code of our own, as far as a crop needs them, to libjpeg-turbo's pixels)
