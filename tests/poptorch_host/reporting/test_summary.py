# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What is told about a compiled program."""

import json
import logging

import pytest
import torch
import torch.nn.functional as F
from poptorch_host.compiling.supported_ops import supported
from poptorch_host.reporting.summary import summary

from tests.backend import host_only, poptorch

from ..models import Function, accumulating, trained

pytestmark = host_only("the summary of a program")


class Staged(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = poptorch.BeginBlock(torch.nn.Linear(6, 4), "narrow", ipu_id=0)
        self.second = poptorch.BeginBlock(torch.nn.Linear(4, 2), "sort", ipu_id=1)

    def forward(self, x, labels=None):
        x = self.second(self.first(x).relu_())
        if labels is None:
            return x
        return x, poptorch.identity_loss(F.cross_entropy(x, labels), "none")


def test_summary_of_a_training_program_tells_stages_pipeline_shapes_loss_and_operations():
    program = trained(Staged(), accumulating(5).replicationFactor(2))
    program.compile(torch.ones(20, 6), torch.zeros(20, dtype=torch.int64))
    told = "\n".join(summary(program))
    first, second = (sum(stage.ops.values()) for stage in program.compiled.stages)
    assert f"stages: narrow on IPU 0 ({first} operations), sort on IPU 1 ({second} operations)" in told
    assert "IPUs: 4 in all, 2 in each of 2 replicas" in told
    assert "gradient accumulation 5, at least 3 for 2 stages" in told
    assert "inputs of a call: x float32 [20, 6], labels int64 [20]" in told
    assert "outputs of a micro-batch: float32 [2, 2], float32 []" in told
    assert "loss: marked by identity_loss" in told and "one loss" in told
    kinds = {name.rstrip("_") for name in program.compiled.ops}
    assert f"operations: {len(kinds & supported())} of the {len(supported())} that PopTorch compiles" in told


def test_summary_of_an_inference_program_has_device_iterations_and_no_loss():
    program = poptorch.inferenceModel(Staged(), poptorch.Options().deviceIterations(3))
    program.compile(torch.ones(6, 6))
    told = "\n".join(summary(program))
    assert "device iterations 3, at least 2 for 2 stages" in told and "labels None" in told
    assert "loss" not in told


def test_summary_names_operations_that_are_not_on_the_list():
    program = poptorch.inferenceModel(Function(lambda x: x + torch.arange(6.0).nonzero().sum()))
    program.compile(torch.ones(2, 6))
    assert "aten::nonzero" in "\n".join(summary(program))


@pytest.mark.parametrize("name, folder", [(None, "training"), ("small", "small")])
def test_profiling_writes_the_summary_into_the_folder_of_the_program(tmp_path, name, folder):
    options = accumulating(3).enableProfiling(str(tmp_path))
    program = trained(Staged(), options if name is None else options.modelName(name))
    program.compile(torch.ones(6, 6), torch.zeros(6, dtype=torch.int64))
    assert (tmp_path / folder / "summary.txt").read_text().splitlines() == summary(program)
    assert [path.name for path in tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize("switch", ['"true"', '"True"', "true"])
def test_reports_may_be_asked_for_by_the_environment_and_one_process_writes_them(tmp_path, monkeypatch, switch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POPLAR_ENGINE_OPTIONS", f'{{"autoReport.all": {switch}, "autoReport.directory": "there"}}')
    program = poptorch.inferenceModel(Staged(), poptorch.Options().deviceIterations(2))
    program.compile(torch.ones(6, 6))
    assert (tmp_path / "there" / "inference" / "summary.txt").exists()
    options = poptorch.Options().deviceIterations(2).modelName("other")
    options.Distributed.configureProcessId(1, 2)
    poptorch.inferenceModel(Staged(), options).compile(torch.ones(6, 6))
    assert [path.name for path in tmp_path.rglob("*") if path.is_dir()] == ["there", "inference"]


@pytest.mark.parametrize("text", ["{", "3", '"all"'])
def test_engine_options_of_the_environment_that_are_no_object_are_named(monkeypatch, text):
    monkeypatch.setenv("POPLAR_ENGINE_OPTIONS", text)
    program = poptorch.inferenceModel(Staged(), poptorch.Options().deviceIterations(2))
    with pytest.raises(poptorch.Error, match="POPLAR_ENGINE_OPTIONS"):
        program.compile(torch.ones(6, 6))


def test_program_that_is_not_compiled_has_no_summary():
    with pytest.raises(poptorch.Error, match="not been compiled"):
        summary(poptorch.inferenceModel(Staged()))


@pytest.mark.parametrize(
    "strategy, mode, pipelining",
    [
        (poptorch.PipelinedExecution(), "Pipelined", 1),
        (poptorch.ShardedExecution(), "Sharded", 0),
        (poptorch.SerialPhasedExecution("narrow", "sort"), "Phased", 0),
    ],
)
def test_compiling_logs_for_debugging_where_each_operation_runs(caplog, strategy, mode, pipelining):
    program = poptorch.inferenceModel(Staged(), poptorch.Options().deviceIterations(2).setExecutionStrategy(strategy))
    with caplog.at_level(logging.DEBUG, "poptorch::python"):
        program.compile(torch.ones(2, 6))
    told = [record.getMessage() for record in caplog.records]
    assert told[-4:] == [
        f"enablePipelining set to value {pipelining}",
        f"first/aten::linear -> first/Gemm:0 mode({mode}), ipu(0), stage(0)",
        f"aten::relu_ -> Relu:0 mode({mode}), ipu(0), stage(0)",
        f"second/aten::linear -> second/Gemm:0 mode({mode}), ipu(1), stage(1)",
    ]


def test_operations_have_the_name_scopes_around_them_in_the_log_and_in_the_program(caplog):
    def forward(x):
        with poptorch.NameScope("outer"):
            with poptorch.NameScope("inner"):
                x = x + 1
            x = x * 2
        return x + 1

    program = poptorch.inferenceModel(torch.nn.Sequential(Function(forward)))
    with caplog.at_level(logging.DEBUG, "poptorch::python"):
        program.compile(torch.ones(2))
    told = [record.getMessage() for record in caplog.records]
    for operation in ("0/outer/inner/Add:0", "0/outer/Mul:0", "0/Add:0"):
        assert any(f"-> {operation} mode(Pipelined)" in line for line in told), operation
    names = [operation["name"] for operation in json.loads(program._debugGetPopartIR())["maingraph"]]
    assert [name for name in names if name.endswith(("Add", "Mul"))] == ["0/outer/inner/Add", "0/outer/Mul", "0/Add"]


def test_compiling_logs_no_operations_by_default(caplog):
    poptorch.inferenceModel(Staged(), poptorch.Options().deviceIterations(2)).compile(torch.ones(2, 6))
    assert not caplog.records
