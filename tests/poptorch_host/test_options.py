# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Options: what they store, refuse, freeze, copy and read from text."""

import copy
import logging
import pickle

import hypothesis
import pytest
import torch

from tests.backend import host_only, module, needs_core, popart, poptorch, raises

WITHOUT_EFFECT = ("Jit.traceModel", "Precision.halfFloatCasting", "Precision.runningStatisticsAlwaysFloat")


@pytest.fixture
def options():
    return poptorch.Options()


def every_setter():
    """A call of every setter, as a function of the options and the name it is known by."""
    settings = poptorch.TensorLocationSettings().useOnChipStorage(False)
    general = {
        "deviceIterations": [2],
        "replicationFactor": [2],
        "autoRoundNumIPUs": [True],
        "broadcastBuffers": [False],
        "outputMode": [poptorch.OutputMode.All],
        "randomSeed": [7],
        "logDir": ["logs"],
        "modelName": ["net"],
        "maxRepeatLogs": [9],
        "setAvailableMemoryProportion": [{"IPU0": 0.5}],
        "enableExecutableCaching": ["cache"],
        "useIpuModel": [True],
        "useIpuId": [3],
        "useOfflineIpuTarget": [],
        "syncPattern": [poptorch.SyncPattern.Full],
        "connectionType": [poptorch.ConnectionType.OnDemand],
        "enableStableNorm": [True],
        "enableProfiling": ["here"],
        "enableSyntheticData": [True],
        "logCycleCount": [True],
        "updatableNamedBuffers": [["mean"]],
        "setExecutionStrategy": [poptorch.ShardedExecution()],
        "showCompilationProgressBar": [False],
        "relaxOptimizerAttributesChecks": [],
        "disableModuleNamescope": [],
        "sourceLocationExcludes": [["lib"]],
        "appendToLocationExcludes": ["more"],
        "inputReplicaGrouping": [1, poptorch.CommGroupType.Consecutive],
        "Training.gradientAccumulation": [4],
        "Training.setAutomaticLossScaling": [True],
        "Training.accumulationAndReplicationReductionType": [poptorch.ReductionType.Sum],
        "Training.setMeanAccumulationAndReplicationReductionStrategy": [poptorch.MeanReductionStrategy.Running],
        "Training.setConvolutionDithering": [True],
        "Precision.enableStochasticRounding": [True],
        "Precision.enableFloatingPointExceptions": [True],
        "Precision.setPartialsType": [torch.half],
        "Precision.halfFloatCasting": [poptorch.HalfFloatCastingBehavior.Default],
        "Precision.runningStatisticsAlwaysFloat": [True],
        "Distributed.disable": [],
        "Distributed.configureProcessId": [0, 2],
        "Distributed.setEnvVarNames": ["A", "B"],
        "TensorLocations.numIOTiles": [64],
        "TensorLocations.setActivationLocation": [settings],
        "TensorLocations.setWeightLocation": [settings],
        "TensorLocations.setOptimizerLocation": [settings],
        "TensorLocations.setAccumulatorLocation": [settings],
        "Jit.traceModel": [False],
        "_Popart.set": ["enableOutlining", True],
        "_Popart.setPatterns": [{"OpToIdentity": True}],
        "_Popart.setEngineOptions": [{"debug.branchRecordTile": "1"}],
    }
    return [pytest.param(name, arguments, id=name) for name, arguments in general.items()]


def call(options, name, arguments):
    target = options
    for part in name.split("."):
        target = getattr(target, part)
    return target(*arguments)


@pytest.mark.parametrize("name, arguments", every_setter())
def test_setter_of_frozen_options_refuses_until_cloned(options, name, arguments):
    options._freeze()
    if name not in WITHOUT_EFFECT:
        with raises(AttributeError, match="Can't modify frozen Options"):
            call(options, name, arguments)
    call(options.clone(), name, arguments)


