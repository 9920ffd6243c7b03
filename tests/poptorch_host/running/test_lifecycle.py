# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
import contextlib
import datetime
import os
import re
import resource

import pytest
import torch

from tests.backend import host_only, needs_core, poptorch, raises

from ..models import Classifier, Function, accumulating, classifier_batch, trained

X, LABELS = classifier_batch()


def adam(model):
    return poptorch.optim.Adam(model.parameters(), lr=0.05)


def test_device_methods_need_a_compiled_model():
    for executor in (trained(Classifier()), poptorch.inferenceModel(Classifier())):
        for name, *arguments in (
            ["copyWeightsToHost"],
            ["copyWeightsToDevice"],
            ["copyNamedBuffersToDevice"],
            ["detachFromDevice"],
            ["attachToDevice"],
            ["save", "nowhere"],
            ["compilationTime"],
        ):
            with raises(poptorch.Error, match="has not been compiled"):
                getattr(executor, name)(*arguments)
        with raises(poptorch.Error, match="has not been compiled"):
            _ = executor.rng_state
        with raises(AssertionError):
            executor.getTensorNames()
        assert not executor.isCompiled() and not executor.isAttachedToDevice()
        assert executor._executable is None  # as trainers ask


def test_compile_runs_nothing_and_once(caplog):
    model = Classifier()
    before = model.fc.weight.detach().clone()
    executor = trained(model)
    executor.compile(X, LABELS)
    assert executor.isCompiled() and executor.isAttachedToDevice() and executor._executable is not None
    assert torch.equal(model.fc.weight.detach(), before)
    executor.compile(X, LABELS)
    assert "already compiled" in caplog.text


@host_only("the memory of a host")
def test_only_the_first_call_of_training_returns_memory_at_once(monkeypatch):
    from poptorch_host.running import engine

    entered, executor = [], trained(Classifier())
    monkeypatch.setattr(engine, "returned_at_once", lambda: entered.append(True) or contextlib.nullcontext())
    executor.compile(X, LABELS)
    assert not entered
    for _ in range(3):
        executor(X, LABELS)
        poptorch.inferenceModel(Classifier())(X)
    assert len(entered) == 1


def test_detached_models_keep_weights_and_optimizer_state():
    def run(detaching):
        torch.manual_seed(3)
        model = Classifier()
        executor = poptorch.trainingModel(model, None, adam(model))
        losses = []
        for _ in range(4):
            losses.append(executor(X, LABELS)[1].item())
            if detaching:
                executor.detachFromDevice()
                assert not executor.isAttachedToDevice() and executor.isCompiled()
        return losses, model.fc.weight.detach().clone()

    plain, detaching = run(False), run(True)
    assert plain[0] == detaching[0] and torch.equal(plain[1], detaching[1])


def test_attaching_brings_the_weights_of_the_host():
    model = Classifier()
    executor = trained(model)
    executor(X, LABELS)
    executor.detachFromDevice()
    with raises(poptorch.Error, match="not attached"):
        executor.detachFromDevice()
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.zero_()
    executor.attachToDevice()
    with raises(poptorch.Error, match="already attached"):
        executor.attachToDevice()
    assert executor(X, LABELS)[0].abs().sum() == 0


@needs_core("it keeps the random state")
def test_random_state_leaves_and_comes_with_the_device_unless_another_was_set():
    executor = trained(Classifier())
    executor(X, LABELS)
    on_device = executor.rng_state
    executor.detachFromDevice()
    executor.attachToDevice()
    assert executor.rng_state == on_device
    executor.detachFromDevice()
    executor.rng_state = other = [on_device[0] + 1, *on_device[1:]]
    executor.attachToDevice()
    assert executor.rng_state == other


@host_only("PopTorch's core logs it elsewhere")
def test_what_a_saved_program_reads_of_a_device_is_logged_and_offline_it_is_nothing(tmp_path, log):
    for options, read in ((poptorch.Options(), True), (poptorch.Options().useOfflineIpuTarget(), False)):
        executor = trained(Classifier(), options)
        executor.compile(X, LABELS)
        log.clear()
        executor.save(str(tmp_path / "program.poptorch"))
        assert ("Reading RNG state" in log.text) == ("optimiser state tensors from IPU to host" in log.text) == read


