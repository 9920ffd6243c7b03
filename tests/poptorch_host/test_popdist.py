# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Processes: what the environment of a launcher says, the options made of it, and two real processes."""

import copy
import datetime
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.backend import host_only, module, popdist, poptorch, raises

Options = module("popdist.poptorch").Options

LAUNCHERS = {
    "torchrun": {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"},
    "poprun": {
        "OMPI_COMM_WORLD_RANK": "2",
        "OMPI_COMM_WORLD_SIZE": "4",
        "POPDIST_NUM_TOTAL_REPLICAS": "12",
        "POPDIST_NUM_LOCAL_REPLICAS": "3",
        "POPDIST_NUM_IPUS_PER_REPLICA": "2",
        "POPDIST_REPLICA_INDEX_OFFSET": "6",
    },
}


torchrun = host_only("PopTorch knows poprun only")


@pytest.fixture
def launched(monkeypatch):
    """Sets the environment of a launcher, or of none."""
    for variables in LAUNCHERS.values():
        for name in variables:
            monkeypatch.delenv(name, raising=False)

    def launch(launcher, **more):
        for name, value in {**LAUNCHERS.get(launcher, {}), **more}.items():
            monkeypatch.setenv(name, value)

    return launch


def report():
    return (
        popdist.isPopdistEnvSet(),
        popdist.getInstanceIndex(),
        popdist.getNumInstances(),
        popdist.getNumLocalReplicas(),
        popdist.getNumTotalReplicas(),
        popdist.getReplicaIndexOffset(),
        popdist.getNumIpusPerReplica(),
    )


@pytest.mark.parametrize(
    "launcher, expected",
    [
        (None, (False, 0, 1, 1, 1, 0, 1)),
        pytest.param("torchrun", (True, 2, 4, 1, 4, 2, 1), marks=torchrun),
        ("poprun", (True, 2, 4, 3, 12, 6, 2)),
    ],
)
def test_environment_says_which_process_this_is(launched, launcher, expected):
    launched(launcher)
    assert report() == expected


@host_only("processes started by torchrun, joined by torch.distributed")
def test_replicas_of_a_process_under_torchrun_are_settable(launched):
    launched("torchrun", POPDIST_NUM_LOCAL_REPLICAS="3")
    assert (popdist.getNumLocalReplicas(), popdist.getNumTotalReplicas(), popdist.getReplicaIndexOffset()) == (3, 12, 6)
    assert Options().replication_factor == 3
    launched("torchrun", POPDIST_NUM_LOCAL_REPLICAS="three")
    with raises(poptorch.Error, match="POPDIST_NUM_LOCAL_REPLICAS is 'three'"):
        popdist.getNumLocalReplicas()


@host_only("processes started by torchrun, joined by torch.distributed")
@pytest.mark.parametrize("value", ["abc", "", "-1", "1.5", "²"])
@pytest.mark.parametrize("variable", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "POPDIST_NUM_LOCAL_REPLICAS"])
def test_variable_of_a_launcher_without_a_number_is_one_line_that_names_it(launched, monkeypatch, variable, value):
    monkeypatch.setattr(module("poptorch.host"), "_settings", type(module("poptorch.host")._settings)())
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "POPTORCH_HOST_DEVICE": "cuda"}
    launched("torchrun", **{**address, variable: value})
    with raises(poptorch.Error, match=f"{variable} is {value!r}, but must be a number") as caught:
        popdist.init()
    assert "\n" not in str(caught.value)


@host_only("processes started by torchrun, joined by torch.distributed")
def test_process_beyond_the_number_of_processes_refused(launched):
    launched("torchrun", RANK="4")
    with raises(poptorch.Error, match="RANK is 4 but WORLD_SIZE is 4"):
        popdist.getInstanceIndex()


@host_only("processes started by torchrun, joined by torch.distributed")
@pytest.mark.parametrize("variable, configured, seconds", [(None, None, None), ("2.5", None, 2.5), ("2.5", 7, 7.0)])
def test_processes_wait_as_long_as_the_host_is_told(launched, monkeypatch, variable, configured, seconds):
    launched(
        "torchrun",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="1",
        **({"POPTORCH_HOST_TIMEOUT": variable} if variable else {}),
    )
    monkeypatch.setattr(module("poptorch.host"), "_settings", type(module("poptorch.host")._settings)())
    module("poptorch.host").configure(timeout=configured)
    met = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **given: met.append(given))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    popdist.init()
    assert [given.get("timeout") for given in met] == [seconds and datetime.timedelta(seconds=seconds)]
    assert seconds or "timeout" not in met[0]  # PyTorch 2.0 takes no None