@pytest.mark.parametrize("name, arguments", every_setter())
def test_setter_returns_what_can_be_chained(options, name, arguments):
    owner = options
    for part in name.split(".")[:-1]:
        owner = getattr(owner, part)
    assert call(options, name, arguments) is owner


@pytest.mark.parametrize(
    "name, default",
    [
        ("replication_factor", 1),
        ("input_group_size", 1),
        ("input_cgt", poptorch.CommGroupType.Consecutive),
        ("broadcast_buffers", True),
        ("device_iterations", 1),
        ("log_dir", "."),
        ("max_repeat_logs", 4),
        ("auto_round_num_ipus", False),
        ("anchored_tensors", {}),
        ("output_mode", poptorch.OutputMode.Default),
        ("output_return_period", 1),
        ("connection_type", 0),
        ("sync_pattern", 0),
        ("available_memory_proportion", {}),
    ],
)
def test_option_before_any_setter_has_its_default(options, name, default):
    assert options.exists(name) and options(name) == default and getattr(options, name) == default


@pytest.mark.parametrize(
    "name, setter, argument, stored",
    [
        ("model_name", "modelName", "net", "net"),
        ("use_model", "useIpuModel", True, True),
        ("ipu_id", "useIpuId", 2, 2),
        ("ipu_version", "useOfflineIpuTarget", 21, 21),
        ("random_seed", "randomSeed", 5, 5),
    ],
)
def test_option_without_default_exists_once_set(options, name, setter, argument, stored):
    assert not options.exists(name)
    with raises(AttributeError, match="Invalid attribute"):
        getattr(options, name)
    getattr(options, setter)(argument)
    assert getattr(options, name) == stored


@pytest.mark.parametrize(
    "setter, argument",
    [
        ("deviceIterations", "4"),
        ("deviceIterations", 2.0),
        ("replicationFactor", 2.0),
        ("logDir", 3),
        ("autoRoundNumIPUs", 1),
        ("broadcastBuffers", 0),
        ("maxRepeatLogs", "many"),
    ],
)
def test_value_of_another_type_is_refused(options, setter, argument):
    with raises(AssertionError, match="Unexpected type"):
        getattr(options, setter)(argument)


@pytest.mark.parametrize(
    "setter, argument",
    [
        ("connectionType", 1),
        ("syncPattern", 0),
        ("outputMode", 2),
        ("outputMode", "All"),
        ("useIpuId", "0"),
        ("setExecutionStrategy", "pipelined"),
        ("setExecutionStrategy", poptorch.PipelinedExecution),
        ("randomSeed", 0.5),
        ("setAvailableMemoryProportion", {"ipu0": 0.5}),
    ],
)
def test_argument_of_another_kind_is_refused(options, setter, argument):
    with raises(AssertionError):
        getattr(options, setter)(argument)


def test_bool_is_taken_where_an_int_is_expected(options):
    assert options.deviceIterations(True).device_iterations == 1


def test_counts_are_not_checked_for_their_range_when_set(options):
    options.deviceIterations(0).replicationFactor(-1).Training.gradientAccumulation(0)
    assert (options.device_iterations, options.replication_factor, options.Training.gradient_accumulation) == (0, -1, 0)


@host_only("an addition to PopTorch's message")
def test_mistyped_option_names_the_nearest(options):
    with pytest.raises(AttributeError, match=r"did you mean deviceIterations\?"):
        options.deviceIteration(2)
    with pytest.raises(AttributeError, match=r"did you mean gradientAccumulation\?"):
        options.Training.gradientAccumulations(2)


def test_unknown_option_is_refused_when_written_and_when_read(options):
    with raises(AssertionError, match="Invalid option"):
        options.set(no_such_option=1)
    with raises(AssertionError, match="Invalid option"):
        options.no_such_option = 1
    with raises(AttributeError, match="Invalid attribute"):
        getattr(options, "no_such_option")  # noqa: B009 (reading it is the point)
    with raises(AttributeError, match="Invalid private attribute"):
        options._no_such_option = 1


