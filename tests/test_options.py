# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What the device is told: every named configuration, in training and in inference."""

import pickle

import pytest

import accelerator
from common.errors import Refusal
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
def test_optimizer_state_and_collectives_are_of_replicas_that_share(local_replicas, sharded, caplog):
    config = get_config("SWIN_TINY", ["IPU.REPLICATED_TENSOR_SHARDING", "True"])
    options = training_options(config, Launch(0, 1, local_replicas, local_replicas))
    assert ("IPU.REPLICATED_TENSOR_SHARDING has no effect" in caplog.text) is not sharded
    assert location(options)["useReplicatedTensorSharding"] == sharded
    merged = {key for key in options._Popart.options if key.startswith("replicatedCollectivesSettings.")}
    assert bool(merged) is sharded


def location(options):
    return options.toDict()["location_optimizer"]


def test_biases_stay_whole_and_the_threshold_of_sharding_is_a_key():
    opts = ["IPU.REPLICATED_TENSOR_SHARDING", "True"]
    assert location(training_options(get_config("SWIN_TINY", opts), ALONE)) == {
        "useReplicatedTensorSharding": 1,
        "onChip": 1,
        "minElementsForReplicatedTensorSharding": 1024,
    }
    opts += ["IPU.SHARDING_MIN_ELEMENTS", "4"]
    found = location(training_options(get_config("SWIN_TINY", opts), ALONE))
    assert found["minElementsForReplicatedTensorSharding"] == 4


@pytest.mark.parametrize("off_chip, on_chip", [("True", 0), ("False", 1)])
def test_optimizer_state_can_wait_off_chip(off_chip, on_chip):
    config = get_config("SWIN_TINY", ["IPU.OPTIMIZER_STATE_OFF_CHIP", off_chip])
    assert location(training_options(config, ALONE))["onChip"] == on_chip


@pytest.mark.parametrize("build", [training_options, inference_options])
def test_each_ipu_can_have_its_own_share_of_memory_for_temporaries(build):
    opts = ["IPU.LAYERS_PER_IPU", "[6, 6]", "IPU.AVAILABLE_MEMORY_PROPORTION", "[0.15, 0.4]"]
    assert build(get_config("SWIN_TINY", opts), ALONE).available_memory_proportion == {0: 0.15, 1: 0.4}


@pytest.mark.parametrize("build", [training_options, inference_options])
def test_executables_are_cached_in_a_folder_of_the_configuration(build, tmp_path):
    config = get_config("SWIN_TINY_FP16", ["IPU.EXECUTABLE_CACHE", str(tmp_path)])
    popart = build(config, ALONE)._Popart.options
    assert popart["cachePath"] == str(tmp_path / "swin_tiny_patch4_window7_224-16.16")
    assert popart["enableEngineCaching"] is True


@pytest.mark.parametrize(
    "ipu, output, cache, found",
    [
        (True, "out", "auto", "out/first/executables/swin_tiny_patch4_window7_224-32.32"),
        (True, "out", "", None),
        (True, "", "auto", None),
        (False, "out", "auto", None),
    ],
)
def test_cache_of_an_ipu_is_in_the_output_folder_unless_told_otherwise(ipu, output, cache, found, monkeypatch):
    monkeypatch.setattr(accelerator, "is_ipu", lambda: ipu)
    config = get_config("SWIN_TINY", ["OUTPUT", output, "TAG", "first", "IPU.EXECUTABLE_CACHE", cache])
    assert training_options(config, ALONE)._Popart.options.get("cachePath") == found


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


@pytest.mark.parametrize(
    "layers, recompute, found",
    [("[12]", "True", 4), ("[6, 6]", "True", None), ("[12]", "False", 0), ("[6, 6]", "False", 0)],
)
def test_one_ipu_is_told_to_recompute_what_pipelines_recompute_by_themselves(layers, recompute, found):
    config = get_config("SWIN_TINY", ["IPU.LAYERS_PER_IPU", layers, "IPU.RECOMPUTATION", recompute])
    assert training_options(config, ALONE)._Popart.options.get("autoRecomputation") == found