@host_only("processes started by torchrun, joined by torch.distributed")
@pytest.mark.parametrize("wrong", [0, -1, "soon", float("nan"), float("inf")])
def test_timeout_that_is_no_time_refused(wrong):
    with raises(poptorch.Error, match="timeout is"):
        module("poptorch.host").configure(timeout=wrong)


@pytest.mark.parametrize(
    "launcher, expected",
    [(None, (1, 1, 0)), pytest.param("torchrun", (1, 4, 2), marks=torchrun), ("poprun", (3, 4, 2))],
)
@pytest.mark.parametrize(
    "make",
    [
        Options,
        lambda: Options(2),
        lambda: Options(ipus_per_replica=2),
        lambda: copy.deepcopy(Options()),
        lambda: pickle.loads(pickle.dumps(Options())),
    ],
)
def test_options_have_replicas_and_processes_of_the_launcher(launched, launcher, expected, make):
    launched(launcher)
    options = make()
    assert isinstance(options, poptorch.Options)
    assert (options.replication_factor, options.Distributed.numProcesses, options.Distributed.processId) == expected


@pytest.mark.parametrize(
    "call, arguments",
    [
        ("useIpuId", [0]),
        ("replicationFactor", [2]),
        ("Distributed.disable", []),
        ("Distributed.setEnvVarNames", ["A", "B"]),
        ("Distributed.configureProcessId", [0, 2]),
        ("Distributed.configureProcessId", [1]),
    ],
)
def test_options_of_several_processes_refuse_what_the_launcher_decides(call, arguments):
    target = Options().clone()
    for part in call.split("."):
        target = getattr(target, part)
    with raises(RuntimeError, match=f"Cannot call `{call}` with popdist.poptorch.Options"):
        target(*arguments)


def test_options_of_several_processes_work_as_dictionary_frozen_or_not(launched):
    launched("poprun")
    options = Options().deviceIterations(2).outputMode(poptorch.OutputMode.All)
    before = options.toDict()
    options._freeze()
    assert before == options.toDict() and before["num_distributed_processes"] == 4
    with raises(AttributeError, match="frozen"):
        options.deviceIterations(3)


@host_only("the device of a host")
def test_processes_share_the_gpus_of_a_machine(launched, monkeypatch):
    launched("torchrun", LOCAL_RANK="3", POPTORCH_HOST_DEVICE="cuda")
    monkeypatch.setattr(module("poptorch.host"), "_settings", type(module("poptorch.host")._settings)())
    assert str(module("poptorch.host").device()) == "cuda:3"
    launched(None, POPTORCH_HOST_DEVICE="cuda:1")
    assert str(module("poptorch.host").device()) == "cuda:1"


def test_single_process_needs_no_group_and_runs_what_it_is_told(launched):
    launched(None)
    popdist.init()
    assert popdist.execute_on_instances({0}, max, 3, 4) == 4
    assert popdist.execute_on_instances({1}, max, 3, 4) is None


@host_only("processes started by torchrun, joined by torch.distributed")
def test_processes_without_a_meeting_point_are_told_what_to_set(launched, monkeypatch):
    launched("poprun")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with raises(poptorch.Error, match="MASTER_ADDR"):
        popdist.init()


# It leaves without taking the group down, in which torch 2.0 hangs or aborts now and then.
PROGRAM = """
import os, sys, time, torch, popdist, popdist.poptorch
popdist.init()
popdist.init()
ranks = torch.tensor([popdist.getInstanceIndex() + 1])
torch.distributed.all_reduce(ranks)
path = sys.argv[1]


def make(text):
    time.sleep(1)
    with open(path, "w") as stream:
        stream.write(text)

popdist.execute_on_instances({1}, make, "made by one")
options = popdist.poptorch.Options()
made = open(path).read()
popdist.execute_on_instances({popdist.getInstanceIndex()}, lambda: None)
sys.stdout.write(f"{ranks.item()} {made} {options.replication_factor} {options.Distributed.numProcesses}\\n")
sys.stdout.flush()
os._exit(0)
"""


def test_two_processes_of_torchrun_form_a_group_and_wait_for_each_other(launched, tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
        "-m",
        "poptorch_host",
        str(path),
        str(tmp_path / "made"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(poptorch.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120)
    assert result.stdout == "3 made by one 1 2\n" * 2, result.stderr