@pytest.mark.parametrize("part", ["Distributed", "Training", "Precision", "TensorLocations", "Jit"])
def test_parts_of_options_can_get_a_class_of_the_programs(options, part):
    original = type(getattr(options, part))
    getattr(options, part).__class__ = type("Own", (original,), {"own": True})
    assert getattr(options, part).own and isinstance(getattr(options.clone(), part), original)


def test_attribute_assignment_is_a_checked_set(options):
    options.device_iterations = 3
    assert options("device_iterations") == 3
    with raises(AssertionError, match="Unexpected type"):
        options.device_iterations = "3"


def test_delete_removes_an_option_even_when_frozen(options):
    options.modelName("net")._freeze()
    options.deleteIfExists("model_name")
    options.deleteIfExists("model_name")
    assert not options.exists("model_name")


def test_create_or_set_adds_and_then_checks_the_type(options):
    options.createOrSet(new_option=1)
    options.createOrSet(new_option=2)
    assert options.new_option == 2
    with raises(AssertionError, match="Unexpected type"):
        options.createOrSet(new_option="2")


def test_update_refuses_an_option_that_is_there(options):
    assert options.update({"other": 1})["other"] == 1
    with raises(AssertionError, match="device_iterations"):
        options.update({"device_iterations": 1})


def test_freezing_reaches_attributes_and_sub_options_but_not_anchors(options):
    options._freeze()
    for change in (
        lambda: setattr(options, "device_iterations", 2),
        lambda: options.set(log_dir="x"),
        lambda: options.createOrSet(anything=1),
        lambda: setattr(options.Training, "gradient_accumulation", 2),
        lambda: options.Training.set(gradient_accumulation=2),
        options.checkIsFrozen,
    ):
        with raises(AttributeError, match="Can't modify frozen Options"):
            change()
    options.anchorTensor("short", "long")
    options._Popart.options["enableOutlining"] = False
    assert "short" in options.anchored_tensors


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda options: options.clone()], ids=["deepcopy", "clone"])
def test_copy_is_independent_and_not_frozen(options, duplicate):
    options.deviceIterations(3).Training.gradientAccumulation(4)
    options.Precision.setPartialsType(torch.half)
    options._freeze()
    copied = duplicate(options)
    copied.deviceIterations(5).Training.gradientAccumulation(6)
    copied.Precision.setPartialsType(torch.float)
    copied._Popart.set("enableOutlining", False)
    assert (options.device_iterations, options.Training.gradient_accumulation) == (3, 4)
    assert options._Popart.options["partialsTypeMatMuls"] == "half"
    assert copied._Popart.options["partialsTypeMatMuls"] == "float"
    assert "enableOutlining" not in options._Popart.options
    assert isinstance(copied, poptorch.Options) and copied.Training is not options.Training


def test_copy_has_its_own_execution_strategy(options):
    options.setExecutionStrategy(poptorch.PipelinedExecution("a", "b"))
    copied = options.clone()._execution_strategy.stage("a").ipu(5)
    assert copied._ipu == 5 and options._execution_strategy.stage("a")._ipu is None


def test_options_survive_pickling_with_values_and_frozen_state(options):
    options.outputMode(poptorch.OutputMode.All).randomSeed(3)
    options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))
    options._freeze()
    loaded = pickle.loads(pickle.dumps(options))
    with raises(AttributeError, match="frozen"):
        loaded.deviceIterations(2)
    assert loaded.toDict().keys() == options.toDict().keys() and loaded.random_seed == 3


@pytest.mark.parametrize(
    "strategy",
    [poptorch.PipelinedExecution("a"), poptorch.ShardedExecution("a"), poptorch.SerialPhasedExecution("a")],
    ids=lambda strategy: type(strategy).__name__,
)
def test_options_with_listed_stages_can_be_copied_but_not_pickled(options, strategy):
    options.setExecutionStrategy(strategy)
    assert options.clone()._execution_strategy.stage("a").blocks == ("a",)
    with raises(AttributeError, match="[Cc]an't pickle|pickle does not find it"):
        pickle.dumps(options)


