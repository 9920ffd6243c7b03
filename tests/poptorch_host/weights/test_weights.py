# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
import copy
import io
import pickle

import pytest
import torch

from tests.backend import NAME, host_only, needs_core, poptorch, raises

from ..models import Classifier, Function, classifier_batch, trained

X, LABELS = classifier_batch()


def step(executor):
    return executor(X, LABELS)


def test_wrapping_for_training_changes_classes_in_place_and_destroy_gives_them_back():
    model = Function(lambda *args: args)
    model.fc, model.norm = torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)
    parameter, buffer = model.fc.weight, model.norm.running_mean
    executor = trained(model)
    assert type(model).__name__ == "PoptorchFunction" and isinstance(model, Function)
    assert type(parameter).__name__ == "PoptorchParameter" and isinstance(parameter, torch.nn.Parameter)
    assert type(buffer).__name__ == "PoptorchBuffer"
    assert model.fc.weight is parameter and executor.model is model
    executor.destroy()  # never compiled: nothing happens
    assert type(model).__name__ == "PoptorchFunction"


def test_a_model_is_wrapped_once_until_it_is_destroyed():
    model = Classifier()
    executor = trained(model)
    with raises(RuntimeError, match="already been wrapped"):
        trained(model)
    step(executor)
    model.destroy()
    assert type(model) is Classifier and type(model.fc.weight) is torch.nn.Parameter
    assert not executor.isCompiled()
    step(trained(model))


@needs_core("it logs and checks copies of weights")
def test_a_wrapped_model_can_be_plain_for_a_while():
    model = Classifier()
    executor = trained(model)
    step(executor)
    poptorch._impl.unwrapModelIfNecessary(model)
    poptorch._impl.unwrapModelIfNecessary(model)  # nothing left to do
    assert type(model) is Classifier and type(model.fc.weight) is torch.nn.Parameter
    plain = model.fc.weight.detach().clone()
    step(executor)
    torch.testing.assert_close(model.fc.weight, plain, rtol=0, atol=0)
    poptorch._impl.rewrapModelIfNecessary(model)
    assert type(model).__name__ == "PoptorchClassifier" and not torch.equal(model.fc.weight, plain)
    poptorch._impl.unwrapModelIfNecessary(model)
    executor.destroy()
    poptorch._impl.rewrapModelIfNecessary(model)  # for nobody
    assert type(model) is Classifier
    step(trained(model))


@pytest.mark.parametrize(
    "read",
    [
        lambda model, executor: model.fc.weight.detach().clone(),
        lambda model, executor: model.state_dict()["fc.weight"],
        lambda model, executor: executor.state_dict()["fc.weight"],
        lambda model, executor: 1 * model.fc.weight.data,
        lambda model, executor: list(model.parameters())[0] + 0,
        lambda model, executor: copy.deepcopy(model).fc.weight,
        lambda model, executor: torch.add(input=model.fc.weight, other=0),
        lambda model, executor: model.fc.state_dict()["weight"],
    ],
)
def test_reading_a_weight_after_training_fetches_it(read):
    model = Classifier()
    native = copy.deepcopy(model)
    optimizer = torch.optim.SGD(native.parameters(), lr=0.1)
    executor = trained(model)
    for _ in range(2):
        step(executor)
        optimizer.zero_grad()
        native(X, LABELS)[1].backward()
        optimizer.step()
        torch.testing.assert_close(read(model, executor).detach(), native.fc.weight.detach())


def test_a_wrapped_model_can_change_its_dtype_before_it_is_compiled():
    model = Classifier()
    executor = trained(model)
    model.half()
    logits, _ = executor(X.half(), LABELS)
    assert logits.dtype == torch.float16 and model.fc.weight.dtype == torch.float16


def test_weights_are_fetched_once_for_each_call():
    model = Classifier()
    executor = trained(model)
    assert not model.copyWeightsToHostIfNeeded()
    step(executor)
    assert model.copyWeightsToHostIfNeeded()
    assert not executor.copyWeightsToHostIfNeeded()


def test_changes_of_host_weights_need_copyWeightsToDevice():
    model = Classifier()
    executor = poptorch.inferenceModel(model)
    before = executor(X)
    with torch.no_grad():
        model.fc.weight.zero_()
    assert torch.equal(executor(X), before)
    executor.copyWeightsToDevice()
    assert not torch.equal(executor(X), before)