@needs_core("it takes the device")
def test_connection_types_say_when_a_device_is_taken():
    on_demand = poptorch.inferenceModel(
        Classifier(), poptorch.Options().connectionType(poptorch.ConnectionType.OnDemand)
    )
    on_demand.compile(X)  # as soon as there is a program to load
    assert on_demand.isAttachedToDevice()
    never = poptorch.inferenceModel(Classifier(), poptorch.Options().useOfflineIpuTarget())
    never.compile(X)
    assert never.isCompiled() and not never.isAttachedToDevice()
    with raises(AssertionError, match="offline device"):
        never(X)
    with raises(AssertionError):
        never.attachToDevice()


@needs_core("it takes the device")
def test_offline_targets_exclude_the_simulator_a_device_and_cycle_counts():
    for spoil in (lambda o: o.useIpuModel(True), lambda o: o.useIpuId(1), lambda o: o.logCycleCount(True)):
        options = poptorch.Options().useOfflineIpuTarget()
        spoil(options)
        with raises(poptorch.Error):
            poptorch.inferenceModel(Classifier(), options).compile(X)


@needs_core("it takes the device")
@pytest.mark.parametrize("version, exists", [(1, True), (2, True), (21, True), (3, False), ("2", False)])
def test_offline_targets_are_of_a_version_that_there_is(version, exists):
    executor = poptorch.inferenceModel(Classifier(), poptorch.Options().useOfflineIpuTarget(version))
    if exists:
        executor.compile(X)
        return
    with raises(poptorch.Error, match=r"version .*1, 2, 21"):
        executor.compile(X)


@needs_core("it takes the device")
def test_simulator_may_be_asked_for_by_the_environment_unless_the_options_say_otherwise(monkeypatch):
    monkeypatch.setenv("POPTORCH_IPU_MODEL", "1")
    with raises(poptorch.Error, match="IPU model"):
        poptorch.inferenceModel(Classifier(), poptorch.Options().logCycleCount(True)).compile(X)
    options = poptorch.Options().logCycleCount(True).useIpuModel(False)
    poptorch.inferenceModel(Classifier(), options).compile(X)


def test_destroy_fetches_weights_and_the_executor_can_be_used_again():
    model = Classifier()
    start = model.fc.weight.detach().clone()
    executor = trained(model)
    executor(X, LABELS)
    executor.destroy()
    assert type(model) is Classifier and not torch.equal(model.fc.weight, start)
    with raises(poptorch.Error):
        executor.copyWeightsToHost()
    weight = model.fc.weight.detach().clone()
    executor(X[:1], LABELS[:1])
    executor.copyWeightsToHost()
    assert not torch.equal(model.fc.weight.detach(), weight)


@needs_core("it holds the state of random numbers")
def test_the_random_state_can_be_saved_and_restored():
    options = poptorch.Options().randomSeed(11)
    executor = poptorch.inferenceModel(Function(lambda x: torch.rand_like(x) + 0 * x), options)
    first = executor(X)
    assert executor.rng_state[0] == 11
    state = executor.rng_state
    second = executor(X)
    executor.rng_state = state
    assert torch.equal(executor(X), second) and not torch.equal(first, second)
    again = poptorch.inferenceModel(Function(lambda x: torch.rand_like(x) + 0 * x), poptorch.Options().randomSeed(11))
    assert torch.equal(again(X), first)
    with raises(poptorch.Error, match="must have"):
        executor.rng_state = [1, 2]


def test_device_and_host_draw_apart():
    executor = poptorch.inferenceModel(Function(lambda x: torch.rand_like(x) + 0 * x), poptorch.Options().randomSeed(1))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = executor(X)
    assert torch.equal(torch.rand(3), expected)
    torch.rand(17)
    second = executor(X)
    again = poptorch.inferenceModel(Function(lambda x: torch.rand_like(x) + 0 * x), poptorch.Options().randomSeed(1))
    assert torch.equal(again(X), first) and torch.equal(again(X), second)