@hypothesis.given(hypothesis.strategies.lists(hypothesis.strategies.sampled_from(every_setter()), max_size=8))
@hypothesis.settings(max_examples=60, deadline=None)
def test_options_after_any_calls_equal_their_copies_and_survive_freezing(calls):
    options = poptorch.Options()
    for parameter in calls:
        call(options, *parameter.values)
    options.outputMode(poptorch.OutputMode.All)
    before = comparable(options)
    options._freeze()
    for copied in (options, options.clone(), copy.copy(options)):
        assert comparable(copied) == before
    with raises(AttributeError, match="frozen"):
        options.Training.gradientAccumulation(2)
    options.clone().Training.gradientAccumulation(2)
    assert comparable(options) == before


def comparable(options):
    return {name: value for name, value in options.toDict().items() if name != "compilation_progress_bar_fn"}


def test_text_of_options_lists_values_and_sub_options(options):
    text = repr(options.deviceIterations(12))
    assert text.startswith("Options(") and "device_iterations=12" in text
    for part in ("_TrainingOptions(gradient_accumulation=1", "_PopartOptions(", "_TensorLocationOptions("):
        assert part in text


def test_dictionary_of_options_merges_everything(options):
    with raises(AssertionError, match="Default"):
        options.toDict()
    options.outputMode(poptorch.OutputMode.Sum).showCompilationProgressBar(False)
    options.TensorLocations.numIOTiles(64)
    options._Popart.set("enableOutlining", True)
    values = options.toDict()
    assert values["output_mode"] == 3 and values["gradient_accumulation"] == 1 and values["numIOTiles"] == 64
    assert values["enableOutlining"] is True and values["num_distributed_processes"] == 1 and "execution_mode" in values
    assert "compilation_progress_bar_fn" not in values
    assert callable(options.showCompilationProgressBar().toDict()["compilation_progress_bar_fn"])


# Output modes, anchors, groups of replicas.


def test_default_output_mode_ends_with_a_choice(options):
    assert options.defaultOutputMode() is True
    assert options.outputMode(poptorch.OutputMode.Final).defaultOutputMode() is False


@pytest.mark.parametrize("period", [None, 0, -1])
def test_every_n_without_a_positive_period_is_refused(options, period):
    with raises(AssertionError, match="output_return_period"):
        options.outputMode(poptorch.OutputMode.EveryN, period)


def test_period_of_another_mode_is_stored(options):
    assert options.outputMode(poptorch.OutputMode.All, 3).output_return_period == 3
    assert options.outputMode(poptorch.OutputMode.All, 0).output_return_period == 1
    assert options.outputMode(poptorch.OutputMode.EveryN, output_return_period=2).output_return_period == 2


def test_anchor_returns_nothing_and_keeps_its_mode(options):
    assert options.anchorTensor("a", "long/a") is None
    options.anchorTensor("b", "long/b", poptorch.OutputMode.EveryN, 2)
    options.anchorTensor("c", "long/c", poptorch.OutputMode.Default)
    assert options.anchored_tensors == {
        "a": ["long/a", True, None, 1],
        "c": ["long/c", False, poptorch.OutputMode.Default, 1],
        "b": ["long/b", False, poptorch.OutputMode.EveryN, 2],
    }


@pytest.mark.parametrize(
    "size, kind",
    [(2, poptorch.CommGroupType.All), (8, poptorch.CommGroupType.Consecutive), (3, poptorch.CommGroupType.Orthogonal)],
)
def test_group_of_replicas_that_does_not_fit_is_refused(options, size, kind):
    with raises(ValueError):
        options.replicationFactor(4).inputReplicaGrouping(size, kind)


