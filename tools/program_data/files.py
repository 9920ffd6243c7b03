# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Plain files."""

import random
import shutil
import subprocess
from pathlib import Path

WORDS = (
    "the a of in what is how many edinburgh scotland capital hill cat old litter camera coffee pot island sea".split()
)


def text(file: str, lines: str) -> None:
    """Writes lines of ten random words."""
    rng = random.Random(0)
    placed(file).write_text("".join(" ".join(rng.choices(WORDS, k=10)) + ".\n" for _ in range(int(lines))))


def write(file: str, content: str) -> None:
    """Writes the content to a file; a backslash followed by n becomes a line break."""
    placed(file).write_text(content.replace("\\n", "\n") + "\n")


def library(file: str) -> None:
    """Builds an empty shared library in place of one with device code, which only the SDK can build."""
    subprocess.run(["cc", "-shared", "-x", "c", "/dev/null", "-o", str(placed(file))], check=True)


def copy(source: str, target: str) -> None:
    """Copies a file or folder."""
    (shutil.copytree if Path(source).is_dir() else shutil.copy)(source, placed(target))


def placed(file: str) -> Path:
    """Returns the path of a file, whose folder is made if it is missing."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
