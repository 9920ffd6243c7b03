# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""README, CONTRIBUTING and the page of benchmarks are true: commands parse, links lead somewhere, tables hold."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import benchmarks.gpu
import benchmarks.train_step
import benchmarks.weight_formats
import dataset.check
import dataset.prepare
import models.convert
from common import deadlines
from config import get_config, keys_of, named_configs
from tests import golden
from tests.faults.__main__ import parse as parse_faults
from training.arguments import build_config, parse_prediction, parse_training, parse_validation

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = TEXT + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGES + BENCHMARKS, re.DOTALL)
LINES = [line.strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
COMMANDS = sorted({*LINES, *re.findall(r"^\| `(python [^`]+)` \|", PAGES, re.MULTILINE)})
ENVIRONMENT = ("git clone", "cd swin", "python -m venv", "source .venv/bin/activate")  # nothing of ours to check
LINTERS = ("python -m ruff", "python -m mypy", "lint-imports")  # run by tests/test_house.py
LAUNCHERS = ("train_swin.sh", "torchrun.sh", "train_swin.py")


def words_of(command):
    """The words of a command without the variables before it."""
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    return words


def parse(words):
    """Parses a command with the parser of the program that it starts; fails for a program that is not known here."""
    if words[0] == "docker":
        parse_docker(words[1:])
        return
    if "|" in words:  # what is piped into a command of ours
        words = words[words.index("|") + 1 :]
    program = words[1] if words[0] in ("python", "python3") else words[0]
    arguments = words[2:] if program == words[1:2][0] else words[1:]
    name = Path(program).name
    if name in LAUNCHERS:
        assert (ROOT / name).exists()
        if arguments:
            build_config(parse_training(arguments))
    elif name == "validate.py":
        args = parse_validation(arguments)
        assert args.cfg is None or args.cfg in named_configs()
    elif name == "predict.py":
        assert parse_prediction(arguments).images
    elif words[:2] == ["python", "-m"] and words[2] in MODULES:
        MODULES[words[2]](words[3:])
    elif words[:4] == ["python3", "-m", "examples_utils", "benchmark"]:
        options = dict(zip(words[4::2], words[5::2]))
        assert options["--benchmark"] in yaml.safe_load((ROOT / options["--spec"]).read_text())
    elif words[:3] == ["pip", "install", "-r"]:
        assert (ROOT / words[3]).exists()
    else:
        assert (ROOT / program).exists() and name.endswith(".sh"), f"nobody knows how to check {words}"


def parse_docker(words):
    """Parses what an image of the Dockerfile is to run; fails for a build argument that it does not have."""
    if words[0] == "build":
        declared = re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
        given = [value.split("=")[0] for flag, value in zip(words, words[1:]) if flag == "--build-arg"]
        assert words[-1] == "." and set(given) <= set(declared)
    else:
        assert words[0] == "run"
        parse(["python", *words[words.index("swin") + 1 :]])


def check_tests(arguments):
    """Fails for arguments of pytest that name no file, no test or no back end."""
    options = dict(zip(arguments, arguments[1:]))
    assert options.get("--backend", "sdk") == "sdk"
    for argument in arguments:
        if argument.startswith("tests"):
            path, _, test = argument.partition("::")
            assert (ROOT / path).exists()
            assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8")


MODULES = {  # what parses the arguments of python -m
    "benchmarks.gpu": benchmarks.gpu.parse,
    "benchmarks.train_step": benchmarks.train_step.parse,
    "benchmarks.weight_formats": benchmarks.weight_formats.parse,
    "dataset.check": dataset.check.parse,
    "dataset.prepare": dataset.prepare._arguments,
    "models.convert": models.convert.parse,
    "pytest": check_tests,
    "tests.golden": golden.parse,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command):
    if command.startswith(ENVIRONMENT + LINTERS):
        return
    words = words_of(command)
    if command.startswith("python -m benchmarks.") and words[2] not in MODULES:
        assert (ROOT / f"{words[2].replace('.', '/')}.py").exists()
    elif words[0] == "./test_swin.sh":
        assert words[1:] in ([], ["--torch", "2.0.1"])
    elif len(words) == 1:
        assert (ROOT / words[0]).exists()
    else:
        parse(words)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", PAGES))))
def test_link_leads_to_a_file(target):
    assert (ROOT / target).exists()


def headings(page):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("target, anchor", sorted(set(re.findall(r"\]\(([\w/]*(?:\.md)?)#([\w-]+)\)", PAGES))))
def test_link_leads_to_a_heading(target, anchor):
    assert anchor in headings(ROOT / (target or "README.md"))


@pytest.mark.parametrize("key", sorted(set(re.findall(r"`([A-Z]+(?:\.[A-Z_]+)+)`", PAGES))))
def test_key_that_is_named_exists(key):
    assert key in set(keys_of(get_config()))


COMPARISON = re.search(r"^\| \| here \|.*?\n\|[-|]+\n(.*)\n\Z", BENCHMARKS, re.DOTALL | re.MULTILINE)[1].splitlines()


@pytest.mark.parametrize("row", COMPARISON)
def test_what_is_here_beside_other_trainers_has_a_test(row):
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 7
    if cells[1] == "no":
        return
    tests = re.findall(r"\]\(\.\./([\w/.]+)#(test_\w+)\)", cells[1])
    assert tests
    for path, name in tests:
        assert re.search(rf"^ *def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGES))))
def test_picture_is_small(path):
    assert 0 < (ROOT / path).stat().st_size < 150_000


def rows():
    """The lines of the table of configurations: names, IPUs a replica, replicas, precision."""
    for line in re.findall(r"^\| (SWIN.*) \|$", TEXT, re.MULTILINE):
        cells = [cell.strip() for cell in line.split("|")]
        if " x " in cells[2]:
            ipus, replicas = cells[2].split(" x ")
            yield cells[0].split(", ")[0], int(ipus), [int(number) for number in replicas.split(", ")], cells[3]


@pytest.mark.parametrize("name, ipus, replicas, precision", list(rows()))
def test_table_of_configurations_is_what_they_hold(name, ipus, replicas, precision):
    config = get_config(name)
    assert config.MODEL.PRECISION == precision
    assert config.IPU.REPLICAS == replicas[0]
    assert len(config.IPU.MAPPING or config.IPU.LAYERS_PER_IPU) == ipus


def test_every_named_configuration_is_in_the_table():
    table = TEXT[TEXT.index("| configuration |") :]
    families = {re.sub(r"_POD\d+$", "", name) for name in named_configs() if "PRETRAIN" not in name}
    assert [name for name in families if name not in table] == []


def test_no_placeholder_is_left():
    assert re.findall(r"@\w+@", PAGES) == []


def test_deadlines_are_those_of_the_table():
    table = (ROOT / "GUARANTEES.md").read_text(encoding="utf-8")
    named = {name: value for name, value in vars(deadlines).items() if name.isupper()}
    assert [name for name, value in named.items() if f"| `{name}` | {value} |" not in table] == []


def test_page_of_guarantees_names_commands_keys_and_files_that_exist():
    page = (ROOT / "GUARANTEES.md").read_text(encoding="utf-8")
    for module, arguments in re.findall(r"`python -m ([\w.]+) ?([^`]*)`", page):
        assert (ROOT / module.replace(".", "/")).is_dir() or (ROOT / f"{module.replace('.', '/')}.py").exists()
        assert module != "tests.faults" or parse_faults(shlex.split(arguments))
    assert set(re.findall(r"`(TRAIN\.[A-Z_]+)`", page)) <= set(keys_of(get_config()))
    assert [target for target in re.findall(r"\]\(([^)]+)\)", page) if not (ROOT / target).exists()] == []