def test_dropout_differs_between_micro_batches():
    class Dropping(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.dropout(x, 0.5, training=True)

    options = poptorch.Options().deviceIterations(4).randomSeed(3)
    masks = poptorch.inferenceModel(Dropping(), options)(torch.ones(4, 64))
    assert len({tuple(mask.tolist()) for mask in masks}) == 4
    assert 0.3 < (masks == 0).float().mean() < 0.7


def test_hooks_surround_every_compilation():
    calls = []
    handles = [
        poptorch.registerPreCompileHook(lambda: calls.append("before")),
        poptorch.registerPostCompileHook(lambda: calls.append("after")),
    ]
    try:
        poptorch.inferenceModel(Function(lambda x: calls.append("trace") or x))(X)
        assert calls[:3] == ["before", "trace", "after"]
        calls.clear()
        with raises(poptorch.Error):
            trained(Classifier())(X)
        assert calls == ["before", "after"]
        calls.clear()
        with raises(AssertionError, match="Invalid batch dimension"):
            poptorch.inferenceModel(Classifier(), poptorch.Options().deviceIterations(3))(X)
        assert calls == []
        for register in (poptorch.registerPreCompileHook, poptorch.registerPostCompileHook):
            with raises(RuntimeError, match="must be callable"):
                register(3)
    finally:
        for handle in handles:
            handle.remove()
    calls.clear()
    poptorch.inferenceModel(Function(lambda x: x))(X)
    assert calls == []


@needs_core("it measures transfers")
def test_counters_have_one_time_for_each_transfer():
    executor = trained(Classifier(), accumulating(3).deviceIterations(2).replicationFactor(2))
    events = ("input", "input_complete", "output", "output_complete")
    assert executor.getPerfCounters() == {event: [[]] for event in events}
    assert executor.getLatency() == (0.0, 0.0, 0.0)
    executor(*classifier_batch(12))
    counters = executor.getPerfCounters()
    assert [len(times) for times in counters["input"]] == [12, 12]
    assert [len(times) for times in counters["output_complete"]] == [2, 2]
    for times in (
        executor.getLatency(),
        executor.getComputeLatency(),
        executor.getHostIpuLatency(),
        executor.getIpuHostLatency(),
    ):
        low, high, mean = times
        assert 0 <= low <= mean <= high
    parts = (executor.getHostIpuLatency(), executor.getComputeLatency(), executor.getIpuHostLatency())
    assert executor.getLatency()[2] == pytest.approx(sum(mean for _, _, mean in parts))


@needs_core("it measures transfers")
@pytest.mark.parametrize(
    "mode, period, returned", [("All", None, 12), ("EveryN", 3, 4), ("Sum", None, 2), ("Final", None, 2)]
)
def test_counters_of_outputs_count_what_the_mode_returns(mode, period, returned):
    options = accumulating(3).deviceIterations(2).replicationFactor(2)
    executor = trained(Classifier(), options.outputMode(poptorch.OutputMode[mode], period))
    executor(*classifier_batch(12))
    assert [len(times) for times in executor.getPerfCounters()["output"]] == [returned, returned]


@needs_core("it shows the progress and writes programs")
def test_compilation_ends_with_a_bar_unless_switched_off_and_only_then_knows_its_time(capsys):
    executor = poptorch.inferenceModel(Classifier())
    executor(X)
    assert re.fullmatch(r"Graph compilation: 100%\|#{10}\| 100/100 \[\d\d:\d\d\]\n", capsys.readouterr().err)
    executor(X)
    assert executor.compilationTime() > datetime.timedelta(0)
    silent = poptorch.inferenceModel(Classifier(), poptorch.Options().showCompilationProgressBar(False))
    silent(X)
    assert capsys.readouterr().err == ""
    with raises(poptorch.Error, match="ProgressBar"):
        silent.compilationTime()


def test_cycle_counts_are_off_by_default():
    executor = poptorch.inferenceModel(Classifier())
    executor(X)
    with raises(poptorch.Error, match="Cycle count logging is disabled"):
        executor.cycleCount()
    counting = poptorch.inferenceModel(Classifier(), poptorch.Options().logCycleCount(True))
    with raises(poptorch.Error, match="run the model at least once"):
        counting.cycleCount()
    counting(X)
    assert counting.cycleCount() > 0


def test_exported_programs_come_back_with_weights_optimizer_and_options(tmp_path):
    def fresh():
        torch.manual_seed(1)
        model = Classifier()
        return poptorch.trainingModel(model, accumulating(2).randomSeed(5), adam(model))

    batch = classifier_batch(4)
    unbroken, saved = fresh(), fresh()
    for executor in (unbroken, saved):
        executor(*batch)
    target = tmp_path / "deep" / "folder" / "model.bin"
    saved.save(str(target))
    loaded = poptorch.load(str(target))
    assert loaded.isCompiled() and loaded.rng_state == saved.rng_state
    assert loaded.options.Training.gradient_accumulation == 2
    for _ in range(3):
        for one, other in zip(loaded(*batch), unbroken(*batch)):
            assert torch.equal(one, other)
    assert torch.equal(loaded.model.fc.weight.detach(), unbroken.model.fc.weight.detach())


def test_offline_programs_are_exported_and_run_elsewhere(tmp_path):
    target = str(tmp_path / "offline.poptorch")
    model = Classifier()
    poptorch.inferenceModel(model, poptorch.Options().useOfflineIpuTarget()).compileAndExport(target, X)
    edited = []
    loaded = poptorch.load(target, edited.append)
    assert torch.equal(loaded(X), model(X).detach())
    assert edited and loaded.options.connection_type == poptorch.ConnectionType.Always
    with raises(poptorch.Error, match="expected"):
        loaded(X[:1])


def test_programs_without_a_model_need_one(tmp_path):
    target = str(tmp_path / "program.poptorch")
    poptorch.inferenceModel(Classifier()).compileAndExport(target, X, export_model=False)
    with raises(AssertionError, match="has no model"):
        poptorch.load(target)
    model = Classifier()
    executor = poptorch.inferenceModel(model)
    executor.loadExecutable(target)
    assert executor.isCompiled() and torch.equal(executor(X), model(X).detach())
    with raises(poptorch.Error, match="is a program for inference"):
        trained(Classifier()).loadExecutable(target)


def test_a_folder_gets_a_file_of_a_fixed_name(tmp_path):
    executor = poptorch.inferenceModel(Classifier())
    executor.compileAndExport(str(tmp_path), X)
    executor.compileAndExport(f"{tmp_path}/new/", X)
    assert sorted(os.listdir(tmp_path)) == ["model.poptorch", "new"]
    assert os.listdir(tmp_path / "new") == ["model.poptorch"]


@needs_core("it reads programs")
def test_files_that_are_no_programs_are_refused(tmp_path):
    bad = tmp_path / "bad"
    bad.write_bytes(b"nothing of the kind")
    for path in (bad, tmp_path / "missing"):
        with raises((AssertionError, poptorch.Error), match="not a valid PopTorch file"):
            poptorch.load(str(path))
        with raises(poptorch.Error, match="not a valid PopTorch file"):
            poptorch.inferenceModel(Classifier()).loadExecutable(str(path))
    good = tmp_path / "good"
    poptorch.inferenceModel(Classifier()).compileAndExport(str(good), X)
    good.write_bytes(good.read_bytes()[:-40])
    with raises((AssertionError, poptorch.Error), match="not a valid PopTorch file"):
        poptorch.load(str(good))


@needs_core("it shows the progress and writes programs")
def test_model_of_a_local_class_is_refused_with_what_to_do_and_leaves_no_file(tmp_path):
    class Local(torch.nn.Linear):
        pass

    executor = poptorch.inferenceModel(Local(2, 2))
    with raises(poptorch.Error, match="Local.*export_model=False"):
        executor.compileAndExport(str(tmp_path / "model.poptorch"), torch.ones(1, 2))
    assert not list(tmp_path.iterdir())
    executor.save(str(tmp_path / "model.poptorch"), export_model=False)
    poptorch.inferenceModel(Local(2, 2)).loadExecutable(str(tmp_path / "model.poptorch"))


@host_only("its file of a program")
def test_program_that_does_not_fit_on_the_disk_leaves_no_part_of_it(tmp_path):
    executor = poptorch.inferenceModel(Classifier())
    executor.compile(X)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            executor.save(str(tmp_path / "model.poptorch"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@host_only("its file of a program")
def test_programs_compiled_for_values_that_are_no_plain_data_are_not_saved(tmp_path):
    executor = poptorch.inferenceModel(Function(lambda x, option: x))
    executor(X, poptorch.OutputMode)
    with raises(poptorch.Error, match="plain data"):
        executor.save(str(tmp_path / "program"))


def test_another_version_is_refused(tmp_path, monkeypatch):
    target = str(tmp_path / "program")
    poptorch.inferenceModel(Classifier()).compileAndExport(target, X)
    monkeypatch.setattr(poptorch, "__version__", "0.0.0")
    with raises(AssertionError, match="version"):
        poptorch.load(target)


@needs_core("it names the tensors of a program")
def test_anchored_tensors_are_collected_as_their_mode_says():
    options = accumulating(2).deviceIterations(2)
    options.anchorTensor("gradient", "Gradient___fc.bias", poptorch.OutputMode.All)
    options.anchorTensor("bias", "fc.bias", poptorch.OutputMode.EveryN, 2)
    options.anchorTensor("loss", "loss")
    model = Classifier()
    executor = trained(model, options, lr=0.5)
    with raises(AssertionError):
        executor.getAnchoredTensor("gradient")
    executor.compile(*classifier_batch(8))
    assert "Gradient___fc.weight" in executor.getTensorNames()
    with raises(AssertionError, match="run the model first"):
        executor.getAnchoredTensor("gradient")
    start = model.fc.bias.detach().clone()
    loss = executor(*classifier_batch(8))[1]
    gradients = executor.getAnchoredTensor("gradient").view(4, 3)
    biases = executor.getAnchoredTensor("bias").view(2, 3)
    torch.testing.assert_close(biases[0], start)
    torch.testing.assert_close(biases[1], start - 0.5 * gradients[:2].mean(0))
    assert torch.equal(executor.getAnchoredTensor("loss"), loss)
    with raises(AssertionError, match="no tensor is anchored"):
        executor.getAnchoredTensor("other")


@needs_core("it names the tensors of a program")
@pytest.mark.parametrize("mode", [poptorch.OutputMode.All, poptorch.OutputMode.Final])
def test_updated_weights_can_be_anchored(mode):
    options = accumulating(2).deviceIterations(2)
    options.anchorTensor("before", "fc.bias", mode)
    options.anchorTensor("after", "UpdatedVar___fc.bias", mode)
    model = Classifier()
    executor = trained(model, options, lr=0.5)
    executor(*classifier_batch(8))
    before, after = (executor.getAnchoredTensor(name).view(-1, 3) for name in ("before", "after"))
    assert torch.equal(after[-1], model.fc.bias.detach()) and not torch.equal(before[-1], after[-1])
    if mode == poptorch.OutputMode.All:
        assert torch.equal(before[2], after[0]) and torch.equal(after[0], after[1])


@needs_core("it names the tensors of a program")
def test_unknown_anchors_are_refused():
    options = poptorch.Options()
    options.anchorTensor("x", "no such tensor")
    with raises(poptorch.Error, match="no tensor is called no such tensor"):
        poptorch.inferenceModel(Classifier(), options)(X)
    options = poptorch.Options().deviceIterations(2)
    options.anchorTensor("x", "fc.bias", poptorch.OutputMode.EveryN, 3)
    with raises(poptorch.Error, match="EveryN with period 3 returns nothing"):
        poptorch.inferenceModel(Classifier(), options).compile(X)
