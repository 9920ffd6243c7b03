# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""PopTorch's errors reach a user as one line with the right exit code; anything else keeps its traceback."""

import json

import pytest
import torch

import accelerator
import train_swin
import validate
from common.command_line import run_command
from common.errors import EXIT_RESOURCE, EXIT_USAGE, Refusal
from training import building, evaluation, loop
from training.compiling import LONGEST_MESSAGE, compile_program, errors_refused

SMALL = [
    "--cfg",
    "SWIN_DEMO",
    "--device",
    "cpu",
    "--synthetic",
    "--training-steps",
    "1",
    "--opts",
    "MODEL.SWIN.EMBED_DIM",
    "8",
    "MODEL.SWIN.DEPTHS",
    "[1, 1]",
    "MODEL.SWIN.NUM_HEADS",
    "[1, 2]",
    "IPU.LAYERS_PER_IPU",
    "[2]",
    "DATA.BATCH_SIZE",
    "4",
]


@pytest.fixture(autouse=True)
def host():
    return accelerator.select("cpu")


def error(kind="Error", message="no tile is free", category="poptorch_cpp_error"):
    raised = getattr(accelerator.poptorch(), kind)(message)
    raised.message, raised.type = message, category
    return raised


@pytest.mark.parametrize(
    "raised, code",
    [
        (dict(), EXIT_USAGE),
        (dict(kind="RecoverableError"), EXIT_RESOURCE),
        (dict(kind="UnrecoverableError"), EXIT_RESOURCE),
        (dict(category="poplar_memory_allocation"), EXIT_RESOURCE),
        (dict(message="Out of memory: tile 7"), EXIT_RESOURCE),
    ],
)
def test_compile_errors_are_usage_and_want_of_memory_and_broken_devices_resource(raised, code):
    with pytest.raises(Refusal, match="the small program does not compile: ") as caught:
        with errors_refused("the small program does not compile", EXIT_USAGE):
            raise error(**raised)
    assert caught.value.code == code and isinstance(caught.value.__cause__, accelerator.poptorch().Error)


def test_errors_while_running_are_resource():
    with pytest.raises(Refusal) as caught, errors_refused("the device failed"):
        raise error()
    assert caught.value.code == EXIT_RESOURCE and str(caught.value) == "the device failed: no tile is free"


def test_bare_error_is_told_by_its_text(monkeypatch):
    monkeypatch.setattr(accelerator.poptorch(), "Error", type("Bare", (Exception,), {}))
    with pytest.raises(Refusal, match="it failed: no executable") as caught, errors_refused("it failed", EXIT_USAGE):
        raise accelerator.poptorch().Error("no executable")
    assert caught.value.code == EXIT_USAGE


def test_memory_of_a_gpu_is_a_resource_with_advice():
    with pytest.raises(Refusal, match="CUDA out of memory.*--batch-size") as caught, errors_refused("it failed"):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
    assert caught.value.code == EXIT_RESOURCE and "\n" not in str(caught.value)


@pytest.mark.parametrize("allocate", [lambda: torch.empty(1 << 60, dtype=torch.uint8), lambda: bytearray(1 << 62)])
def test_memory_of_the_host_is_a_resource_with_advice(allocate):
    with pytest.raises(Refusal, match="it failed: .*memory.*--batch-size") as caught, errors_refused("it failed"):
        allocate()
    assert caught.value.code == EXIT_RESOURCE


def test_long_messages_of_many_lines_become_one_short_line():
    with pytest.raises(Refusal) as caught, errors_refused("it failed"):
        raise error(message="first\n  second\n" + "tile 0: full\n" * 1000)
    assert str(caught.value).startswith("it failed: first second tile 0") and "\n" not in str(caught.value)
    assert len(str(caught.value)) < LONGEST_MESSAGE + 50


def test_refusals_and_other_faults_pass_unchanged():
    refusal = Refusal("mine", 5)
    for fault in (refusal, ZeroDivisionError(), RuntimeError("mat1 and mat2")):
        with pytest.raises(type(fault)) as caught, errors_refused("it failed"):
            raise fault
        assert caught.value is fault


def test_program_that_poptorch_does_not_compile_is_refused_and_not_run():
    program = accelerator.poptorch().inferenceModel(Selecting())
    with pytest.raises(Refusal, match="the small program does not compile: aten.index.* by a boolean mask") as caught:
        compile_program(program, "small", [torch.ones(4, 2)])
    assert caught.value.code == EXIT_USAGE and not program.isCompiled()


class Selecting(torch.nn.Module):
    """Its output has as many rows as its input has positive ones."""

    def forward(self, x):
        return x[x > 0]


def ended(capsys, *argv):
    """Exit code and standard error of train_swin.py."""
    code = run_command(lambda: train_swin.main([*SMALL, *argv]))
    return code, capsys.readouterr().err


@pytest.mark.parametrize("mode", [[], ["--compile-only"]])
def test_training_command_refuses_what_does_not_compile(capsys, monkeypatch, mode):
    monkeypatch.setattr(building, "build_pipeline", with_selection(building.build_pipeline))
    code, said = ended(capsys, *mode)
    assert code == EXIT_USAGE and len(said.strip().splitlines()) == 1
    assert "the training program does not compile: aten.index.Tensor by a boolean mask" in said


def with_selection(build_pipeline):
    """The same models, which throw away the logits below zero on their way."""

    def build(*args, **kwargs):
        model = build_pipeline(*args, **kwargs)
        model.head.register_forward_hook(lambda module, inputs, output: output + output[output > 0].sum())
        return model

    return build


def test_training_command_that_loses_its_device_ends_with_6_and_says_so_in_its_folder(capsys, monkeypatch, tmp_path):
    def fail(*args):
        raise error("UnrecoverableError", "IPU 3 does not answer", "poplar_unrecoverable_runtime_error")

    monkeypatch.setattr(loop, "train_step", fail)
    code, said = ended(capsys, "--output", str(tmp_path))
    assert code == EXIT_RESOURCE and said.strip().endswith("the device failed: IPU 3 does not answer")
    assert len(said.strip().splitlines()) == 1
    assert json.loads((tmp_path / "status.json").read_text())["exit_code"] == EXIT_RESOURCE


def test_validation_command_that_loses_its_device_ends_with_6(capsys, monkeypatch):
    def fail(*args):
        raise error("RecoverableError", "IPU 3 does not answer")

    monkeypatch.setattr(evaluation.checkpoint, "load_own", lambda path, foreign: None)
    monkeypatch.setattr(evaluation, "validate_weights", fail)
    argv = ["--cfg", "SWIN_DEMO", "--device", "cpu", "--checkpoint", "none.pth"]
    assert run_command(lambda: validate.main(argv)) == EXIT_RESOURCE
    assert capsys.readouterr().err.strip().endswith("the device failed: IPU 3 does not answer")
