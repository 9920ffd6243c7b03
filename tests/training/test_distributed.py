# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Several processes under torchrun compute what one process computes, write once, and end together."""

import contextlib
import csv
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import accelerator
import train_swin
from common import system_processes
from common.errors import EXIT_BUSY, EXIT_DATA, EXIT_PREEMPTED, EXIT_RESOURCE, EXIT_USAGE, Preempted, Refusal
from common.launch import REFERENCE_BATCH, Launch
from common.signals import StopRequest
from config import get_config
from dataset.samplers import epoch_order
from tests.data_sets import write_uneven
from tests.forked import Command
from tests.runs import assert_same_run
from tests.training.distributed_program import run_job
from training import checkpoint, processes

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed"),
    pytest.mark.xdist_group("torchrun"),
]

ROOT = Path(__file__).resolve().parents[2]
VALIDATION_IMAGES = 13  # an odd number: no even split over processes, replicas and batches
# Two blocks; mixup and random erasing on. A step is 2 x 2 x 2 images of the 36: four steps an epoch.
OPTS = [
    "DATA.MEAN",
    "[0.5, 0.5, 0.5]",
    "MODEL.SWIN.EMBED_DIM",
    "16",
    "MODEL.SWIN.DEPTHS",
    "[1, 1]",
    "MODEL.SWIN.NUM_HEADS",
    "[1, 2]",
    "IPU.LAYERS_PER_IPU",
    "[2]",
    "TRAIN.WARMUP_EPOCHS",
    "1",
    "LOG_INTERVAL",
    "1",
    "AUG.MIXUP",
    "0.8",
    "AUG.REPROB",
    "0.5",
    "AUG.HFLIP",
    "0.5",
    "TRAIN.EMA_DECAY",
    "0.5",
]
PLAIN = ["MODEL.DROP_PATH_RATE", "0.0"]  # dropout masks are each process's own
SMALL = ["--cfg", "SWIN_DEMO", "--device", "cpu", "--epochs", "2", "--batch-size", "2", "--ga", "2", "--replicas", "2"]
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")


