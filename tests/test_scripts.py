# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Shell scripts and benchmarks.yml run commands that the programs accept, and shellcheck finds nothing in them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from config import get_config
from training.arguments import build_config, parse_training

ROOT = Path(__file__).resolve().parent.parent
PODS = [16, 64, 128]
BENCHMARKS = yaml.safe_load((ROOT / "benchmarks.yml").read_text())
RUNS = {name: spec for name, spec in BENCHMARKS.items() if "cmd" in spec}


def dry_run(script, *argv, **variables):
    environment = dict(os.environ, PYTHON=sys.executable, **variables)
    ended = subprocess.run(
        [str(ROOT / script), "--dry-run", *argv], capture_output=True, text=True, check=False, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    return shlex.split(ended.stdout)


def value(command, flag):
    return command[command.index(flag) + 1]


def config_of(command):
    """The configuration that the command's train_swin.py would run."""
    script = next(index for index, word in enumerate(command) if word.endswith("train_swin.py"))
    return build_config(parse_training(command[script + 1 :]))


def pod_script(pod):
    return f"swin_large_224_22k_finetune_1k_fp16_pod{pod}.sh"


@pytest.mark.parametrize("pod", PODS)
def test_pod_script_fills_its_pod_with_the_recipes_global_batch(pod):
    command = dry_run(pod_script(pod))
    config = config_of(command)
    replicas, ipus = int(value(command, "--num-replicas")), int(value(command, "--ipus-per-replica"))
    assert value(command, "--cfg") == f"SWIN_LARGE_224_22K_FINETUNE_1K_FP16_POD{pod}"
    assert replicas * ipus == pod
    assert replicas == config.IPU.REPLICAS == get_config(value(command, "--cfg")).IPU.REPLICAS
    assert ipus == len(config.IPU.LAYERS_PER_IPU)
    assert config.DATA.BATCH_SIZE * config.TRAIN.ACCUMULATION_STEPS * replicas == 1024
    assert replicas % int(value(command, "--num-instances")) == 0
    assert config.MODEL.PRETRAINED and config.OUTPUT


def test_pod_script_takes_its_settings_from_variables_and_arguments():
    command = dry_run(
        pod_script(64),
        "--epochs",
        "40",
        REPLICAS="4",
        INSTANCES="2",
        HOSTS="a,b",
        PARTITION="p",
        SUBNET="10.1.0.0/16",
        DATA_PATH="images and more",
        CACHE_DIR="cache",
    )
    assert (value(command, "--num-replicas"), value(command, "--num-instances")) == ("4", "2")
    assert (value(command, "--host"), value(command, "--vipu-partition")) == ("a,b", "p")
    assert "10.1.0.0/16" in value(command, "--mpi-global-args")
    assert value(command, "--executable-cache-path") == "cache/SWIN_LARGE_224_22K_FINETUNE_1K_FP16_POD64"
    config = config_of(command)
    assert (config.DATA.DATA_PATH, config.TRAIN.EPOCHS, config.IPU.REPLICAS) == ("images and more", 40, 4)


def test_pod_script_refuses_replicas_that_instances_cannot_share():
    ended = subprocess.run(
        [str(ROOT / pod_script(16)), "--dry-run"],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ, REPLICAS="3", INSTANCES="2"),
    )
    assert ended.returncode == 2 and "REPLICAS=3" in ended.stderr


def test_torchrun_script_starts_one_machine_or_several():
    command = dry_run("torchrun.sh", "--cfg", "SWIN_TINY", PROCESSES="2")
    assert value(command, "--nproc-per-node") == "2" and "--standalone" in command
    assert config_of(command).MODEL.NAME == "swin_tiny_patch4_window7_224"
    command = dry_run("torchrun.sh", "--cfg", "SWIN_TINY", PROCESSES="8", NODES="2", NODE="1", MASTER="first:29500")
    assert [value(command, flag) for flag in ("--nnodes", "--node-rank", "--master-addr", "--master-port")] == [
        "2",
        "1",
        "first",
        "29500",
    ]
    assert dry_run("torchrun.sh", "--cfg", "SWIN_TINY", PROCESSES="2", OMP_NUM_THREADS="4,2")