def test_group_of_replicas_is_stored(options):
    options.replicationFactor(4).inputReplicaGrouping(2, poptorch.CommGroupType.Orthogonal)
    assert (options.input_group_size, options.input_cgt) == (2, poptorch.CommGroupType.Orthogonal)
    options.inputReplicaGrouping(3, poptorch.CommGroupType.NoGrouping)
    assert (options.input_group_size, options.input_cgt) == (1, poptorch.CommGroupType.Consecutive)


# Single setters with more to them.


def test_random_seed_seeds_the_host_at_once(options):
    options.randomSeed(42)
    first = torch.rand(3)
    poptorch.Options().randomSeed(42)
    assert torch.equal(first, torch.rand(3))


def test_memory_proportions_are_stored_by_number(options):
    options.setAvailableMemoryProportion({"IPU0": 0.25, "IPU12": 1})
    assert options.available_memory_proportion == {0: 0.25, 12: 1.0}
    with raises(ValueError, match="one"):
        options.setAvailableMemoryProportion({"IPUone": 0.5})


def test_executable_caching_stores_the_folder_or_switches_off(options):
    options.enableExecutableCaching(None)
    assert options._Popart.options["enableEngineCaching"] is False and "cachePath" not in options._Popart.options
    options.enableExecutableCaching("there")
    assert options._Popart.options["cachePath"] == "there" and options._Popart.options["enableEngineCaching"] is True


def test_unlimited_repeats_are_the_largest_number(options):
    assert options.maxRepeatLogs(None).max_repeat_logs == 2**64 - 1


def test_offline_target_never_connects(options):
    options.useOfflineIpuTarget()
    assert options.connection_type == poptorch.ConnectionType.Never and options.ipu_version == 2


def test_profiling_adds_to_engine_options_and_warns_of_the_environment(options, monkeypatch, caplog):
    options._Popart.setEngineOptions({"mine": "1"})
    monkeypatch.setenv("POPLAR_ENGINE_OPTIONS", '{"autoReport.directory": "elsewhere"}')
    options.enableProfiling("reports")
    assert options._Popart.options["engineOptions"] == {
        "mine": "1",
        "debug.allowOutOfMemory": "true",
        "autoReport.directory": "reports",
        "autoReport.all": "true",
    }
    assert "POPLAR_ENGINE_OPTIONS" in caplog.text
    assert poptorch.Options().enableProfiling()._Popart.options["engineOptions"]["autoReport.directory"] == "."


@pytest.mark.parametrize(
    "setter, key, value, stored",
    [
        ("logCycleCount", "instrumentWithHardwareCycleCounter", True, True),
        ("enableStableNorm", "enableStableNorm", True, True),
        ("enableSyntheticData", "syntheticDataMode", True, 2),
        ("enableSyntheticData", "syntheticDataMode", False, 0),
        ("updatableNamedBuffers", "updatableNamedBuffers", ["a"], ["a"]),
    ],
)
def test_option_of_the_compiler_is_stored_under_its_name(options, setter, key, value, stored):
    getattr(options, setter)(value)
    assert options._Popart.options[key] == stored


def test_compiler_options_start_with_two_and_take_anything(options):
    assert options._Popart.options == {"instrumentWithHardwareCycleCounter": False, "rearrangeAnchorsOnHost": False}
    options._Popart.set("engineOptions", {"a": "b"}).set("customCodelets", {"x.cpp"}).set("no such", object)
    assert options._Popart.options["no such"] is object


def test_patterns_are_checked_and_stored_with_their_level(options):
    options._Popart.setPatterns({"PadSum": True}, 1)
    assert options._Popart.options["patterns"] == {"PadSum": True} and options._Popart.options["patterns_level"] == 1
    assert options._Popart.setPatterns({}).options["patterns_level"] == 2
    for arguments in (["PadSum"], [{}, "high"]):
        with raises(AssertionError):
            options._Popart.setPatterns(*arguments)


# Precision, Training, Distributed, Jit.


