# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""--compile-only: every named configuration passes every check of PopTorch's compiler, and what does not is refused."""

import contextlib
import re

import pytest
import torch

import accelerator
import train_swin
from common.command_line import run_command
from common.errors import EXIT_DATA, EXIT_USAGE, Refusal
from common.launch import Launch
from config import get_config, named_configs
from tests.data_sets import write_folders
from training import building, compile_only

SMALL = [
    "--cfg",
    "SWIN_DEMO",
    "--device",
    "cpu",
    "--compile-only",
    "--opts",
    "MODEL.SWIN.EMBED_DIM",
    "8",
    "MODEL.SWIN.DEPTHS",
    "[1, 1]",
    "MODEL.SWIN.NUM_HEADS",
    "[1, 2]",
    "IPU.LAYERS_PER_IPU",
    "[1, 1]",
    "DATA.BATCH_SIZE",
    "2",
    "TRAIN.ACCUMULATION_STEPS",
    "3",
]


def said_of(program, text):
    """What the log told of one of the two programs."""
    return "\n".join(line for line in text.splitlines() if f" {program} program: " in line)


def ipus_of_stages(program):
    """The IPU of each stage that was compiled, in the stages' order."""
    return [int(ipu) for ipu in re.findall(r" on IPU (\d+) \(", program)]


@pytest.mark.parametrize("name", named_configs())
def test_every_named_configuration_compiles_for_training_and_validation(name, capsys):
    config = get_config(name)
    train_swin.main(["--cfg", name, "--compile-only", "--device", "cpu", "--num-workers", "0"])
    text = capsys.readouterr().out
    training, validation = said_of("training", text), said_of("validation", text)
    stages, size = len(config.IPU.LAYERS_PER_IPU), config.DATA.IMG_SIZE
    classes, micro_batch = 21841 if "22K_PRETRAIN" in name else 1000, config.DATA.BATCH_SIZE
    for program in (training, validation):
        assert ipus_of_stages(program) == list(range(stages))
        assert re.search(rf"images \w+ \[\d+, 3, {size}, {size}\]", program)
        assert re.search(r"operations: \d+ of the \d+ that PopTorch compiles$", program, re.MULTILINE)
        assert f"outputs of a micro-batch: float32 [{micro_batch}, {classes}]" in program
    assert f"gradient accumulation {config.TRAIN.ACCUMULATION_STEPS}, at least {2 * stages - 1}" in training
    assert f"float32 [{micro_batch}, {classes}], float32 []" in training and "loss: marked by identity_loss" in training
    assert "loss" not in validation
    assert (
        text.strip()
        .splitlines()[-1]
        .endswith(f"compile-only: both programs of {config.MODEL.NAME} compile; nothing was trained or written")
    )


@pytest.mark.parametrize(
    "precision, dtype", [("16.16", "float16"), ("16.32", "float16"), ("32.32", "float32"), ("mix", "float32")]
)
def test_every_precision_compiles(precision, dtype, capsys):
    train_swin.main([*SMALL, "--precision", precision])
    assert f"images {dtype} [6, 3, 16, 16]" in said_of("training", capsys.readouterr().out)


def test_stages_of_a_folded_pipeline_are_on_the_ipus_of_the_mapping(capsys):
    layers, mapping = [0.5, 0.5, 0.5, 0.5], [0, 1, 0, 2, 1]
    train_swin.main([*SMALL, "IPU.LAYERS_PER_IPU", str(layers), "IPU.MAPPING", str(mapping), "--ga", "9"])
    text = capsys.readouterr().out
    assert ipus_of_stages(said_of("training", text)) == ipus_of_stages(said_of("validation", text)) == mapping


def test_bytes_as_input_compile(capsys):
    train_swin.main([*SMALL, "DATA.INPUT_DTYPE", "uint8"])
    assert "images uint8 [6, 3, 16, 16]" in said_of("training", capsys.readouterr().out)


def test_nothing_is_written_and_no_weights_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    built = []
    build_run = building.build_run
    monkeypatch.setattr(compile_only, "build_run", lambda *args: built.append(build_run(*args)) or built[0])
    train_swin.main([*SMALL, "--output", "out"])
    assert list(tmp_path.iterdir()) == []
    assert {parameter.device.type for parameter in built[0].model.parameters()} == {"meta"}
    with pytest.raises(AssertionError, match="meta"):
        built[0].trainer(torch.zeros(6, 3, 16, 16), torch.zeros(6, dtype=torch.int64))


def test_data_set_that_is_named_is_looked_at(tmp_path, capsys):
    write_folders(tmp_path, {"train": {"a": 4, "b": 4}, "validation": {"a": 1, "b": 1}})
    train_swin.main([*SMALL, "--data-path", str(tmp_path)])
    assert "outputs of a micro-batch: float32 [2, 2], float32 []" in capsys.readouterr().out
    with pytest.raises(Refusal) as caught:
        train_swin.main([*SMALL, "--data-path", str(tmp_path / "none")])
    assert caught.value.code == EXIT_DATA