def test_copyWeightsToDevice_discards_what_was_trained():
    model = Classifier()
    executor = trained(model)
    start = model.fc.weight.detach().clone()
    step(executor)
    executor.copyWeightsToDevice()
    assert torch.equal(model.fc.weight.detach(), start)


def test_load_state_dict_of_the_executor_reaches_the_device():
    model, other = Classifier(), Classifier()
    executor = poptorch.inferenceModel(model)
    executor(X)
    result = executor.load_state_dict(other.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    torch.testing.assert_close(executor(X), other(X).detach())
    with raises(RuntimeError):
        executor.load_state_dict({})


@pytest.mark.parametrize("compile_first", [True, False])
def test_inference_follows_the_training_of_its_model(compile_first):
    model = Classifier()
    training = trained(model)
    inference = poptorch.inferenceModel(model)
    if compile_first:
        inference(X)
    for _ in range(2):
        step(training)
        torch.testing.assert_close(inference(X), model(X).detach())
    step(training)
    training.destroy()
    torch.testing.assert_close(inference(X), model(X).detach())


class Outer(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, labels):
        return self.inner(x, labels)


@pytest.mark.parametrize("train", [lambda model: trained(Outer(model)), trained], ids=["around it", "later"])
def test_inference_does_not_follow_a_training_that_it_was_not_made_of(train):
    model = Classifier()
    inference = poptorch.inferenceModel(model)
    training = train(model)
    step(training)
    torch.testing.assert_close(inference(X), model(X).detach())  # as compiled here
    stale = inference(X)
    step(training)
    torch.testing.assert_close(inference(X), stale, rtol=0, atol=0)
    training.copyWeightsToHost()
    inference.copyWeightsToDevice()
    assert not torch.equal(inference(X), stale)
    torch.testing.assert_close(inference(X), model(X).detach())


@host_only("PopTorch says nothing")
def test_inference_on_a_part_of_a_model_in_training_is_warned_of(log):
    model = Classifier()
    training = trained(Outer(model))
    poptorch.inferenceModel(training.model).compile(X, LABELS)
    assert "trained as part of another" not in log.text
    poptorch.inferenceModel(model).compile(X)
    assert log.text.count("trained as part of another") == 1


def test_copies_of_a_model_in_training_are_in_training_and_deep_copies_are_not():
    model = Classifier()
    executor = trained(model)
    step(executor)
    for copied in (copy.copy(model), poptorch.inferenceModel(model)):
        with raises(RuntimeError, match="already been wrapped"):
            poptorch.trainingModel(copied)
    assert type(copy.copy(model)).__name__ == "PoptorchClassifier"
    copied = copy.deepcopy(model)
    assert type(copied) is Classifier and torch.equal(copied.fc.weight, model.fc.weight)
    step(executor)
    assert not torch.equal(copied.fc.weight, model.fc.weight)


def test_buffers_of_a_model_in_training_cannot_be_deep_copied():
    model = torch.nn.BatchNorm1d(3)
    executor = trained(model)
    with raises(RuntimeError, match="copy the model before trainingModel"):
        copy.deepcopy(model)
    assert torch.equal(copy.deepcopy(executor.state_dict())["running_var"], torch.ones(3))


def test_executors_cannot_be_copied():
    model = Classifier()
    for executor in (trained(model), poptorch.inferenceModel(model)):
        for duplicate in (copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
            with raises((TypeError, RecursionError, AttributeError), match="cannot be copied or pickled"):
                duplicate(executor)


def test_executor_for_inference_can_be_written_until_it_is_compiled_but_not_read():
    executor = poptorch.inferenceModel(Classifier())
    written = pickle.dumps(executor)
    with raises((TypeError, RecursionError), match="cannot be copied or pickled"):
        pickle.loads(written)
    executor(torch.ones(2, 4))
    with raises(TypeError, match="cannot be copied or pickled"):
        pickle.dumps(executor)


@host_only("PopTorch's own classes are in what is copied and pickled")
def test_saved_models_and_state_dicts_are_those_of_the_original_classes():
    model = Classifier()
    executor = trained(model)
    step(executor)
    for value, weights_only in ((model, False), (model.state_dict(), True)):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        for name in (b"PoptorchClassifier", b"PoptorchParameter", b"_executor"):
            assert name not in buffer.getvalue()
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=weights_only)
        state = loaded if weights_only else loaded.state_dict()
        assert all(type(tensor) is torch.Tensor for tensor in state.values())
        assert torch.equal(state["fc.weight"], model.fc.weight.detach())
    assert type(copy.deepcopy(model)) is Classifier


def test_tied_weights_stay_tied_and_frozen_ones_stay_as_they_are():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.frozen = (torch.nn.Linear(3, 3, bias=False) for _ in range(3))
            self.two.weight = self.one.weight
            self.frozen.weight.requires_grad_(False)

        def forward(self, x):
            return poptorch.identity_loss(self.frozen(self.two(self.one(x))) ** 2, "mean")

    model = Tied()
    native = copy.deepcopy(model)
    trained(model, lr=0.1)(torch.ones(2, 3))
    (native.frozen(native.two(native.one(torch.ones(2, 3)))) ** 2).mean().backward()
    assert model.one.weight is model.two.weight
    torch.testing.assert_close(model.one.weight.detach(), (native.one.weight - 0.1 * native.one.weight.grad).detach())
    assert torch.equal(model.frozen.weight, native.frozen.weight)


@needs_core("it runs training without gradients")
def test_a_model_without_anything_to_train_runs():
    model = Classifier()
    model.fc.weight.requires_grad_(False)
    model.fc.bias.requires_grad_(False)
    before = model.fc.weight.detach().clone()
    logits, loss = step(trained(model))
    assert torch.equal(model.fc.weight, before) and logits.shape == (2, 3) and loss.shape == ()


@pytest.mark.parametrize("name, settings", [("SGD", {"momentum": 0.9}), ("AdamW", {"weight_decay": 0.3})])
def test_parameters_in_no_group_are_updated_with_the_defaults(name, settings, log):
    model = Classifier()
    native = copy.deepcopy(model)
    optimizer = getattr(poptorch.optim, name)([{"params": [model.fc.weight], "lr": 0.02}], lr=0.1, **settings)
    groups = [{"params": [native.fc.weight], "lr": 0.02}, {"params": [native.fc.bias]}]
    expected = getattr(torch.optim, name)(groups, lr=0.1, **settings)
    executor = poptorch.trainingModel(model, None, optimizer)
    for _ in range(2):
        step(executor)
        expected.zero_grad()
        step(native)[1].backward()
        expected.step()
    torch.testing.assert_close(model.fc.weight.detach(), native.fc.weight.detach())
    torch.testing.assert_close(model.fc.bias.detach(), native.fc.bias.detach())
    if NAME == "host":  # a device says nothing
        assert "1 parameters require gradients and are in no group of the optimizer, such as fc.bias" in log.text


def test_optimizer_of_another_model_is_refused():
    other = Classifier()
    executor = poptorch.trainingModel(Classifier(), None, poptorch.optim.SGD(other.parameters(), lr=0.1))
    with raises(
        KeyError, match=r"group 0 of the optimizer has a parameter of shape \(3, .*that the model does not have"
    ):
        step(executor)


def test_the_default_optimizer_is_sgd_with_rate_one_hundredth():
    model = Classifier()
    native = copy.deepcopy(model)
    step(poptorch.trainingModel(model))
    native(X, LABELS)[1].backward()
    torch.testing.assert_close(model.fc.weight.detach(), (native.fc.weight - 0.01 * native.fc.weight.grad).detach())


class Counting(torch.nn.Module):
    """Adds to a floating-point buffer, and writes to an integer one, in every forward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("constant", torch.zeros(1, dtype=torch.int64))
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        self.count += 1
        self.constant += 1
        return self.count * 1, self.constant * 1, poptorch.identity_loss(x * self.weight, "sum")


@needs_core("it keeps buffers apart from the host's")
def test_float_buffers_are_state_of_the_device_and_integer_ones_constants():
    options = poptorch.Options().deviceIterations(2).outputMode(poptorch.OutputMode.All)
    options.Training.gradientAccumulation(3)
    model = Counting()
    executor = trained(model, options)
    counts, constants, _ = executor(torch.ones(6))
    assert counts.tolist() == [1, 2, 3, 4, 5, 6] and set(constants.tolist()) == {1}
    executor(torch.ones(6))
    assert model.count.item() == 12 and model.constant.item() == 0


@needs_core("it logs and checks copies of weights")
def test_copies_of_weights_are_logged_and_fetched_once_after_training(log):
    model = Classifier()
    executor = trained(model)
    executor(*classifier_batch())
    for _ in range(2):
        model.fc.weight.sum()
    assert log.text.count("Implicit copyWeightsToHost()") == log.text.count("Writing weights from IPU to host") == 1
    executor.copyWeightsToDevice()
    assert "Writing weights from host to IPU memory" in log.text


@needs_core("it keeps buffers apart from the host's")
@pytest.mark.parametrize("replicas", [1, 2])
def test_gradients_end_where_a_micro_batch_reads_what_another_wrote(replicas):
    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 3)
            self.register_buffer("state", torch.zeros(2, 3))

        def forward(self, x):
            self.state += self.fc(x)  # with a gradient, which reaches this micro-batch's weights
            return poptorch.identity_loss(self.state, "sum")

    model, x = Recurrent(), torch.randn(2, 3)
    native = copy.deepcopy(model)
    options = poptorch.Options().deviceIterations(2).replicationFactor(replicas).broadcastBuffers(False)
    executor = trained(model, options, lr=0.1)
    for _ in range(2):
        executor(x.repeat(2 * replicas, 1))
    optimizer = torch.optim.SGD(native.parameters(), lr=0.1)
    for _ in range(4):
        native.state.detach_()
        optimizer.zero_grad()
        native(x).backward()
        optimizer.step()
    torch.testing.assert_close(model.fc.weight.detach(), native.fc.weight.detach())
    torch.testing.assert_close(model.state.clone(), native.state.detach())
    assert not model.state.requires_grad


def test_inference_fetches_buffers_only_when_told():
    model = Counting()
    executor = poptorch.inferenceModel(model)
    executor(torch.ones(1))
    assert model.count.item() == 0
    executor.copyWeightsToHost()
    assert model.count.item() == 1


def test_batch_norm_keeps_its_statistics_on_the_device():
    torch.manual_seed(0)

    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, x):
            return poptorch.identity_loss(self.norm(x) ** 2, "mean")

    options = poptorch.Options()
    options.Training.gradientAccumulation(2)
    model = Normed()
    native = copy.deepcopy(model)
    x = torch.randn(8, 4)
    trained(model, options)(x)
    native.norm(x[:4]), native.norm(x[4:])
    torch.testing.assert_close(model.norm.running_mean, native.norm.running_mean)
    torch.testing.assert_close(model.norm.running_var, native.norm.running_var)


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
def test_reassigning_or_removing_a_tensor_of_the_model_is_refused(kind):
    class Changing(torch.nn.Module):
        def __init__(self, change):
            super().__init__()
            self.register_buffer("buffer", torch.zeros(1))
            self.parameter = torch.nn.Parameter(torch.zeros(1))
            self._change = change

        def forward(self, x):
            self._change(self)
            return x + 1

    def reassign(model):
        setattr(model, kind, torch.nn.Parameter(torch.ones(1)) if kind == "parameter" else torch.ones(1))

    def remove(model):
        delattr(model, kind)

    for change, words in (
        (reassign, "is reassigned within the model when calling the forward method"),
        (remove, "is removed from the model when calling the forward method"),
    ):
        model = Changing(change)
        with raises(poptorch.Error, match=f"{kind.capitalize()} {kind} {words}"):
            poptorch.inferenceModel(model)(torch.ones(1))
        assert NAME == "sdk" or getattr(model, kind).item() == 0  # PopTorch leaves the change in the model


@needs_core("it takes buffers by name")
def test_named_buffers_can_be_updated():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(1))
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x * self.scale * self.weight

    model = Scaled()
    executor = poptorch.inferenceModel(model, poptorch.Options().updatableNamedBuffers(["scale"]))
    executor(torch.ones(1))
    with torch.no_grad():
        model.scale.fill_(3)
        model.weight.fill_(5)
    executor.copyNamedBuffersToDevice()
    assert executor(torch.ones(1)).item() == 3
    plain = poptorch.inferenceModel(Scaled())
    plain(torch.ones(1))
    with raises(poptorch.Error, match="updatableNamedBuffers"):
        plain.copyNamedBuffersToDevice()
    with raises(poptorch.Error, match="no buffer missing"):
        poptorch.inferenceModel(Scaled(), poptorch.Options().updatableNamedBuffers(["missing"]))(torch.ones(1))


@needs_core("it logs and checks copies of weights")
def test_tensors_that_the_user_put_in_the_place_of_weights_reach_the_device():
    model = torch.nn.BatchNorm1d(2).eval()
    executor = poptorch.inferenceModel(model, poptorch.Options().updatableNamedBuffers(["running_mean"]))
    x = torch.zeros(1, 2)
    executor(x)
    model.running_mean = torch.full((2,), -1.0)
    executor.copyNamedBuffersToDevice()
    torch.testing.assert_close(executor(x), model(x).detach())
    model.bias = torch.nn.Parameter(torch.full((2,), 7.0))
    executor.copyWeightsToDevice()
    torch.testing.assert_close(executor(x), model(x).detach())
    for other, now in (
        (torch.nn.Parameter(torch.ones(3)), r"was replaced by one of shape \[3\]"),
        (None, "was removed"),
    ):
        model.bias = other
        with raises(poptorch.Error, match=rf"Parameter bias of shape \[2\] {now}"):
            executor.copyWeightsToDevice()


@needs_core("it logs and checks copies of weights")
def test_a_parameter_that_the_user_deleted_keeps_no_executor_from_being_destroyed(log):
    model = Classifier()
    executor = trained(model)
    executor(X, LABELS)
    del model.fc.bias
    executor.destroy()
    assert "Parameter fc.bias of shape [3] was removed" in log.text and type(model) is Classifier


def test_trained_weights_are_fetched_into_the_tensors_that_the_model_has_now():
    model = Classifier()
    executor = trained(model)
    executor(X, LABELS)
    model.fc.bias = torch.nn.Parameter(torch.full((3,), 7.0))
    executor(X, LABELS)
    assert model.state_dict()["fc.bias"].max() < 7
    torch.testing.assert_close(poptorch.inferenceModel(model)(X), model(X).detach())


@needs_core("it logs and checks copies of weights")
def test_program_goes_on_as_compiled_where_the_user_replaced_a_part_of_the_model():
    """A device keeps its program; weights are copied to the part that has the name now."""
    undisturbed = Classifier()
    model = copy.deepcopy(undisturbed)
    executor, expected = trained(model), trained(undisturbed)
    executor(X, LABELS), expected(X, LABELS)
    replaced = model.fc
    model.fc = copy.deepcopy(model.fc)
    assert torch.equal(executor(X, LABELS)[1], expected(X, LABELS)[1])
    assert torch.equal(executor(X, LABELS)[1], expected(X, LABELS)[1])
    assert model.fc is not replaced
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    del model.fc
    assert torch.equal(executor(X, LABELS)[1], expected(X, LABELS)[1])
    assert not hasattr(model, "fc")
    with raises(poptorch.Error, match=r"Parameter fc.weight of shape .* was removed"):
        executor.copyWeightsToDevice()


@needs_core("it converts to single precision")
def test_double_weights_are_single_on_the_device():
    model = Classifier().double()
    executor = trained(model)
    logits, _ = executor(X.double(), LABELS)
    assert logits.dtype == torch.float32 and model.fc.weight.dtype == torch.float64


def test_recurrent_layers_run_on_the_weights_of_the_device():
    model = torch.nn.LSTM(3, 2)
    x = torch.randn(4, 1, 3)
    executor = poptorch.inferenceModel(model)
    options_before = executor(x)[0]
    torch.testing.assert_close(options_before, model(x)[0].detach())
    with torch.no_grad():
        model.weight_ih_l0.zero_()
    torch.testing.assert_close(executor(x)[0], options_before)


@pytest.mark.parametrize(
    "normalise",
    [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm, torch.nn.utils.parametrizations.spectral_norm],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_are_computed_from_others_are_trained_as_on_the_host(normalise):
    def make():
        torch.manual_seed(0)
        model = Classifier()
        model.fc = normalise(model.fc)
        return model

    model, native = make(), make()
    executor, optimizer = trained(model, lr=0.5), torch.optim.SGD(native.parameters(), lr=0.5)
    for _ in range(3):
        loss = native(X, LABELS)[1]
        torch.testing.assert_close(executor(X, LABELS)[1], loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, tensor in native.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)