def test_precision_settings_are_stored_with_the_compiler_options(options):
    options.Precision.enableFloatingPointExceptions(True).enableStochasticRounding(True).setPartialsType(torch.half)
    assert options._Popart.options["enableFloatingPointChecks"] is True
    assert options._Popart.options["enableStochasticRounding"] is True
    assert options._Popart.options["partialsTypeMatMuls"] == "half"
    assert options._Popart.options["convolutionOptions"] == {"partialsType": "half"}


def test_partials_and_dithering_replace_each_other(options):
    options.Precision.setPartialsType(torch.half)
    options.Training.setConvolutionDithering(True)
    assert options._Popart.options["convolutionOptions"] == {"enableConvDithering": True}
    options.Precision.setPartialsType(torch.float)
    assert options._Popart.options["convolutionOptions"] == {"partialsType": "float"}


def test_precision_arguments_of_other_kinds_are_refused(options):
    with raises(AssertionError):
        options.Precision.enableFloatingPointExceptions(1)
    for dtype in (torch.float64, torch.bfloat16, "half"):
        with raises(ValueError, match="setPartialsType"):
            options.Precision.setPartialsType(dtype)
    with raises(ValueError, match="bool"):
        options.Precision.runningStatisticsAlwaysFloat(1)


def test_deprecated_settings_warn_and_store_nothing(options, caplog):
    before = dict(options._Popart.options)
    options.Precision.halfFloatCasting(poptorch.HalfFloatCastingBehavior.Default).runningStatisticsAlwaysFloat(True)
    options.Jit.traceModel(False)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3
    assert options._Popart.options == before


def test_tracing_by_jit_is_refused(options):
    with raises(ValueError, match="traceModel"):
        options.Jit.traceModel(True)


def test_training_settings_are_readable(options):
    training = options.Training
    assert training.accumulation_and_replication_reduction_type == poptorch.ReductionType.Mean
    assert training.meanAccumulationAndReplicationReductionStrategy == poptorch.MeanReductionStrategy.Post
    training.gradientAccumulation(8).accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
    training.setMeanAccumulationAndReplicationReductionStrategy(poptorch.MeanReductionStrategy.Running)
    training.setAutomaticLossScaling(True)
    assert training.gradient_accumulation == 8
    assert training.accumulation_and_replication_reduction_type == poptorch.ReductionType.Sum
    assert training.meanAccumulationAndReplicationReductionStrategy == poptorch.MeanReductionStrategy.Running
    assert options._Popart.options["automaticLossScalingSettings.enabled"] is True


@pytest.mark.parametrize("kind", [poptorch.ReductionType.NoReduction, "mean", 1, None])
def test_reduction_type_other_than_mean_and_sum_is_refused(options, kind):
    with raises(ValueError):
        options.Training.accumulationAndReplicationReductionType(kind)


def test_training_arguments_of_other_types_are_refused(options):
    with raises(AssertionError):
        options.Training.setMeanAccumulationAndReplicationReductionStrategy(poptorch.ReductionType.Mean)
    with raises(AssertionError, match="Unexpected type"):
        options.Training.gradientAccumulation(2.0)