def test_weights_that_are_named_are_looked_at(tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(Refusal) as caught:
        train_swin.main([*SMALL, "--pretrained-model", str(tmp_path / "broken.pth")])
    assert caught.value.code == EXIT_DATA


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_built_afterwards_has_values_again(fails):
    with pytest.raises(Refusal) if fails else contextlib.nullcontext():
        train_swin.main([*SMALL, *(["--pretrained-model", "none.pth"] if fails else [])])
    program = accelerator.poptorch().inferenceModel(torch.nn.Linear(2, 1))
    assert program(torch.ones(3, 2)).shape == (3, 1) and not accelerator.selected().blank


@pytest.mark.parametrize(
    "replicas, share",
    [(16, Launch(0, 2, 16, 8)), (8, Launch(0, 1, 8, 8)), (9, Launch(0, 3, 9, 3)), (11, Launch(0, 11, 11, 1))],
)
def test_replicas_that_one_process_cannot_have_are_shared(replicas, share):
    config = get_config("SWIN_BASE")
    assert compile_only._share_of_one(config, Launch(0, 1, replicas, replicas)) == share


def test_process_of_several_keeps_its_share():
    launch = Launch(1, 2, 32, 16)
    assert compile_only._share_of_one(get_config("SWIN_BASE"), launch) == launch


def test_processes_that_share_a_model_have_nothing_to_compile():
    with pytest.raises(Refusal, match="HOST_PIPELINE") as caught:
        compile_only.compile_only(get_config("SWIN_TINY"), Launch(0, 2, 4, 4, stages=2))
    assert caught.value.code == EXIT_USAGE


def refused(capsys, *argv):
    """The line that the command ends with; it has to be one, with exit code 2."""
    code = run_command(lambda: train_swin.main([*SMALL, *argv]))
    said = capsys.readouterr().err.strip()
    assert code == EXIT_USAGE and len(said.splitlines()) == 1
    return said


def test_accumulation_below_the_pipelines_need_is_refused(capsys):
    assert re.search(r"2 pipeline stages.* 3", refused(capsys, "TRAIN.ACCUMULATION_STEPS", "2"))


def test_accumulation_that_only_the_compiler_sees_to_be_too_small_is_refused(capsys, monkeypatch):
    training_options = building.training_options

    def too_few(config, launch):
        options = training_options(config, launch)
        options.Training.gradientAccumulation(2)
        return options

    monkeypatch.setattr(building, "training_options", too_few)
    said = refused(capsys)
    assert "the training program does not compile" in said and "(3) when using poptorch.Pipelined" in said


@pytest.mark.parametrize(
    "program, hook, named",
    [
        ("training", lambda module, _, output: output + output.tril(), "aten::tril"),
        ("training", lambda module, _, output: output * output.max().item(), "aten::_local_scalar_dense"),
        ("training", lambda module, _, output: output + torch.unique(output.round()).sum(), "aten::_unique2"),
        ("validation", lambda module, _, output: output if module.training else output.tril(), "aten::tril"),
    ],
)
def test_operation_that_poptorch_lacks_is_refused_by_name(capsys, monkeypatch, program, hook, named):
    build_pipeline = building.build_pipeline

    def build(*args, **kwargs):
        model = build_pipeline(*args, **kwargs)
        model.head.register_forward_hook(hook)
        return model

    monkeypatch.setattr(building, "build_pipeline", build)
    said = refused(capsys)
    assert f"the {program} program does not compile" in said and named in said


class Device:
    """An IPU as far as --compile-only sees it: what compiles attaches, and only one program can be attached."""

    def __init__(self):
        self.calls = []
        self.attached = None

    def program(self, name, options):
        device = self

        class Program:
            def isCompiled(self):
                return f"{name} compiled" in device.calls

            def isAttachedToDevice(self):
                return device.attached == name

            def detachFromDevice(self):
                device.attached = None

            def compile(self, *inputs):
                assert device.attached is None, "two programs on one device"
                assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in inputs)
                device.attached = name
                device.calls.append(f"{name} compiled")

        Program.options = options
        return Program()


def test_ipus_compile_both_programs_in_turn(monkeypatch, capsys):
    """With the host's package in the place of the SDK's, and executors that only note what they are asked to do."""
    device, host = Device(), accelerator.select("cpu")
    monkeypatch.setattr(accelerator, "_selected", host)  # put back afterwards
    monkeypatch.setattr(accelerator, "_sdk", lambda: accelerator.Accelerator("ipu", host.poptorch, None))
    monkeypatch.setattr(host.poptorch, "trainingModel", lambda model, options, _: device.program("training", options))
    monkeypatch.setattr(host.poptorch, "inferenceModel", lambda model, options: device.program("validation", options))
    train_swin.main([*SMALL, "DATA.LOADER", "sync", "--device", "ipu"])
    assert device.calls == ["training compiled", "validation compiled"]
    assert capsys.readouterr().out.strip().splitlines()[-1].endswith("nothing was trained or written")
