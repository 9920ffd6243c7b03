# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
import contextlib
import copy
import importlib.util
import subprocess
import sys

import pytest
import torch
from poptorch_host.compiling import substitutions

from tests.backend import host_only, needs_core, poptorch, raises

from ..models import Classifier, Function, accumulating, classifier_batch, trained

X, LABELS = classifier_batch()


def test_options_are_frozen_and_the_executor_keeps_its_own():
    options = poptorch.Options().deviceIterations(2)
    executor = poptorch.inferenceModel(Classifier(), options)
    assert executor.options is not options and executor.options.device_iterations == 2
    for frozen in (options, executor.options):
        with raises(AttributeError, match="frozen"):
            frozen.deviceIterations(3)
    poptorch.inferenceModel(Classifier(), options.clone().deviceIterations(3))


@pytest.mark.parametrize("make", [poptorch.inferenceModel, poptorch.trainingModel])
def test_options_of_another_kind_are_refused(make):
    with raises(poptorch.Error, match="Invalid type dict"):
        make(Classifier(), {"deviceIterations": 2})


@pytest.mark.parametrize("model", [None, torch.nn.Linear, torch.relu])
def test_what_is_no_module_of_python_code_is_refused(model):
    for make in (poptorch.trainingModel, poptorch.inferenceModel):
        with raises((poptorch.Error, AttributeError, TypeError), match="a model must be a torch.nn.Module"):
            make(model)


@needs_core("it refuses scripted parts")
@pytest.mark.parametrize(
    "name, model",
    [("the model", torch.jit.ScriptModule()), ("0", torch.nn.Sequential(torch.jit.script(torch.nn.Linear(2, 2))))],
)
def test_parts_that_torch_jit_compiled_are_named(name, model):
    for wrap in (poptorch.inferenceModel, poptorch.trainingModel):
        with raises(poptorch.Error, match=f"{name} is a .* compiled by torch.jit"):
            wrap(model)


@host_only("what torch.compile and lazy modules do under PopTorch is unknown")
@pytest.mark.parametrize("wrap", [poptorch.inferenceModel, poptorch.trainingModel])
def test_parts_that_torch_compile_made_or_that_have_no_weights_yet_are_named(wrap):
    with pytest.raises(poptorch.Error, match="0 is a OptimizedModule compiled by torch.compile"):
        wrap(torch.nn.Sequential(torch.compile(torch.nn.Linear(2, 2))))
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(2))
    with pytest.raises(poptorch.Error, match="0 is a LazyLinear whose weights have no shapes yet: call the model once"):
        wrap(lazy)
    lazy(torch.ones(1, 2))
    wrap(lazy)


def test_inference_with_accumulation_is_refused_at_once():
    with raises(poptorch.Error, match="You must set .*gradientAccumulation to 1.*deviceIterations"):
        poptorch.inferenceModel(Classifier(), accumulating(2))
    options = accumulating(2).setExecutionStrategy(poptorch.SerialPhasedExecution("a"))
    with raises(poptorch.Error, match="gradientAccumulation to 1 for inference, not 2$"):
        poptorch.inferenceModel(Classifier(), options)
    with raises(AttributeError, match="frozen"):
        options.deviceIterations(2)


def test_an_executor_stands_for_its_model():
    model = Classifier()
    model.note = "of the user"
    executor = poptorch.inferenceModel(poptorch.inferenceModel(model))
    assert executor.note == "of the user" and executor.fc is model.fc
    executor.eval()
    assert not model.fc.training
    assert list(executor.state_dict()) == list(model.state_dict())
    assert [id(p) for p in executor.parameters()] == [id(p) for p in model.parameters()]
    assert executor._modules is model._modules and list(executor.fc._parameters) == ["weight", "bias"]
    assert executor._parameters is model._parameters
    with raises(AttributeError):
        _ = executor.no_such_attribute


