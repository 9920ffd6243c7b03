# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The provenance of a run: command, code, packages, configuration with the origin of each value, data, checkpoints."""

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless", "simplejpeg", "yacs", "safetensors"),
    *("scikit-learn", "plotly", "jinja2", "tqdm", "tensorboard", "wandb"),
)
GIT_SECONDS = 10.0
NAMES_HASHED = 10_000  # of the files of a split


class Setting(NamedTuple):
    """A configuration key, its value, and what set it."""

    key: str
    value: str
    origin: str


class Checkpoint(NamedTuple):
    """A checkpoint file with the digest stored in it."""

    name: str
    megabytes: float
    digest: str


class Manifest(NamedTuple):
    """What identifies a run and is needed to reproduce it; pairs are (name, value)."""

    run: List[Tuple[str, str]]
    code: List[Tuple[str, str]]
    data: List[Tuple[str, str]]
    settings: List[Setting]
    checkpoints: List[Checkpoint]

    def plain(self) -> Dict[str, Any]:
        """The same as plain data, for JSON."""
        return {
            **{name: dict(getattr(self, name)) for name in ("run", "code", "data")},
            "configuration": {row.key: {"value": row.value, "origin": row.origin} for row in self.settings},
            "checkpoints": [row._asdict() for row in self.checkpoints],
        }


def command_line() -> str:
    """The command of this process, quoted for a shell."""
    return shlex.join([Path(sys.executable).name, *sys.argv])


def code_version() -> str:
    """The commit of this code, with '-dirty' if files differ from it; or why it is unknown."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=str(ROOT),
            capture_output=True,
            text=True,
            check=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown: not a git checkout"
    return found.stdout.strip()


def code_and_packages(device: str) -> List[Tuple[str, str]]:
    """Versions of the code, Python and the installed packages, and the device."""
    versions = [("commit", code_version()), ("device", device), ("processor", processor())]
    for name in PACKAGES:
        try:
            versions.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions + [("python", platform.python_version()), ("system", platform.platform())]


def processor() -> str:
    """The host's processor and its number of cores."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:  # not Linux
        pass
    return f"{name}, {os.cpu_count()} cores"


def fingerprint(classes: Sequence[str], labels: Any, name: Callable[[int], str]) -> str:
    """A hash of a split: its classes, the label of every file, and the names of at most NAMES_HASHED files.

    Args:
        labels: int64 (N,).
        name: maps an index to the path of the file, whose last part is hashed.
    """
    digest = hashlib.sha256(b"\0".join(os.fsencode(one) for one in classes))
    digest.update(labels.astype("<i8").tobytes())
    for index in range(0, len(labels), max(len(labels) // NAMES_HASHED, 1)):
        digest.update(os.fsencode(os.path.basename(name(index))) + b"\0")  # the folder may be elsewhere
    return digest.hexdigest()