POPART_DEFAULTS = {
    "disableGradAccumulationTensorStreams": True,
    "accumulateOuterFragmentSettings.schedule": 3,
    "subgraphCopyingStrategy": 1,
    "scheduleNonWeightUpdateGradientConsumersEarly": True,
    "patterns": {"TiedGather": True, "TiedGatherAccumulate": True, "UpdateInplacePrioritiesForIpu": True},
    "patterns_level": 2,
}


@pytest.mark.parametrize(
    "key, value, changed",
    [
        (None, None, {}),
        ("OUTER_FRAGMENT", "False", {"accumulateOuterFragmentSettings.schedule": None}),
        ("OUTER_FRAGMENT_FOR", "cycles", {"accumulateOuterFragmentSettings.schedule": 2}),
        ("OUTER_FRAGMENT_EXCLUDED", "[0, 2]", {"accumulateOuterFragmentSettings.excludedVirtualGraphs": ["0", "2"]}),
        ("COPY_JUST_IN_TIME", "False", {"subgraphCopyingStrategy": None}),
        ("EARLY_GRADIENT_CONSUMERS", "False", {"scheduleNonWeightUpdateGradientConsumersEarly": None}),
        ("PATTERNS", "['-TiedGather', 'OpToIdentity']", {"patterns": {"TiedGather": False, "OpToIdentity": True}}),
        ("PATTERNS", "[]", {"patterns": None, "patterns_level": None}),
    ],
)
def test_popart_gets_what_the_keys_say_and_inference_none_of_it(key, value, changed):
    config = get_config("SWIN_TINY", [f"IPU.POPART.{key}", value] if key else [])
    expected = {**POPART_DEFAULTS, **changed}
    for name, setting in expected.items():
        assert training_options(config, ALONE)._Popart.options.get(name) == setting
        assert name not in inference_options(config, ALONE)._Popart.options


def test_engine_gets_the_loader_the_synchronization_and_the_profile_of_the_keys(tmp_path):
    def engine(*opts):
        return training_options(get_config("SWIN_TINY", opts), ALONE)._Popart.options["engineOptions"]

    assert engine() == {"opt.useAutoloader": "true", "target.syncReplicasIndependently": "true"}
    opts = ["IPU.ENGINE.AUTOLOADER", "False", "IPU.ENGINE.INDEPENDENT_REPLICAS", "False"]
    assert engine(*opts, "IPU.ENGINE.PROFILE_FOLDER", str(tmp_path)) == {
        "opt.useAutoloader": "false",
        "target.syncReplicasIndependently": "false",
        "debug.allowOutOfMemory": "true",
        "autoReport.directory": str(tmp_path),
        "autoReport.all": "true",
    }


def test_large_fine_tuning_shards_and_keeps_the_first_ipu_out_of_the_overlap():
    options = training_options(get_config("SWIN_LARGE_224_22K_FINETUNE_1K_FP16_POD16"), ALONE)
    assert location(options)["useReplicatedTensorSharding"] == 1
    assert options._Popart.options["replicatedCollectivesSettings.mergeAllReduceCollectives"] is True
    assert options._Popart.options["accumulateOuterFragmentSettings.excludedVirtualGraphs"] == ["0"]


def test_half_partials_and_data_generated_on_the_device_have_their_keys():
    opts = ["MODEL.PRECISION", "16.16", "IPU.PARTIALS", "half"]
    config = get_config("SWIN_TINY", [*opts, "DATA.DATASET", "generated", "DATA.GENERATED", "device"])
    popart = training_options(config, ALONE)._Popart.options
    assert popart["partialsTypeMatMuls"] == "half"
    assert popart["syntheticDataMode"] == 2


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "POPTORCH_DEFAULT_OPTIONS"])
def test_variable_that_poptorch_cannot_read_is_refused_in_one_line(variable, monkeypatch):
    monkeypatch.setenv(variable, "several")
    with pytest.raises(Refusal, match="PopTorch cannot read its options in the environment") as caught:
        training_options(get_config("SWIN_DEMO"), ALONE)
    assert "\n" not in str(caught.value)
