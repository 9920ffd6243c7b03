# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""C code, compiled on first use, once per machine and version of the code, and kept in the user's cache."""

import ctypes
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Dict, List, Sequence

from common.files import user_cache

FLAGS = ["-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC"]
BUILD_SECONDS = 120
TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}
FAILURES = (OSError, RuntimeError, subprocess.SubprocessError)  # of `load`


def load(sources: Sequence[Path], flags: Sequence[str], arguments: Dict[str, str]) -> ctypes.CDLL:
    """Loads the code of some sources, compiled by $CC or cc.

    Args:
        sources: C files, and the headers that they include from their folder.
        flags: compiler flags in addition to FLAGS, followed by linker flags.
        arguments: argument types of each function called from Python: p for an address, l for int64_t, i for int,
            f for float.

    Raises:
        OSError, RuntimeError, subprocess.SubprocessError: if it cannot be compiled, kept or loaded.
    """
    code = ctypes.CDLL(str(built(sources, flags)))
    for name, kinds in arguments.items():
        getattr(code, name).argtypes = [TYPES[kind] for kind in kinds]
    return code


def built(sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """The path of the shared library, compiled unless cached; arguments and errors as in `load`."""
    folder = user_cache()
    if folder is None:
        raise RuntimeError("there is no folder to keep it in: set XDG_CACHE_HOME")
    compiler = [*_compiler(), *FLAGS]
    contents = b"".join(path.read_bytes() for path in sources)
    version = hashlib.sha256(contents + "\n".join([*compiler, *flags, platform.platform(), processor()]).encode())
    library = folder / f"{sources[0].stem}-{version.hexdigest()[:20]}.so"
    if not _is_private(library):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=str(folder)) as place:
            made = os.path.join(place, library.name)
            files = [str(path) for path in sources if path.suffix == ".c"]
            compile_with([*compiler, "-o", made, *files, *flags])
            os.chmod(made, 0o700)  # whatever the umask: with 002, the usual one of some systems, a group could write it
            os.replace(made, str(library))  # atomic: other processes may be doing the same
    if not _is_private(library):
        raise RuntimeError(f"{library} can be written by other users")
    return library


def _compiler() -> List[str]:
    """The command of the C compiler: $CC or cc."""
    named = os.environ.get("CC", "")
    try:
        return shlex.split(named) or ["cc"]
    except ValueError as error:
        raise RuntimeError(f"CC={named} is not a command: {error}") from error


def _is_private(library: Path) -> bool:
    """Whether the file exists and nobody but this user can have written it."""
    try:
        status = library.stat()
    except FileNotFoundError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def processor() -> str:
    """Identifies the processor's instruction set, since machines may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def compile_with(command: List[str]) -> None:
    """Runs a compiler; raises RuntimeError with its output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=BUILD_SECONDS)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr or done.stdout}")
