# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The package as something to install, and its README as something to follow."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import poptorch_host
import pytest

from tests.backend import host_only

pytestmark = host_only("its package")


PACKAGE = Path(poptorch_host.__file__).parent
LEFTOVERS = shutil.ignore_patterns("__pycache__", "build", "*.egg-info", ".*")


def python(arguments, folder, path):
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=str(folder),
        env=environment,
        text=True,
        check=True,
        capture_output=True,
        timeout=120,
    ).stdout


def files(folder):
    """The files that a user of the package needs, relative to `folder`."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if path.suffix != ".pyc" and path.name not in ("pyproject.toml", "README.md")}


def test_every_wing_is_a_package_of_the_distribution():
    declared = (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.search(r"^packages = \[(.*?)\]", declared, re.DOTALL | re.MULTILINE).group(1)
    wings = {f"poptorch_host.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")}
    assert set(re.findall(r'"(.*?)"', packages)) == {"poptorch_host", *wings}


def test_type_information_is_part_of_the_distribution():
    declared = (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")
    data = re.search(r"^poptorch_host = \[(.*?)\]", declared, re.DOTALL | re.MULTILINE).group(1)
    assert '"py.typed"' in data and (PACKAGE / "py.typed").is_file()


def test_installed_package_has_every_file_and_runs_a_program(tmp_path):
    if tuple(map(int, pytest.importorskip("setuptools").__version__.split(".")[:2])) < (61, 0):
        pytest.skip("this setuptools does not read pyproject.toml")
    source, target = tmp_path / "source", tmp_path / "site"
    shutil.copytree(str(PACKAGE), str(source), ignore=LEFTOVERS)
    expected = files(source)
    python(
        [
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "--target",
            str(target),
            str(source),
        ],
        tmp_path,
        "",
    )
    assert files(target / "poptorch_host") == expected
    program = "import poptorch, popdist.poptorch, sys; print(poptorch.__file__, poptorch.__version__)"
    printed = python(["-m", "poptorch_host", "-c", program], tmp_path, target).split()
    assert printed == [str(target / "poptorch_host" / "__init__.py"), poptorch_host.__version__]
    metadata = next(target.glob("poptorch_host-*.dist-info")) / "METADATA"
    assert f"Version: {poptorch_host.__version__}" in metadata.read_text(encoding="utf-8")


@pytest.mark.parametrize("index", [0, 1])
def test_code_of_the_readme_runs(index, tmp_path):
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[index]
    path = tmp_path / "program.py"
    path.write_text(f"import torch\n{code}")
    python(["-m", "poptorch_host", str(path)], tmp_path, PACKAGE.parent)
