# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""HOST_PIPELINE=1: stages in processes of their own train the weights of the unstaged model; only activations cross.

All runs here weigh the classes, and average the weights (EMA).
"""

import importlib.util
import re

import pytest
import torch

import accelerator
from common.errors import EXIT_USAGE, Refusal
from config import get_config
from models.build import build_pipeline
from models.stages import SwinStage, units_of_stages
from planning.placement import pipeline_stages
from tests.data_sets import write_uneven
from tests.runs import assert_same_run
from tests.training.distributed_program import run_job
from tests.training.test_distributed import OPTS, run_jobs, state_of, training
from training import host_pipeline, processes

HAS_PIPELINING = importlib.util.find_spec("torch.distributed.pipelining") is not None
needs_pipelining = pytest.mark.skipif(not HAS_PIPELINING, reason="this PyTorch has no torch.distributed.pipelining")
pytestmark = pytest.mark.xdist_group("torchrun")

# Three blocks, of which the middle one is shared by the two stages: its MLP begins the second.
STAGED = ["MODEL.SWIN.DEPTHS", "[1, 2]", "IPU.LAYERS_PER_IPU", "[1.5, 1.5]", "TRAIN.CLASS_WEIGHTS", "[0.5, 1, 2]"]
PLAIN = [*STAGED, "MODEL.DROP_PATH_RATE", "0.0"]
WHOLE = [*PLAIN, "IPU.LAYERS_PER_IPU", "[1, 2]"]  # no block is split, whose hooks would have it round in another way
SGD = [*PLAIN, "TRAIN.OPTIMIZER.NAME", "sgd", "TRAIN.CLIP_GRAD", "0.05", "TRAIN.BASE_LR", "20.0"]
TWICE = [*PLAIN, "TRAIN.CLIP_GRAD", "0.5", "TRAIN.BASE_LR", "0.2", "IPU.DEVICE_ITERATIONS", "2"]
FOUR = [*SGD, "IPU.LAYERS_PER_IPU", "[0.5, 1, 1, 0.5]"]
ONE = ["--ga", "3", "--replicas", "1"]
TWO = ["--ga", "3", "--replicas", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_uneven(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def pipeline(data, folder):
    """What the two stages of one pipeline noted of each job."""
    jobs = [
        training("staged", data, folder, *ONE, opts=SGD),
        training("mixed", data, folder, *ONE, "--precision", "mix", opts=WHOLE),
        training("unbroken", data, folder, *ONE, opts=STAGED),
        training("resumed", data, folder, *ONE, "--training-steps", "4", opts=STAGED),
        {**training("resumed", data, folder, *ONE, opts=STAGED), "name": "rest"},
        training("moved", data, folder, *ONE, "--training-steps", "4", opts=SGD),
        training("three", data, folder, *TWO, "--ga", "5", opts=[*PLAIN, "IPU.LAYERS_PER_IPU", "[1, 1, 1]"]),
    ]
    return run_jobs(folder, [{**job, "pipeline": "1"} for job in jobs], launched=False)


@pytest.fixture(scope="module")
def pipelines(data, folder):
    """What four processes noted: as two pipelines of two stages, and as one of four."""
    jobs = [
        training("instances", data, folder, *TWO, opts=TWICE),
        training("four", data, folder, *ONE, "--ga", "7", opts=FOUR),
    ]
    return run_jobs(folder, [{**job, "pipeline": "1"} for job in jobs], 4, launched=False)


def train_alone(name, data, folder, *more, opts):
    """The same in one process, without stages; returns its checkpoint."""
    noted = run_job(training(name, data, folder, *more, opts=opts))
    assert noted["code"] == 0, noted["errors"]
    return state_of(folder, name)


def assert_same_weights(staged, alone, tolerance):
    """Two checkpoints hold the same to rounding, and rounding is little beside what training did."""
    for part in (
        lambda state: state["model"],
        lambda state: state["ema"],
        lambda state: state["optimizer"]["ipu_state"],
    ):
        assert part(staged).keys() == part(alone).keys()
        for name, tensor in part(alone).items():
            torch.testing.assert_close(part(staged)[name], tensor, rtol=1e-3, atol=tolerance)
    moved = max((tensor - other).abs().max() for tensor, other in zip(alone["model"].values(), fresh().values()))
    assert moved > 100 * tolerance


def fresh():
    """The weights with which all runs here begin."""
    torch.manual_seed(0)
    return build_pipeline(small(), 3).state_dict()


def small(*opts):
    return get_config("SWIN_DEMO", [*OPTS, "TRAIN.ACCUMULATION_STEPS", "7", *PLAIN, *opts])


# What is computed.


@needs_pipelining
def test_stages_train_the_weights_of_the_unstaged_model_clipped_by_the_norm_of_all(pipeline, data, folder):
    assert [process["code"] for process in pipeline["staged"]] == [0, 0], pipeline["staged"][0]["errors"]
    alone = train_alone("alone", data, folder, *ONE, opts=SGD)
    assert_same_weights(state_of(folder, "staged"), alone, 1e-5)
    staged = state_of(folder, "staged")["progress"]["epochs"]
    for left, right in zip(staged, alone["progress"]["epochs"]):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4)
        assert (left["top1"], left["ema_top1"]) == (right["top1"], right["ema_top1"])


@needs_pipelining
def test_pipelines_beside_each_other_train_the_weights_of_one_process_with_all_replicas(pipelines, data, folder):
    assert [process["code"] for process in pipelines["instances"]] == [0] * 4, pipelines["instances"][0]["errors"]
    assert_same_weights(state_of(folder, "instances"), train_alone("both", data, folder, *TWO, opts=TWICE), 1e-5)


@needs_pipelining
def test_stages_between_the_first_and_the_last_train_as_well(pipelines, data, folder):
    assert [process["code"] for process in pipelines["four"]] == [0] * 4, pipelines["four"][0]["errors"]
    alone = train_alone("unstaged", data, folder, *ONE, "--ga", "7", opts=FOUR)
    assert_same_weights(state_of(folder, "four"), alone, 1e-5)


@needs_pipelining
def test_autocast_reaches_every_stage(pipeline, data, folder):
    assert [process["code"] for process in pipeline["mixed"]] == [0, 0], pipeline["mixed"][0]["errors"]
    alone = train_alone("mixed alone", data, folder, *ONE, "--precision", "mix", opts=WHOLE)
    plain = train_alone("plain alone", data, folder, *ONE, opts=WHOLE)

    def difference(state):
        staged = state_of(folder, "mixed")["progress"]["epochs"][-1]["loss"]
        return abs(staged - state["progress"]["epochs"][-1]["loss"])

    assert difference(alone) < 1e-6 < difference(plain)


@needs_pipelining
def test_resumed_pipeline_ends_as_the_unbroken_one_masks_included(pipeline, folder):
    assert [process["code"] for process in pipeline["rest"]] == [0, 0], pipeline["rest"][0]["errors"]
    unbroken = state_of(folder, "unbroken")
    assert_same_run(state_of(folder, "resumed"), unbroken)
    assert unbroken["rng_states"][0] != unbroken["rng_states"][1]


@needs_pipelining
def test_run_begun_in_a_pipeline_goes_on_without(pipeline, data, folder):
    assert pipeline["moved"][0]["code"] == 0
    assert_same_weights(train_alone("moved", data, folder, *ONE, opts=SGD), state_of(folder, "staged"), 1e-5)


# What goes where.


@needs_pipelining
def test_each_process_trains_the_weights_of_its_stage_alone(pipeline):
    first, second = (process["weights"] for process in pipeline["staged"])
    assert sorted([*first, *second]) == sorted(fresh())
    assert "patch_embed.proj.weight" in first and "head.weight" in second
    assert "layers.1.blocks.0.attn.qkv.weight" in first and "layers.1.blocks.0.mlp.fc1.weight" in second


@needs_pipelining
def test_activations_and_their_gradients_are_all_that_crosses(pipeline):
    activation = [2, 4, 4, 32]  # micro-batch, tokens, width of the second layer
    micro_batches = 2 * 6 * 3
    for process in pipeline["staged"]:
        assert process["sent"] == [activation] * micro_batches
        assert {tuple(shape) for shape in process["summed"]} == {(), (2,)}  # the norm; the loss and a stop request


@needs_pipelining
def test_processes_of_a_pipeline_read_the_same_samples_and_pipelines_share_them(pipelines, data, folder):
    first, second, third, fourth = (process["batches"] for process in pipelines["instances"])
    assert first == second and third == fourth and not set(first) & set(third)


# Cutting a model.


@pytest.mark.parametrize(
    "opts",
    [
        ["IPU.LAYERS_PER_IPU", "[1.5, 1.5]"],
        ["IPU.LAYERS_PER_IPU", "[0.5, 1, 1, 0.5]", "MODEL.SWIN.APE", "True"],
        ["IPU.LAYERS_PER_IPU", "[1, 2]", "IPU.MAPPING", "[0, 1, 2]", "MODEL.SWIN.PATCH_NORM", "False"],
        ["IPU.LAYERS_PER_IPU", "[3]", "DATA.INPUT_DTYPE", "uint8"],
    ],
)
def test_stages_one_after_the_other_are_the_model(opts):
    config = small(*opts)
    model = build_pipeline(config, 3).eval()
    stages = [SwinStage(model, units).eval() for units in units_of_stages(model, pipeline_stages(config))]
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    x = images = images if config.DATA.INPUT_DTYPE == "uint8" else images.float() / 255
    for stage in stages:
        x = stage(x)
    torch.testing.assert_close(x, model(images), rtol=1e-6, atol=1e-6)  # a block that is split rounds in another way
    parameters = [name for stage in stages for name, _ in stage.part.named_parameters()]
    assert len(stages) == len(pipeline_stages(config)) and sorted(parameters) == sorted(model.state_dict())


def test_stage_has_weights_of_its_own():
    model = build_pipeline(small(), 3)
    stage = SwinStage(model, ["norm", "head"])
    with torch.no_grad():
        stage.part.head.weight.zero_()
    assert model.head.weight.any() and model.get_submodule("layers.1.blocks.0").attn.qkv.weight.any()


# Refusals.


def refusal(monkeypatch, *opts, value="1", device="cpu"):
    monkeypatch.setenv("HOST_PIPELINE", value)
    monkeypatch.setattr(accelerator, "_selected", None)
    accelerator.select("cpu")
    if device == "ipu":
        monkeypatch.setattr(accelerator, "is_ipu", lambda: True)
    config = small(*opts)
    with pytest.raises(Refusal) as caught, processes.joined(config, host_pipeline.stages(config)):
        pass
    assert caught.value.code == EXIT_USAGE and "\n" not in str(caught.value)
    return str(caught.value)


@needs_pipelining
def test_process_count_that_is_no_multiple_of_the_stages_is_refused_in_every_process(pipeline):
    for process in pipeline["three"]:
        assert process["code"] == EXIT_USAGE
        assert re.search("2 processes cannot run the 3 stages", process["errors"])


@needs_pipelining
def test_stages_without_processes_are_refused(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert "1 process cannot run the 2 stages" in refusal(monkeypatch)


@needs_pipelining
@pytest.mark.parametrize("precision", ["16.16", "16.32"])
def test_emulated_precision_is_refused(monkeypatch, precision):
    assert f"MODEL.PRECISION {precision}" in refusal(monkeypatch, "MODEL.PRECISION", precision)


def test_ipus_and_unknown_values_are_refused(monkeypatch):
    assert "HOST_PIPELINE=1 is for CPUs and GPUs" in refusal(monkeypatch, device="ipu")
    assert "HOST_PIPELINE=yes" in refusal(monkeypatch, value="yes")


@pytest.mark.skipif(HAS_PIPELINING, reason="this PyTorch has torch.distributed.pipelining")
def test_pytorch_without_pipelining_is_refused(monkeypatch):
    assert "PyTorch 2.5 or later" in refusal(monkeypatch)


def test_too_few_micro_batches_for_the_stages_are_refused():
    with pytest.raises(Refusal, match="at least 3"):
        small("TRAIN.ACCUMULATION_STEPS", "2")
