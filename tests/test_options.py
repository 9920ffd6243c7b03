# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What the device is told: every named configuration, in training and in inference."""

import pickle

import pytest

import accelerator
from common.launch import Launch
from config import get_config, named_configs
from options import inference_options, training_options
from tests.backend import DEVICE

ALONE = Launch(0, 1, 4, 4)


@pytest.fixture(autouse=True)
def device():
    accelerator.select(DEVICE)


def enum(name):
    return getattr(accelerator.poptorch(), name)


@pytest.mark.parametrize("name", named_configs())
def test_training_options_follow_the_configuration(name):
    config = get_config(name)
    replicas = config.IPU.REPLICAS
    options = training_options(config, Launch(0, 1, replicas, replicas))
    assert options.device_iterations == config.IPU.DEVICE_ITERATIONS
    assert options.replication_factor == replicas
    assert options.Training.gradient_accumulation == config.TRAIN.ACCUMULATION_STEPS
    assert options.Training.accumulation_and_replication_reduction_type == enum("ReductionType").Mean
    assert options.output_mode == enum("OutputMode").Sum
    assert options.random_seed == config.SEED
    ipus = len(config.IPU.LAYERS_PER_IPU)
    assert options.available_memory_proportion == dict.fromkeys(range(ipus), config.IPU.AVAILABLE_MEMORY_PROPORTION)


@pytest.mark.parametrize(
    "precision, strategy, rounding",
    [("16.16", "Running", True), ("16.32", "Post", False), ("32.32", "Post", False), ("mix", "Post", False)],
)
def test_half_weights_get_running_means_and_stochastic_rounding(precision, strategy, rounding):
    options = training_options(get_config("SWIN_TINY", ["MODEL.PRECISION", precision]), ALONE)
    found = options.Training.meanAccumulationAndReplicationReductionStrategy
    assert found == enum("MeanReductionStrategy")[strategy]
    assert options._Popart.options["enableStochasticRounding"] is rounding


def test_inference_fills_the_pipeline_returns_everything_and_rounds_nothing():
    options = inference_options(get_config("SWIN_BASE"), ALONE)
    assert options.device_iterations == 8
    assert options.Training.gradient_accumulation == 1
    assert options.output_mode == enum("OutputMode").All
    assert options._Popart.options["enableStochasticRounding"] is False


def test_more_inference_iterations_than_stages_are_kept():
    config = get_config("SWIN_BASE", ["IPU.INFERENCE_DEVICE_ITERATIONS", "20"])
    assert inference_options(config, ALONE).device_iterations == 20


@pytest.mark.parametrize("local_replicas, sharded", [(1, False), (2, True)])
def test_optimizer_state_is_sharded_over_replicas_only(local_replicas, sharded, caplog):
    config = get_config("SWIN_TINY", ["IPU.REPLICATED_TENSOR_SHARDING", "True"])
    options = training_options(config, Launch(0, 1, local_replicas, local_replicas))
    assert ("IPU.REPLICATED_TENSOR_SHARDING has no effect" in caplog.text) is not sharded
    location = options.toDict().get("location_optimizer")
    assert location == (
        {"useReplicatedTensorSharding": 1, "onChip": 1, "minElementsForReplicatedTensorSharding": local_replicas}
        if sharded
        else None
    )


def test_executables_are_cached_in_a_folder_of_the_configuration(tmp_path):
    config = get_config("SWIN_TINY_FP16", ["IPU.EXECUTABLE_CACHE", str(tmp_path)])
    path = training_options(config, ALONE)._Popart.options["cachePath"]
    assert path == str(tmp_path / "swin_tiny_patch4_window7_224-16.16")


@pytest.mark.parametrize("device, process, shown", [("cpu", 0, False), ("ipu", 0, True), ("ipu", 1, False)])
def test_progress_of_a_compilation_is_shown_by_the_leader_of_ipu_processes(monkeypatch, device, process, shown):
    monkeypatch.setattr(accelerator, "is_ipu", lambda: device == "ipu")
    options = training_options(get_config("SWIN_TINY"), Launch(process, 2, 4, 2))
    assert ("compilation_progress_bar_fn" in options.toDict()) is shown


@pytest.mark.parametrize("build", [training_options, inference_options])
def test_options_of_a_folded_pipeline_can_be_handed_to_the_process_of_a_loader(build):
    config = get_config("SWIN_TINY", ["IPU.LAYERS_PER_IPU", "[2, 4, 6]", "IPU.MAPPING", "[0, 1, 0]"])
    options = build(config, ALONE)
    assert pickle.loads(pickle.dumps(options))._Popart.options == options._Popart.options


def test_processes_are_told_their_place():
    options = training_options(get_config("SWIN_TINY"), Launch(1, 2, 4, 2))
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (1, 2)
    assert options.replication_factor == 2


def test_large_fine_tuning_sets_what_popart_needs():
    popart = training_options(get_config("SWIN_LARGE_224_22K_FINETUNE_1K_FP16_POD16"), ALONE)._Popart.options
    for key in (
        "disableGradAccumulationTensorStreams",
        "replicatedCollectivesSettings.mergeAllReduceCollectives",
        "accumulateOuterFragmentSettings.schedule",
        "subgraphCopyingStrategy",
    ):
        assert popart[key]


def test_partials_recomputation_and_generated_data_have_their_keys():
    config = get_config(
        "SWIN_TINY",
        ["IPU.PARTIALS", "half", "IPU.RECOMPUTATION", "False", "DATA.DATASET", "generated", "DATA.GENERATED", "device"],
    )
    popart = training_options(config, ALONE)._Popart.options
    assert popart["partialsTypeMatMuls"] == "half"
    assert popart["autoRecomputation"] == 0
    assert popart["syntheticDataMode"] == 2