def torchrun(*command, processes=2):
    """The command line that starts so many processes of a program here."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        str(processes),
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        free_port(),
        *map(str, command),
    ]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run_jobs(folder, jobs, processes=2, launched=True):
    """Runs jobs in so many processes, under one torchrun or, unless `launched`, on their own; returns what each
    process noted, by job."""
    path = folder / "jobs.json"
    path.write_text(json.dumps([{"port": free_port(), **job} for job in jobs]))
    program = ["-m", "tests.training.distributed_program", str(path)]
    if launched:
        command = torchrun(*program, processes=processes)
        done = subprocess.run(command, text=True, env=ENVIRONMENT, capture_output=True, timeout=240, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        with start(program, processes) as started:
            codes = [process.wait(240) for process in started]
            assert codes == [0] * processes, [process.errors for process in started]
    return {
        job["name"]: [
            json.loads((folder / f"{job['name']}.{process}.json").read_text()) for process in range(processes)
        ]
        for job in jobs
    }


@contextlib.contextmanager
def start(argv, processes=2, **more):
    """The processes of one run that nobody watches over, killed with the context; `more` variables of theirs."""
    variables = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **more}
    with contextlib.ExitStack() as ends:
        yield [ends.enter_context(Command(*argv, RANK=str(rank), **variables)) for rank in range(processes)]


def training(name, data, folder, *more, opts=(), **job):
    argv = [*SMALL, "--data-path", str(data), "--output", str(folder / name), *more, "--opts", *OPTS, *opts]
    return {"name": name, "program": "train_swin", "argv": argv, **job}


def prediction(name, data, folder):
    argv = ["--checkpoint", str(folder / "plain" / "last.pth"), "--device", "cpu", str(data / "validation")]
    files = ["--output", str(folder / f"{name}.jsonl"), "--features", str(folder / f"{name}.npy")]
    return {"name": name, "program": "predict", "argv": [*files, *argv]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_uneven(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def noted(data, folder):
    """What two processes noted of each job."""
    jobs = [
        training("plain", data, folder, opts=PLAIN),
        training("unbroken", data, folder),
        training("resumed", data, folder, "--training-steps", "3"),
        {**training("resumed", data, folder), "name": "rest"},
        {
            "name": "validated",
            "program": "validate",
            "argv": [
                *("--checkpoint", str(folder / "plain" / "last.pth"), "--data-path", str(data), "--device", "cpu"),
                *("--predictions", str(folder / "validated.csv")),
            ],
        },
        prediction("predicted", data, folder),
        {**training("late", data, folder), "signal": [1, 1]},
        {**training("between", data, folder), "signal_in_save": [0, 4]},
        training("unshared", data, folder, "--replicas", "3"),
        training("missing", data / "none", folder),
        training("checkpoint", data, folder, "--resume", str(folder / "none.pth")),
    ]
    return run_jobs(folder, jobs)


@pytest.fixture(scope="module")
def alone(data, folder):
    """The same training in one process, with both replicas, and its validation."""
    job = training("alone", data, folder, opts=PLAIN)
    noted = run_job(job)
    assert noted["code"] == 0, noted["errors"]
    return noted


def state_of(folder, name):
    return checkpoint.load(folder / name / "last.pth")


def accuracy_of(text):
    """The last validation in a log, not of averaged weights; no top-5 among so few classes: (top-1, images)."""
    return re.findall(r"validation: top-1: ([\d.]+) % images: (\d+)", text)[-1]


# What is computed.


def test_processes_share_the_samples_of_one_process_bit_for_bit_and_in_its_order(noted, alone):
    first, second = (process["batches"] for process in noted["plain"])
    shared = [batch for pair in zip(first, second) for batch in pair]  # replicas 0 and 1 of each accumulation step
    assert shared == alone["batches"] and len(set(shared)) == len(shared) == 2 * 4 * 4


def test_two_processes_train_the_weights_of_one_with_all_replicas(noted, alone, folder):
    two, one = state_of(folder, "plain"), state_of(folder, "alone")
    for part in ("model", "ema"):
        for name, weight in one[part].items():
            torch.testing.assert_close(two[part][name], weight, rtol=1e-4, atol=2e-6)
    for left, right in zip(two["progress"]["epochs"], one["progress"]["epochs"]):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert [left[key] for key in ("top1", "ema_top1", "lr")] == [right[key] for key in ("top1", "ema_top1", "lr")]


def test_learning_rate_follows_the_global_batch_of_all_processes(noted, folder):
    assert "global batch 8" in noted["plain"][0]["output"]
    rates = re.findall(r"lr: ([\d.e-]+)", noted["plain"][0]["output"])
    assert float(rates[4]) == pytest.approx(0.016 * 8 / REFERENCE_BATCH, rel=1e-3)  # warm-up over: BASE_LR


def test_evaluation_counts_every_image_once(noted, alone):
    assert accuracy_of(noted["plain"][0]["output"]) == accuracy_of(alone["output"])
    assert accuracy_of(alone["output"])[1] == str(VALIDATION_IMAGES)


def test_validation_command_in_two_processes_gives_the_numbers_of_training(noted, alone):
    assert [process["code"] for process in noted["validated"]] == [0, 0]
    assert accuracy_of(noted["validated"][0]["output"]) == accuracy_of(alone["output"])


def test_two_processes_predict_what_one_does_in_its_order(noted, data, folder):
    assert [process["code"] for process in noted["predicted"]] == [0, 0]
    assert run_job(prediction("one", data, folder))["code"] == 0
    two, one = (
        [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("predicted", "one")
    )
    assert [line["path"] for line in two] == [line["path"] for line in one] and len(one) == VALIDATION_IMAGES
    for left, right in zip(two, one):
        shares = [{guess["class"]: guess["probability"] for guess in line["predictions"]} for line in (left, right)]
        assert shares[0] == pytest.approx(shares[1], abs=1e-5)
    np.testing.assert_allclose(np.load(folder / "predicted.npy"), np.load(folder / "one.npy"), atol=1e-5)
    with open(folder / "validated.csv", newline="") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == [line["path"] for line in one]


def test_resumed_run_of_two_processes_ends_as_the_unbroken_one(noted, folder):
    assert [process["code"] for process in noted["rest"]] == [0, 0]
    assert "resuming from" in noted["rest"][0]["output"]
    unbroken = state_of(folder, "unbroken")
    assert_same_run(state_of(folder, "resumed"), unbroken)
    assert unbroken["ema_update"] == 8 and not torch.equal(unbroken["ema"]["head.bias"], unbroken["model"]["head.bias"])


# Who writes.


def test_leader_alone_writes_and_logs(noted, folder):
    names = {path.name for path in (folder / "plain").iterdir()} - {".lock"}
    assert names == {
        "last.pth",
        "previous.pth",
        "best.pth",
        "config.yaml",
        "log.txt",
        "metrics.csv",
        "report.html",
        "status.json",
    }
    assert noted["plain"][1]["output"] == ""
    log = (folder / "plain" / "log.txt").read_text()
    assert len(re.findall("throughput", log)) == 8 and log.count("validation: top-1") == 2


# Bad input: every process ends with the exit code, none waits.


def assert_refused(processes, code, said):
    assert [process["code"] for process in processes] == [code, code]
    for process in processes:
        assert said in process["errors"] and len(process["errors"].splitlines()) == 1


def test_replicas_that_processes_cannot_share_are_refused(noted):
    assert_refused(noted["unshared"], EXIT_USAGE, "IPU.REPLICAS 3 cannot be divided among 2 processes")


def test_bad_data_is_refused_in_every_process(noted):
    assert_refused(noted["missing"], EXIT_DATA, "none")


def test_refusal_of_the_leader_is_that_of_all(noted):
    assert_refused(noted["checkpoint"], 4, "none.pth")


# A process that is asked to stop, or dies.


def long_training(data, output, *opts):
    """A program and its arguments that train until they are stopped."""
    return ["train_swin.py", *training("", data, output, "--epochs", "100000", opts=opts)["argv"]]


def until_it_trains(process):
    for line in process.stdout:
        if "throughput" in line:
            return
    raise AssertionError(f"it never trained: {process.stderr.read()}")


def workers_of(launcher):
    """The process ids of torchrun's processes, by rank."""
    listed = ["ps", "-o", "pid=", "--ppid", str(launcher)]  # fails where there are none
    children = subprocess.run(listed, capture_output=True, text=True, check=False)
    pids = {}
    for pid in children.stdout.split():
        rank = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
        if rank:
            pids[int(rank[1])] = int(pid)
    return pids


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="ranks are told from /proc")
def test_process_asked_to_stop_stops_all_after_the_same_update_with_a_checkpoint(data, tmp_path):
    process = subprocess.Popen(
        torchrun(*long_training(data, tmp_path)),
        cwd=ROOT,
        text=True,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until_it_trains(process)
    os.kill(workers_of(process.pid)[1], signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert len(re.findall(rf"exitcode +: {EXIT_PREEMPTED} ", errors)) == 2, errors
    # the other one tells of "a signal to another process" inside an epoch, and passes on the word between two
    assert (
        "stopped by SIGTERM;" in errors
        and len(re.findall(r"stopped by (SIGTERM|a signal to another process);", errors)) == 2
    )
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["exit_code"] == EXIT_PREEMPTED
    assert checkpoint.load(tmp_path / "last.pth")["progress"]["update"] == status["last_update"] > 0
    steps = re.findall(r"step: (\d+)/4", output)
    assert not steps or (status["last_update"] - int(steps[-1])) % 4 == 0  # nothing trained after the checkpoint


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="ranks are told from /proc")
def test_processes_whose_launcher_was_killed_save_and_end(data, tmp_path):
    launcher = subprocess.Popen(
        torchrun(*long_training(data, tmp_path)), text=True, env=ENVIRONMENT, stdout=subprocess.PIPE, cwd=ROOT
    )
    until_it_trains(launcher)
    ranks = workers_of(launcher.pid).values()
    launcher.kill()
    launcher.communicate(timeout=60)  # to the end of what its processes print, a moment before their own
    end = time.monotonic() + 60
    while not all(system_processes.state(pid) in ("", "Z") for pid in ranks) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(ranks) == 2 and all(system_processes.state(pid) in ("", "Z") for pid in ranks)
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["exit_code"] == EXIT_PREEMPTED
    assert checkpoint.load(tmp_path / "last.pth")["progress"]["update"] == status["last_update"] > 0


def test_signal_after_the_processes_have_agreed_to_go_on_stops_both_after_the_next_update(noted, folder):
    assert [process["code"] for process in noted["late"]] == [EXIT_PREEMPTED] * 2
    assert state_of(folder, "late")["progress"]["update"] == 3
    assert [len(process["batches"]) for process in noted["late"]] == [3 * 2] * 2


def test_signal_to_one_process_between_two_updates_stops_both_with_the_same_code(noted, folder):
    assert [process["code"] for process in noted["between"]] == [EXIT_PREEMPTED] * 2
    assert state_of(folder, "between")["progress"]["update"] == 4


def test_process_does_not_wait_for_one_that_was_killed_and_the_run_goes_on_later(data, tmp_path):
    with start(long_training(data, tmp_path, "TRAIN.CHECKPOINT_STEPS", "1")) as (leader, other):
        leader.wait_for("throughput")
        time.sleep(0.2)
        other.send(signal.SIGKILL)
        assert leader.wait() == EXIT_RESOURCE
        assert "process 1 of the run exited or hangs" in leader.errors.splitlines()[-1]
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["exit_code"] == EXIT_RESOURCE and "process 1" in status["cause"]
    assert 0 < checkpoint.load(tmp_path / "last.pth")["progress"]["update"] <= status["last_update"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a stopped process is told from /proc")
def test_process_that_hangs_is_given_up_after_the_timeout_and_ended_with_the_run(data, tmp_path):
    with start(long_training(data, tmp_path), POPTORCH_HOST_TIMEOUT="4") as (leader, other):
        leader.wait_for("throughput")
        other.send(signal.SIGSTOP)
        assert leader.wait() == EXIT_RESOURCE
        assert "process 1 of the run exited or hangs" in leader.errors.splitlines()[-1]
        assert other.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    "variables, said",
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2 but WORLD_SIZE is 2"),
        ({"WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT are not set"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "taken"),
    ],
)
def test_processes_that_cannot_meet_are_refused(monkeypatch, variables, said):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        if said == "taken":
            variables, said = dict(variables, MASTER_PORT=str(other.getsockname()[1])), "cannot connect"
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"RANK": "0", **variables}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(Refusal, match=said) as caught:
            train_swin.main([*SMALL, "--synthetic", "--compile-only", "--opts", *OPTS])
    assert caught.value.code == EXIT_USAGE and "\n" not in str(caught.value)