class OwnFlag(torch.nn.Module):
    """Shows the training flags that its top level and its part have inside forward."""

    def __init__(self):
        super().__init__()
        self.part = torch.nn.Identity()

    def forward(self, x):
        return x + 1.0 * self.training + 10.0 * self.part.training


@pytest.mark.parametrize(
    "change, shown",
    [
        (lambda executor, model: None, 11.0),
        (lambda executor, model: executor.eval(), 0.0),
        (lambda executor, model: executor.model.eval(), 0.0),
        (lambda executor, model: executor.train(False), 0.0),
        (lambda executor, model: model.eval(), 1.0),
    ],
    ids=["none", "eval", "model.eval", "train(False)", "the user's model"],
)
def test_a_model_for_inference_is_a_copy_with_a_training_flag_of_its_own(change, shown):
    model = OwnFlag()
    executor = poptorch.inferenceModel(model)
    assert executor.model is not model and executor.model.part is model.part
    change(executor, model)
    assert executor(torch.zeros(1)).item() == shown
    assert executor.training == executor.model.training == (shown % 10 == 1.0)


def test_a_model_that_torch_fx_made_trains_and_infers():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x):
            return torch.nn.functional.l1_loss(self.layer(x), x[:, :1] + 9)

    model = torch.fx.symbolic_trace(Net())
    x = torch.ones(1, 2)
    assert torch.allclose(poptorch.inferenceModel(model)(x), model(x))
    trainer = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.01))
    assert trainer(x) > trainer(x)


def test_flags_of_an_executor_for_inference_leave_the_users_model_alone():
    model = OwnFlag()
    poptorch.inferenceModel(model).eval()
    assert model.training and not model.part.training


def test_a_model_in_training_is_the_users_and_runs_with_the_flag_it_had_when_it_was_wrapped():
    model = Classifier()
    executor = trained(model)
    assert executor.model is model
    executor.eval()
    assert not model.training and executor._model.training  # a shallow copy keeps its own


def test_the_text_of_an_executor_shows_blocks():
    model = Classifier()
    poptorch.BeginBlock(model.fc, "head", ipu_id=1)
    assert "BeginBlock(user_id=head, ipu_id=1)" in repr(poptorch.inferenceModel(model))


def test_training_flags_are_those_of_compilation():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x)

    model = Model().eval()
    x = torch.ones(64)
    evaluating = poptorch.inferenceModel(model)
    evaluating.compile(x)
    model.train()
    training = poptorch.inferenceModel(model)
    assert (training(x) == 0).any()
    assert torch.equal(evaluating(x), x)
    model.eval()
    assert (training(x) == 0).any()
    assert not model.drop.training


def test_attributes_that_forward_sets_stay_off_the_users_model():
    class Model(torch.nn.Module):
        def forward(self, x):
            self.seen = 1
            return x

    model = Model()
    poptorch.inferenceModel(model)(X)
    assert not hasattr(model, "seen")


def run_twice_as_identity(model, fold, monkeypatch):
    """Runs a model that gives back its input on four micro-batches, twice; returns its executor and the input."""
    monkeypatch.setenv("POPTORCH_HOST_FOLD", str(fold))
    executor, x = poptorch.inferenceModel(model, poptorch.Options().deviceIterations(4)), torch.randn(8, 4)
    for _ in range(2):
        assert torch.equal(executor(x), x)
    return executor, x


@needs_core("forward runs at compilation only")
@pytest.mark.parametrize("fold", [0, 4])
def test_counters_and_flags_of_modules_are_for_every_micro_batch_what_they_were_for_the_compiler(fold, monkeypatch):
    class Counting(torch.nn.Module):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            return x * self.calls

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.first, self.table = Counting(), True, None

        def forward(self, x):
            self.table = torch.arange(4, device=x.device) if self.table is None else self.table
            first, self.first = self.first, False
            return self.part(x) if first else x - x

    model = Model()
    executor, x = run_twice_as_identity(model, fold, monkeypatch)
    assert model.part.calls == 1 and model.first and model.table is None
    model.part.calls = 5
    executor(x)
    assert model.part.calls == 5


