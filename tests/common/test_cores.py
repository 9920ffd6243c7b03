# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""How many cores a process may use, and how many of them compute the model."""

import os

import pytest
import torch

import accelerator
from common import cores
from common.cores import model_threads, usable_cores

MINE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    "quota, usable",
    [("max 100000", MINE), ("100000 100000", 1), ("50000 100000", 1), ("99900000 100000", MINE), ("nonsense", MINE)],
)
def test_quota_of_a_container_limits_the_cores(quota, usable, tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert usable_cores() == usable


@pytest.mark.parametrize("count, cpu, gpu", [(1, 1, 1), (2, 2, 1), (7, 7, 1), (8, 7, 1), (16, 14, 2), (64, 56, 8)])
def test_one_core_of_eight_is_left_to_data_workers(count, cpu, gpu):
    assert (model_threads(count, on_gpu=False), model_threads(count, on_gpu=True)) == (cpu, gpu)


@pytest.mark.parametrize("value, warns", [("true", True), ("close", True), ("false", False), ("", False)])
def test_binding_of_threads_is_warned_of_since_it_binds_data_workers(value, warns, monkeypatch, caplog):
    accelerator.select("cpu")
    monkeypatch.setenv("OMP_PROC_BIND", value)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    accelerator.choose_threads()
    assert ("OMP_PROC_BIND binds all data workers to the core" in caplog.text) is warns


@pytest.mark.parametrize(
    "omp, threads, said",
    [
        ("", 7, "7 of 8 usable cores"),
        ("3", 2, "from OMP_NUM_THREADS"),
        (" +03, 2", 2, "from OMP_NUM_THREADS"),
        *(
            (value, 7, f"OMP_NUM_THREADS={value} is not a positive number")
            for value in ("0", "-1", "many", "3,0", "3,")
        ),
    ],
)
def test_threads_are_chosen_and_logged_unless_openmp_goes_by_the_environment(omp, threads, said, monkeypatch, caplog):
    accelerator.select("cpu")
    chosen = [2 if "3" in omp and threads == 2 else 16]
    monkeypatch.setenv("OMP_NUM_THREADS", omp)
    monkeypatch.setattr(accelerator, "usable_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    with caplog.at_level("INFO"):
        accelerator.choose_threads()
    assert chosen[-1] == threads and said in caplog.text
