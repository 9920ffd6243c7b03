# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The README is true: its commands parse, its links lead somewhere, its tables hold what the configurations hold."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import dataset.prepare
from config import get_config, keys_of, named_configs
from tests import golden
from training.arguments import build_config, parse_prediction, parse_training, parse_validation

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines() if line]
LAUNCHERS = ("train_swin.sh", "torchrun.sh", "train_swin.py")


def words_of(command):
    """The words of a command without the variables before it."""
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    return words


def parse(words):
    """Parses a command with the parser of the program that it starts; fails for a program that is not known here."""
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
    elif words[:3] == ["python", "-m", "dataset.prepare"]:
        dataset.prepare._arguments(words[3:])
    elif words[:3] == ["python", "-m", "tests.golden"]:
        golden.parse(words[3:])
    elif words[:3] == ["python", "-m", "pytest"]:
        assert words[3:5] == ["--backend", "sdk"] and all((ROOT / path).exists() for path in words[5:])
    elif words[:4] == ["python3", "-m", "examples_utils", "benchmark"]:
        options = dict(zip(words[4::2], words[5::2]))
        assert options["--benchmark"] in yaml.safe_load((ROOT / options["--spec"]).read_text())
    elif words[:3] == ["pip", "install", "-r"]:
        assert (ROOT / words[3]).exists()
    else:
        assert (ROOT / program).exists() and name.endswith(".sh"), f"nobody knows how to check {words}"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_parses(command):
    words = words_of(command)
    if len(words) == 1:
        assert (ROOT / words[0]).exists()
    else:
        parse(words)


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", TEXT))
def test_link_leads_to_a_file(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("key", sorted(set(re.findall(r"`([A-Z]+(?:\.[A-Z_]+)+)`", TEXT))))
def test_key_that_is_named_exists(key):
    assert key in set(keys_of(get_config()))


def rows():
    """The lines of the table of configurations: names, IPUs a replica, replicas, precision."""
    for line in re.findall(r"^\| (SWIN_.*) \|$", TEXT, re.MULTILINE):
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
    assert re.findall(r"@\w+@", TEXT) == []