@pytest.mark.parametrize(
    "variables, said",
    [
        ({"PROCESSES": "0"}, "PROCESSES=0 is not a number from 1"),
        ({"PROCESSES": "two"}, "PROCESSES=two is not a number from 1"),
        ({"PROCESSES": "2", "NODES": "-1"}, "NODES=-1 is not a number from 1"),
        ({"PROCESSES": "2", "OMP_NUM_THREADS": "0"}, "OMP_NUM_THREADS=0 is not a number from 1"),
        ({"PROCESSES": "2", "OMP_NUM_THREADS": "many,2"}, "OMP_NUM_THREADS=many is not a number from 1"),
        ({"PROCESSES": "2", "NODES": "2"}, "MASTER='' is not HOST:PORT"),
        ({"PROCESSES": "2", "NODES": "2", "MASTER": "first"}, "MASTER='first' is not HOST:PORT"),
    ],
)
def test_torchrun_script_refuses_what_torchrun_would_trace_back(variables, said):
    environment = {key: value for key, value in os.environ.items() if key not in ("NODES", "MASTER")}
    ended = subprocess.run(
        [str(ROOT / "torchrun.sh"), "--dry-run", "--cfg", "SWIN_TINY"],
        capture_output=True,
        text=True,
        check=False,
        env=dict(environment, PYTHON=sys.executable, **variables),
    )
    assert ended.returncode == 2 and ended.stderr.splitlines()[-1].startswith(f"torchrun.sh: {said}")
    assert ended.stderr.count("\n") == 1


def test_shell_scripts_pass_shellcheck():
    scripts = [str(path) for path in [*ROOT.glob("*.sh"), ROOT / ".ci" / "run"]]
    program = Path(sys.executable).with_name("shellcheck")
    ended = subprocess.run([str(program), "--external-sources", *scripts], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("name", RUNS)
def test_benchmark_is_a_command_that_parses(name, monkeypatch):
    monkeypatch.setenv("DATASETS_DIR", "/datasets")
    words = shlex.split(os.path.expandvars(RUNS[name]["cmd"]))
    command = dry_run(words[0], *words[1:]) if words[0].endswith(".sh") else words
    config = config_of(command)
    assert config.TRAIN.TRAINING_STEPS > config.LOG_INTERVAL  # or no line would be logged
    assert ("gen" in name or "syn" in name) == (config.DATA.DATASET == "generated")
    assert ("syn" in name) == (config.DATA.DATASET == "generated" and config.DATA.GENERATED == "device")
    pod = re.search(r"pod(\d+)", name)
    assert pod is None or config.IPU.REPLICAS * len(config.IPU.LAYERS_PER_IPU) == int(pod[1])


@pytest.mark.parametrize("name", RUNS)
def test_benchmark_has_the_fields_of_its_runner(name):
    spec = RUNS[name]
    assert set(spec) == {"requirements_path", "data", "output", "description", "cmd"}
    assert (ROOT / spec["requirements_path"]).exists()
    assert {metric for _, metric in spec["output"]} == set(spec["data"])


def test_expressions_of_the_benchmarks_read_a_real_log(tmp_path):
    words = shlex.split(RUNS["pytorch_swin_demo_train_gen_host"]["cmd"])
    small = ["--training-steps", "3", "--opts", "LOG_INTERVAL", "1", "MODEL.SWIN.EMBED_DIM", "8"]
    log = subprocess.run(
        [sys.executable, str(ROOT / words[1]), *words[2:], *small],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    ).stdout
    for metric, spec in BENCHMARKS["common_options"]["data"].items():
        found = [float(text) for text in re.findall(spec["regexp"], log)]
        assert len(found) == 3 and all(number > 0 for number in found), metric
    assert list(tmp_path.iterdir()) == []