@needs_core("forward runs at compilation only")
@pytest.mark.parametrize("fold", [0, 4])
def test_tensors_of_the_host_that_forward_writes_to_are_written_to_by_the_compiler_only(fold, monkeypatch):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.count = torch.zeros(1)

        def forward(self, x):
            self.count += 1
            return x * self.count.item()

    model = Model()
    run_twice_as_identity(model, fold, monkeypatch)
    assert model.count.item() == 1


@host_only("where libraries register")
def test_functions_that_libraries_substitute_are_replaced_while_forward_runs(monkeypatch):
    class Doubling:
        def replace(self):
            self.before, torch.nn.functional.relu = torch.nn.functional.relu, lambda x: 2 * x

        def restore(self):
            torch.nn.functional.relu = self.before

    monkeypatch.setattr(substitutions, "_registered", [])
    loaded = importlib.util.find_spec(f"{poptorch.__name__}._poplar_executor").loader.load_module()  # as they do
    loaded._OverwriteContextManager.registerSubsitutionManager(Doubling)
    before = torch.nn.functional.relu
    executor = poptorch.inferenceModel(Function(lambda x: torch.nn.functional.relu(x)))
    for _ in range(2):
        assert executor(torch.ones(1)).tolist() == [2] and torch.nn.functional.relu is before


def test_isRunningOnIpu_is_true_inside_forward_only():
    seen = []
    executor = poptorch.inferenceModel(Function(lambda x: seen.append(poptorch.isRunningOnIpu()) or x))
    executor(X)
    assert set(seen) == {True} and not poptorch.isRunningOnIpu()
    Function(lambda x: seen.append(poptorch.isRunningOnIpu()) or x)(X)
    assert seen[-1] is False


def test_an_error_in_forward_comes_out_and_leaves_the_model_as_it_was():
    fail = [True]

    class Model(Classifier):
        def forward(self, x):
            if fail:
                raise ValueError("from forward")
            return super().forward(x)

    model = Model()
    weight = model.fc.weight
    executor = poptorch.inferenceModel(model)
    with raises(ValueError, match="from forward"):
        executor(X)
    assert not executor.isCompiled() and model.fc.weight is weight and not poptorch.isRunningOnIpu()
    fail.clear()
    executor(X)
    fail.append(True)
    with raises(ValueError, match="from forward"):
        executor(X)
    assert model.fc.weight is weight and executor.isCompiled()


@needs_core("it tracks attributes of the model")
def test_setOptimizer_is_needed_for_a_new_rate_to_count():
    model = Classifier()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0)
    executor = poptorch.trainingModel(model, None, optimizer)
    start = model.fc.weight.detach().clone()
    executor(X, LABELS)
    optimizer.param_groups[0]["lr"] = 0.5
    executor(X, LABELS)
    assert torch.equal(model.fc.weight.detach(), start)
    executor.setOptimizer(optimizer)
    executor(X, LABELS)
    assert not torch.equal(model.fc.weight.detach(), start)
    with raises(poptorch.Error, match="does not train"):
        poptorch.inferenceModel(Classifier()).setOptimizer(optimizer)


def test_half_accumulators_turn_the_reduction_running_on_the_executors_options_only():
    model, options = Classifier(), accumulating(2)
    executor = poptorch.trainingModel(
        model, options, poptorch.optim.AdamW(model.parameters(), lr=1e-3, accum_type=torch.float16)
    )
    running = poptorch.MeanReductionStrategy.Running
    assert executor.options.Training.meanAccumulationAndReplicationReductionStrategy == running
    assert options.Training.meanAccumulationAndReplicationReductionStrategy == poptorch.MeanReductionStrategy.Post


