# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The code base as a whole: linters find nothing, layers are kept, and commands answer before they import torch."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import ACCEPTANCE

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "torchvision", "timm"}
# The modules of the top folder and the packages, lowest first. import-linter knows the packages only.
LAYERS = (
    *("utils", "common", "planning", "configs", "config", "accelerator", "dataset", "models"),
    *("options", "lr_scheduler", "optimizer", "reports", "training"),
)


BACK_END = re.compile(r"^from tests(\.backend import| import .*\bbackend\b)", re.MULTILINE)
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 500, 60  # CONTRIBUTING.md says the same


def run(*command):
    """The output of `python command...`, run in the repository."""
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_ruff_finds_nothing_for_python_3_8():
    run("-m", "ruff", "check", "--no-cache", ".")
    assert 'target-version = "py38"' in (ROOT / "pyproject.toml").read_text()


def test_files_are_formatted_by_ruff():
    run("-m", "ruff", "format", "--no-cache", "--check", ".")


def test_types_are_consistent(pytestconfig):
    pytest.importorskip("mypy", reason="mypy needs Python 3.10")
    run("-m", "mypy", "--cache-dir", str(pytestconfig.cache.mkdir("mypy")))


def test_import_contracts_are_kept():
    pytest.importorskip("importlinter", reason="import-linter needs Python 3.10")
    run("-c", "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")


def test_modules_and_functions_are_short():
    """Those of tests/ may be longer, since they are read one test at a time."""
    sources = [
        path
        for path in ROOT.rglob("*.py")
        if not any(part == "tests" or part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sources}
    long = [path for path, text in texts.items() if len(text.splitlines()) > MAX_MODULE_LINES]
    long += [
        f"{path}: {node.name}"
        for path, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def test_acceptance_on_the_sdk_has_every_test_that_takes_the_back_end():
    modules = [*ROOT.glob("tests/**/test_*.py"), ROOT / "swin_test.py"]
    chosen = [path for path in modules if BACK_END.search(path.read_text(encoding="utf-8"))]
    covered = [ROOT / path for path in ACCEPTANCE]
    assert [path for path in chosen if not {path, *path.parents} & set(covered)] == []
    assert [path for path in covered if not path.exists()] == []


def test_hooks_of_pre_commit_are_what_the_tests_run():
    """Every hook is a command of the linters' tests, on the local tools; the tests have no other."""
    (source,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert source["repo"] == "local" and {hook["language"] for hook in source["hooks"]} == {"system"}
    entries = [" ".join(hook["entry"].split()[:4]) for hook in source["hooks"]]
    tools = ["python -m ruff check", "python -m ruff format", "python -m mypy", "lint-imports"]
    assert entries == [*tools, "shellcheck --external-sources"]


def test_modules_of_the_top_folder_import_only_what_lies_below_them():
    program = """
import importlib, json, sys
layers, above = json.loads(sys.argv[1]), {}
for name in layers:
    importlib.import_module(name)
    above[name] = [other for other in layers[layers.index(name) + 1 :] if other in sys.modules]
print(json.dumps(above))
"""
    assert json.loads(run("-c", program, json.dumps(LAYERS))) == {name: [] for name in LAYERS}


@pytest.mark.parametrize(
    "command, code, said",
    [
        ("train_swin --help", 0, "usage:"),
        ("train_swin --cfg SWIN_TINY --epohcs 3", 2, "did you mean --epochs?"),
        ("train_swin --cfg SWIN_TINNY", 2, "did you mean SWIN_TINY?"),
        ("validate --help", 0, "usage:"),
        ("validate --checkpoint best.pth --batchsize 3", 2, "did you mean --batch-size?"),
        ("validate --checkpoint best.pth --cfg SWIN_TINNY", 2, "did you mean SWIN_TINY?"),
        ("predict --help", 0, "usage:"),
        ("predict --checkpoint best.pth --topp 3 a.jpg", 2, "did you mean --top?"),
        ("predict --checkpoint best.pth --cfg SWIN_TINNY a.jpg", 2, "did you mean SWIN_TINY?"),
        ("models.convert --help", 0, "usage:"),
        ("models.convert best.pth out --to tim", 2, "invalid choice"),
        ("models.convert best.pth out --to timm --cfg SWIN_TINNY", 2, "did you mean SWIN_TINY?"),
        ("dataset.prepare --help", 0, "usage:"),
        ("train_swin --cfg SWIN_DEMO --data-path .", 2, "--output is required"),
        ("train_swin --cfg SWIN_DEMO --output none --opts TAG a", 2, "no data path"),
        ("train_swin --cfg SWIN_DEMO --dry-run", 2, "no data path"),
        ("train_swin --cfg SWIN_DEMO --tag a --training-steps 1", 2, "--output is required"),
        ("dataset.check --help", 0, "usage:"),
        ("dataset.check . --neer-duplicates", 2, "did you mean --near-duplicates?"),
        ("dataset.prepare digits --outt a", 2, "--out"),
    ],
)
def test_help_and_refused_command_lines_are_answered_before_torch_is_imported(command, code, said):
    program = r"""
import json, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("\n" + json.dumps([end.code, sorted(sys.modules)]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, *command.split()], cwd=ROOT, capture_output=True, text=True, check=True
    )
    exit_code, modules = json.loads(ended.stdout.splitlines()[-1])
    assert said in ended.stdout + ended.stderr
    assert exit_code == code
    assert HEAVY.isdisjoint(modules)