def test_request_to_stop_ends_a_process_that_waits_for_the_others(monkeypatch):
    numbers, seen = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1), []
    popdist = accelerator.select("cpu").popdist
    monkeypatch.setattr(popdist, "isPopdistEnvSet", lambda: True)
    monkeypatch.setattr(popdist, "init", lambda: seen.extend(map(signal.getsignal, numbers)))
    with StopRequest().installed() as stop, processes.joined(get_config("SWIN_DEMO")):
        assert seen == [signal.SIG_DFL] * 3
        assert [signal.getsignal(number) for number in numbers] == [stop._handle] * 3


def test_process_that_works_alone_learns_of_a_refusal_of_this_start_before_it_meets_the_others(monkeypatch):
    leader, other = (Launch(rank, 2, 2, 1) for rank in range(2))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        processes.heed(other)
        with pytest.raises(Preempted), processes.ending_together(leader):
            raise Preempted("stopped by SIGTERM")
        with pytest.raises(Refusal, match="stopped by SIGTERM") as caught:
            processes.heed(other)
        assert caught.value.code == EXIT_PREEMPTED
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun keeps its store
        processes.heed(other)
    finally:
        torch.distributed.destroy_process_group()


def test_refusal_before_training_ends_the_processes_that_wait(data, tmp_path):
    with open(tmp_path / ".lock", "a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with start(long_training(data, tmp_path)) as processes:
            assert [process.wait() for process in processes] == [EXIT_BUSY, EXIT_BUSY]
            assert all("is in use by another run" in process.errors.splitlines()[-1] for process in processes)


def test_refusal_of_one_process_in_training_is_that_of_all_and_of_the_status(data, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    sample = int(epoch_order(36, seed=0, epoch=0)[2])  # the first of the second replica, which process 1 has
    name = f"train/{'abc'[sample // 12]}/{sample % 12:03d}.jpg"
    (broken / name).write_bytes(b"no picture")
    with start(long_training(broken, tmp_path / "out", "DATA.BAD_IMAGES", "fail")) as processes:
        assert [process.wait() for process in processes] == [EXIT_DATA, EXIT_DATA]
        assert all(name in process.errors.splitlines()[-1] for process in processes)
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert status["exit_code"] == EXIT_DATA and name in status["cause"]