@pytest.mark.parametrize("strategy", list(poptorch.MeanReductionStrategy))
@pytest.mark.parametrize("scaling", [1.0, 128.0])
def test_reduction_strategies_and_loss_scaling_change_nothing_but_rounding(strategy, scaling):
    def weight(options, **kwargs):
        torch.manual_seed(0)
        model = Classifier()
        executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.1, **kwargs))
        _, loss = executor(*classifier_batch(8))
        return model.fc.weight.detach(), loss

    options = accumulating(4)
    options.Training.setMeanAccumulationAndReplicationReductionStrategy(strategy)
    expected, expected_loss = weight(accumulating(4))
    actual, loss = weight(options, loss_scaling=scaling)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(loss, expected_loss)


def test_no_grad_around_a_call_does_not_stop_training():
    model = Classifier()
    start = model.fc.weight.detach().clone()
    executor = trained(model)
    with torch.no_grad():
        executor(X, LABELS)
    assert not torch.equal(model.fc.weight.detach(), start)
    assert not poptorch.inferenceModel(model)(X).requires_grad


def test_models_without_inputs_run():
    executor = poptorch.inferenceModel(Function(lambda: torch.rand(5)), poptorch.Options().deviceIterations(3))
    assert executor().shape == (15,)


def test_importing_the_executor_has_no_effect():
    program = (
        "import torch; before = torch.get_num_threads(), torch.is_grad_enabled(), dict(vars(torch.Tensor));"
        "import poptorch_host.executor;"
        "assert before == (torch.get_num_threads(), torch.is_grad_enabled(), dict(vars(torch.Tensor)))"
    )
    result = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert result.stdout == b""


@needs_core("it keeps the values that gradients need")
def test_a_model_compiled_and_called_in_inference_mode_trains_and_infers_as_ever():
    class Normed(Classifier):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, x, labels=None):
            return super().forward(self.norm(x), labels)

    results = []
    for mode in (contextlib.nullcontext, torch.inference_mode):
        torch.manual_seed(0)
        model = Normed()
        training, inference = trained(model), poptorch.inferenceModel(model)
        with mode():
            x, labels = classifier_batch(4)
            inference(x)
            training(x, labels)
        training(*classifier_batch(4))
        results.append([inference(x), model.fc.weight.detach(), model.norm.running_mean])
    for one, other in zip(*results):
        assert torch.equal(one, other)


@needs_core("it keeps the values that gradients need")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "change",
    [
        lambda model, y, x: (y * model.state, model.state.add_(1)),
        lambda model, y, x: (y * x, x.zero_()),
        lambda model, y, x: (y.sigmoid_().add_(1),),
        lambda model, y, x: (torch.relu_(y).mul_(2).pow(2),),
    ],
)
def test_values_that_forward_writes_over_count_as_they_were_for_the_gradients(change, dtype):
    class Changing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 3)
            self.register_buffer("state", torch.full((3,), 2.0))

        def forward(self, x):
            return poptorch.identity_loss(change(self, self.fc(x), x)[0], "sum")

    model, x = Changing().to(dtype), torch.rand(4, 3, dtype=dtype) + 1
    native = copy.deepcopy(model).float()
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        native(x.clone().float()).backward()
    executor = trained(model, lr=0.125)
    executor(x.clone())
    expected = native.fc.weight - 0.125 * native.fc.weight.grad
    torch.testing.assert_close(model.fc.weight.float(), expected, rtol=1e-2, atol=1e-2)
    executor(x)


@host_only("the record of a compilation")
def test_what_a_batch_norm_writes_to_its_own_statistics_is_not_written_over():
    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(True))

        def forward(self, x):
            slope = torch.func.grad(lambda value: (value**2).sum())(x)  # which takes no hooks for what is kept
            return poptorch.identity_loss(self.layers(slope), "mean")

    executor = trained(Normed())
    executor(X)
    assert not executor.compiled.overwrites_saved