def test_processes_come_from_the_environment_of_open_mpi(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    distributed = poptorch.Options().Distributed
    assert (distributed.numProcesses, distributed.processId) == (4, 3)
    distributed.disable()
    assert (distributed.numProcesses, distributed.processId) == (1, 0)


@host_only("PopTorch's ValueError does not name the variable")
@pytest.mark.parametrize("value", ["abc", "", "-1", "1.5"])
@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"])
def test_variable_of_open_mpi_without_a_number_is_one_line_that_names_it(variable, value, monkeypatch):
    own = poptorch.Options()
    monkeypatch.setenv(variable, value)
    for read in (poptorch.Options, lambda: own.Distributed.setEnvVarNames(variable, variable)):
        with raises(poptorch.Error, match=f"{variable} is {value!r}, but must be a number"):
            read()


def test_processes_come_from_other_variables_or_from_a_call(options, monkeypatch):
    monkeypatch.setenv("MY_SIZE", "5")
    monkeypatch.setenv("MY_RANK", "2")
    distributed = options.Distributed.setEnvVarNames("MY_SIZE", "MY_RANK")
    assert (distributed.num_distributed_processes, distributed.distributed_process_id) == (5, 2)
    distributed.configureProcessId(1, 8)
    assert (distributed.numProcesses, distributed.processId) == (8, 1)


# Tensor locations.


def test_location_settings_store_what_was_said():
    settings = poptorch.TensorLocationSettings()
    settings.minElementsForOffChip(4).minElementsForReplicatedTensorSharding(8).useOnChipStorage(True)
    settings.useReplicatedTensorSharding().useIOTilesToLoad(False).useIOTilesToStore()
    assert settings.toDict() == {
        "minElementsForOffChip": 4,
        "minElementsForReplicatedTensorSharding": 8,
        "onChip": 1,
        "useReplicatedTensorSharding": 1,
        "useIOTilesToLoad": 0,
        "useIOTilesToStore": 1,
    }
    assert "onChip" not in settings.useOnChipStorage(None).toDict()
    assert settings.useOnChipStorage(False).onChip == 0


@pytest.mark.parametrize(
    "setter",
    [
        "minElementsForOffChip",
        "minElementsForReplicatedTensorSharding",
        "useOnChipStorage",
        "useReplicatedTensorSharding",
        "useIOTilesToLoad",
        "useIOTilesToStore",
    ],
)
@pytest.mark.parametrize("argument", ["1", 1.5])
def test_location_setting_of_another_type_is_refused(setter, argument):
    with raises(AssertionError):
        getattr(poptorch.TensorLocationSettings(), setter)(argument)


@pytest.mark.parametrize("kind", ["Activation", "Weight", "Optimizer", "Accumulator"])
def test_location_is_copied_when_given(options, kind):
    settings = poptorch.TensorLocationSettings().useReplicatedTensorSharding(True)
    setter = getattr(options.TensorLocations, f"set{kind}Location")
    setter(settings)
    settings.useReplicatedTensorSharding(False)
    assert getattr(options.TensorLocations, f"location_{kind.lower()}") == {"useReplicatedTensorSharding": 1}
    with raises(AssertionError):
        setter({"onChip": 1})


@pytest.mark.parametrize("tiles", [0, 30, 33, 194, 64.0, "64"])
def test_number_of_io_tiles_out_of_range_is_refused(options, tiles):
    with raises(AssertionError, match="numIOTiles must be an even number"):
        options.TensorLocations.numIOTiles(tiles)
    assert options.TensorLocations.numIOTiles(32).numIOTiles(192).toDict()["numIOTiles"] == 192


# Settings from text and from the environment.


def test_json_makes_the_calls_it_names(options):
    returned = options.from_json("""{"deviceIterations": 3, "Precision.enableFloatingPointExceptions": true,
        "_Popart.set": ["enableOutlining", false], "connectionType": "ConnectionType.OnDemand",
        "Training.accumulationAndReplicationReductionType": "ReductionType.Sum",
        "outputMode": "OutputMode.Sum", "modelName": "OutputMode.Nothing"}""")
    assert returned is options and options.device_iterations == 3
    assert options._Popart.options["enableFloatingPointChecks"] is True
    assert options._Popart.options["enableOutlining"] is False
    assert options.connection_type == poptorch.ConnectionType.OnDemand
    assert options.output_mode == poptorch.OutputMode.Sum
    assert options.model_name == "OutputMode.Nothing"


def test_environment_sets_options_and_cache(monkeypatch):
    monkeypatch.setenv("POPTORCH_DEFAULT_OPTIONS", '{"replicationFactor": 6}')
    monkeypatch.setenv("POPTORCH_CACHE_DIR", "cache")
    options = poptorch.Options()
    assert options.replication_factor == 6 and options._Popart.options["cachePath"] == "cache"


def test_file_makes_the_calls_in_its_lines(options, tmp_path):
    path = tmp_path / "options.conf"
    path.write_text("""
# a remark
deviceIterations(2)  # another
  setExecutionStrategy(poptorch.ShardedExecution())

TensorLocations.setWeightLocation(poptorch.TensorLocationSettings().useOnChipStorage(False))
_Popart.set("enableOutlining", options.device_iterations == 2)
""")
    assert options.loadFromFile(str(path)) is options
    path.write_text("Training.gradientAccumulation(4)")
    options.loadFromFile(str(path))
    assert options.device_iterations == 2 and options.Training.gradient_accumulation == 4
    assert isinstance(options._execution_strategy, poptorch.ShardedExecution)
    assert options.TensorLocations.location_weight == {"onChip": 0}
    assert options._Popart.options["enableOutlining"] is True


def test_file_with_a_syntax_error_names_line_and_file_and_shows_the_line(options, tmp_path):
    path = tmp_path / "options.conf"
    path.write_text("# not counted\ndeviceIterations(2)\n\nreplicationFactor(2) 3\n")
    with raises(poptorch.ConfigFileError) as caught:
        options.loadFromFile(str(path))
    text = str(caught.value)
    assert text.startswith("SyntaxError at line 2 of ") and text.rstrip().endswith("\n> options.replicationFactor(2) 3")
    assert poptorch.options.ConfigFileError is poptorch.ConfigFileError and options.device_iterations == 1


def test_file_with_a_wrong_call_raises_what_the_call_raises(options, tmp_path):
    path = tmp_path / "options.conf"
    path.write_text("deviceIterations('two')")
    with raises(AssertionError, match="Unexpected type"):
        options.loadFromFile(str(path))
    path.write_text("noSuchSetter(1)")
    with raises(AttributeError, match="Invalid attribute"):
        options.loadFromFile(str(path))


# Keys of the compiler.


def compile_with(options):
    options.showCompilationProgressBar(False)
    poptorch.inferenceModel(torch.nn.Linear(1, 1), options).compile(torch.ones(1, 1))


@pytest.mark.parametrize(
    "key, value",
    [
        ("enableOutlining", False),
        ("autoRecomputation", 3),
        ("timeLimitScheduler", 0.5),
        ("outlineThreshold", 1.5),
        ("cachePath", "there"),
        ("saveInitializersToFile", "big.onnx"),
        ("engineOptions", {"a": "b"}),
        ("accumulateOuterFragmentSettings.excludedVirtualGraphs", ["0"]),
        ("dotChecks", {"FINAL"}),
    ],
)
def test_compiler_option_with_its_kind_of_value_passes(options, key, value):
    compile_with(options._Popart.set(key, value) and options)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("enableOutlinin", True, "Unknown bool option enableOutlinin"),
        ("noSuch", "text", "Unknown string option noSuch"),
        ("autoRecomputation", "Pipeline", "Unknown string option autoRecomputation"),
        ("enableOutlining", 1, "Unknown uint64 option enableOutlining"),
        pytest.param(
            "autoRecomputation",
            popart.RecomputationType.Pipeline,
            r"Unknown value type RecomputationType .*use int\(RecomputationType.Pipeline\)",
            marks=needs_core("its enumerations are no integers"),
        ),
        ("outlineThreshold", 1, "Unknown uint64 option outlineThreshold"),
        ("cachePath", None, "Unknown value type NoneType"),
    ],
)
def test_compiler_option_unknown_or_of_another_kind_is_refused(options, key, value, message):
    with raises(poptorch.Error, match=message):
        compile_with(options._Popart.set(key, value) and options)


@host_only("its check of the options of the compiler")
def test_every_option_that_setters_write_is_known_to_the_compiler_check(options):
    check = module("poptorch.settings.popart_keys").check_popart_options
    for name, arguments in (parameter.values for parameter in every_setter()):
        call(options, name, arguments)
    check(options._Popart.options)
