# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
import re

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from tests.backend import host_only, needs_core, poptorch, raises

from ..logs import warnings_in
from ..models import Classifier, Function, accumulating, classifier_batch, trained

X = torch.linspace(-1, 1, 24).view(4, 6)


def infer(function, *inputs):
    return poptorch.inferenceModel(Function(function))(*(inputs or (X,)))


@needs_core("the compiler refuses operations and arguments")
@pytest.mark.parametrize(
    "function, op",
    [
        (lambda x: x.nonzero(), "aten::nonzero"),
        (lambda x: x.masked_select(x > 0), "aten::masked_select"),
        (lambda x: torch.where(x > 0), "aten::nonzero"),
        (lambda x: x * x.sum().item(), "aten::_local_scalar_dense"),
        (lambda x: x if x.sum() > 9 else -x, "_local_scalar"),
        (lambda x: torch.from_numpy(x.numpy()), "_local_scalar"),
        (lambda x: torch.tensor(x.tolist()), "_local_scalar"),
        (lambda x: x.tril(), "aten::tril"),
        (lambda x: F.huber_loss(x, x), "aten::huber_loss"),
        (lambda x: torch.fft.fft(x).real, "aten::_fft"),
        (lambda x: x.unique(), "aten::_unique2"),
        (lambda x: x.to_sparse().to_dense(), "to_sparse"),
        (lambda x: F.pad(x.view(1, 2, 2, 2, 3), (1,) * 6, mode="reflect"), "aten::reflection_pad3d"),
        (lambda x: x + x.tolist()[0][0], "_local_scalar"),
        (lambda x: x + x.numpy()[0, 0].item(), "_local_scalar"),
        (lambda x: torch.multinomial(x.abs(), 1), "aten::multinomial"),
        (lambda x: x.lgamma(), "aten::lgamma"),
    ],
)
def test_operations_that_no_device_has_are_named(function, op):
    with raises(poptorch.Error, match=f"Unsupported ops found in compiled model: .*{op}"):
        infer(function)


@needs_core("it reports and checks")
def test_tensors_that_are_made_without_a_place_are_reported_once_for_each_function(log):
    infer(lambda x: x + torch.zeros(6) + torch.ones(6) + torch.zeros(6) + torch.rand(6, device="ipu") + x.new_ones(6))
    assert warnings_in(log) == [f"No device set in torch.{name}(): forcing to IPU" for name in ("zeros", "ones")]


@needs_core("the compiler refuses operations and arguments")
def test_all_unsupported_operations_are_named_at_once():
    with raises(poptorch.Error, match=r"\[aten::tril, aten::lgamma\]"):
        infer(lambda x: x.tril().lgamma())


@host_only("an addition to PopTorch's message")
def test_unsupported_operations_are_named_with_the_line_of_the_program_that_has_them():
    def forward(x):
        y = torch.nn.functional.huber_loss(x, x)
        return y * x.sum().item()

    first = forward.__code__.co_firstlineno + 1
    with pytest.raises(poptorch.Error, match=rf", in {re.escape(__file__)}:{first}, .*:{first + 1}$"):
        infer(forward)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.rot90(x),
        lambda x: torch.select_scatter(x, x[0], 0, 1),
        lambda x: torch.dist(x, 2 * x),
        lambda x: torch.slice_scatter(x, x[:2], 0, 1, 3),
        lambda x: torch.block_diag(x, x),
        lambda x: torch.deg2rad(x),
        lambda x: torch.addr(x, x[:, 0], x[0]),
        lambda x: F.pixel_unshuffle(x.view(1, 1, 4, 6), 2),
        lambda x: F.interpolate(x.view(1, 1, 4, 6), (2, 3), mode="area"),
        lambda x: torch.unsafe_split(x, 2)[0],
        lambda x: torch.ldexp(x, x),
        torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(6, 2)).eval(),
        torch.nn.LSTMCell(6, 2),
        torch.nn.GRUCell(6, 2),
    ],
)
def test_operations_that_torch_expands_for_a_device_compile(function):
    results, expected = infer(function), function(X)
    for result, value in zip(*[(x,) if torch.is_tensor(x) else x for x in (results, expected)]):
        torch.testing.assert_close(result, value.detach())


@needs_core("the compiler refuses operations and arguments")
@pytest.mark.parametrize(
    "layer, words",
    [
        (torch.nn.LSTM(6, 2, 2), "2 layers"),
        (torch.nn.GRU(6, 2, bidirectional=True), "two directions"),
        (torch.nn.LSTM(6, 2, bias=False), "bias"),
        (torch.nn.RNN(6, 2, 3), "3 layers"),
    ],
)
def test_recurrent_networks_that_no_device_has_are_refused(layer, words):
    with raises(poptorch.Error, match=f"is not supported on a device with .*{words}"):
        infer(layer, X[None])


@needs_core("the compiler refuses operations and arguments")
@pytest.mark.parametrize("layer", [torch.nn.Embedding, torch.nn.EmbeddingBag])
@pytest.mark.parametrize("option", [{"sparse": True}, {"scale_grad_by_freq": True}, {"max_norm": 1.0}])
def test_embeddings_with_options_that_no_device_has_are_refused(layer, option):
    indices = torch.tensor([[1, 2]])
    assert infer(layer(4, 3), indices).shape[-1] == 3
    with raises(poptorch.Error, match=f"is not supported on a device with {next(iter(option))}"):
        infer(layer(4, 3, **option), indices)


IMAGE = torch.linspace(-1, 1, 48).view(1, 2, 4, 6)


@needs_core("the compiler refuses operations and arguments")
@pytest.mark.parametrize(
    "layer, taken",
    [
        (torch.nn.AdaptiveAvgPool2d((2, 3)), True),
        (torch.nn.AdaptiveAvgPool2d((3, 3)), False),
        (torch.nn.AdaptiveAvgPool2d((None, 6)), True),
        (torch.nn.AdaptiveAvgPool2d((8, 6)), False),
        (lambda x: F.adaptive_avg_pool1d(x[0], 3), True),
        (lambda x: F.adaptive_avg_pool1d(x[0], 4), False),
        (torch.nn.AdaptiveAvgPool3d((2, 2, 2)), True),
        (torch.nn.AdaptiveAvgPool3d((2, 3, 2)), False),
        (torch.nn.Upsample(scale_factor=3, mode="bilinear"), True),
        (torch.nn.Upsample((6, 9), mode="bilinear"), True),
        (torch.nn.Upsample((8, 6), mode="bilinear"), False),
        (torch.nn.Upsample(scale_factor=1.5, mode="bilinear"), False),
        (torch.nn.Upsample((5, 7), mode="bicubic"), True),
        (torch.nn.Upsample((5, 7), mode="bicubic", align_corners=True), False),
    ],
)
def test_pooling_and_interpolation_are_taken_in_the_forms_that_a_device_has(layer, taken):
    if taken:
        torch.testing.assert_close(infer(layer, IMAGE), layer(IMAGE))
        return
    with raises(poptorch.Error, match="is not supported on a device with"):
        infer(layer, IMAGE)


@needs_core("it folds constants")
def test_operations_on_constants_are_computed_while_compiling():
    def forward(x):
        index = torch.arange(6).view(2, 3).tril().nonzero()
        assert index.numpy().tolist() == index.tolist()
        return x + index.sum().item()

    assert torch.equal(infer(forward), X + (torch.arange(6).view(2, 3).tril().nonzero()).sum())


@needs_core("the compiler refuses operations and arguments")
@pytest.mark.parametrize("function", [lambda x: x[x > 0], lambda x: x[torch.arange(4) > 1]])
def test_reading_by_a_mask_is_the_error_of_pytorchs_shape_inference_and_poptorchs(function):
    for kind in (DynamicOutputShapeException, poptorch.Error):
        with raises(kind, match="boolean mask .* torch.where"):
            infer(function)


def test_writing_by_a_mask_is_taken():
    def positive(x):
        x = x.clone()
        x[x < 0] = 0.0
        return x

    assert torch.equal(infer(positive), X.relu())


@needs_core("it folds constants")
def test_random_operations_are_no_constants():
    executor = poptorch.inferenceModel(
        Function(lambda x: (torch.rand(3), torch.ones(3))), poptorch.Options().deviceIterations(2)
    )
    random, constant = executor(torch.ones(2))
    assert random.shape == (6,) and constant.shape == (3,)


HOST, HOST_INDEX = torch.ones(6), torch.tensor([0, 2])


def set_by_index(x):
    result = x.clone()
    result[HOST_INDEX, HOST_INDEX] = 0.0
    return result


@needs_core("the compiler refuses operations and arguments")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + HOST,
        lambda x: torch.cat([x, HOST[None]]),
        lambda x: x + HOST.view(6),
        lambda x: torch.mul(x, HOST),
        lambda x: x + HOST * 2,
        lambda x: x.index_select(1, HOST_INDEX),
        lambda x: x + torch.FloatTensor([1.0] * 6),
        lambda x: torch.nn.functional.embedding(torch.LongTensor([0]), x),
        lambda x: x + torch.from_numpy(numpy.ones(6, "float32")),
        lambda x: x + torch.as_tensor([1.0] * 6),
        lambda x: x[:, :2] + torch.eye(2),
        lambda x: x + torch.ones_like(HOST),
        lambda x: x + torch.zeros(6, device="cpu"),
    ],
)
def test_tensors_of_the_host_are_refused(function):
    with raises(poptorch.Error, match="Expected an IPU tensor but got"):
        infer(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + HOST.to(x.device),
        lambda x: x + torch.tensor([1.0] * 6),
        lambda x: x + torch.ones(6),
        lambda x: x + x.new_tensor([1.0] * 6),
        lambda x: x + torch.ones_like(x),
        lambda x: x + torch.full_like(HOST, 1.0),
        lambda x: x + torch.as_tensor([1.0] * 6, device=x.device),
        lambda x: x + torch.empty(6).copy_(HOST),
    ],
)
def test_tensors_that_are_brought_to_the_device_are_welcome(function):
    assert torch.equal(infer(function), X + 1)


@needs_core("it tells tensors of the host apart")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + (HOST * 3).tolist()[0] - 2,
        lambda x: x + int(HOST.max()),
        lambda x: x + HOST.sum().item() / 6,
        lambda x: x + float((HOST + 1).numpy()[0]) - 1,
        lambda x: x + 1 if HOST.sum() > 1 else x,
        lambda x: x + (torch.eye(6) @ HOST).max().item(),
        lambda x: x + torch.LongTensor([1, 1]).bincount()[1].item() - 1,
    ],
)
def test_arithmetic_among_tensors_of_the_host_is_left_to_pytorch(function):
    executor = poptorch.inferenceModel(Function(function))
    torch.testing.assert_close(executor(X), X + 1)
    run = [name for stage in executor.compiled.stages for name in stage.run]
    assert set(run) <= {"aten::add", "aten::sub"}  # a device sees nothing of it


@needs_core("it tells tensors of the host apart")
def test_host_arithmetic_has_values_where_a_model_is_compiled_without(monkeypatch):
    monkeypatch.setenv("POPTORCH_HOST_DEVICE", "meta")
    executor = poptorch.inferenceModel(Function(lambda x: x.repeat(int((HOST * 2).sum()), 1)))
    executor.compile(torch.ones(1, 3))
    assert executor.compiled.output_shapes == [(12, 3)]


@needs_core("it tells tensors of the host apart")
def test_an_output_that_stays_on_the_host_is_returned_with_a_warning(caplog):
    with caplog.at_level("WARNING"):
        shifted, kept = infer(lambda x: (x + 1, HOST * 2))
    assert torch.equal(shifted, X + 1) and kept.tolist() == [2.0] * 6
    assert "Output expected to be on the IPU but is on cpu" in caplog.text


@needs_core("it tells tensors of the host apart")
def test_distributions_do_not_look_at_their_parameters(monkeypatch):
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)  # torch.compile leaves it False

    def score(x):
        return torch.distributions.Normal(x, torch.ones(6)).log_prob(x)

    assert torch.equal(infer(score), score(X))
    assert torch.distributions.Distribution._validate_args


@pytest.mark.parametrize(
    "function", [lambda x: x[HOST_INDEX], lambda x: x[:, HOST_INDEX], lambda x: x[HOST_INDEX, 1:, None], set_by_index]
)
def test_indices_of_the_host_are_brought_to_the_device_of_what_they_index(function):
    assert torch.equal(infer(function), function(X))


@needs_core("the compiler refuses operations and arguments")
def test_one_hot_needs_the_number_of_classes():
    with raises(poptorch.Error, match="num_classes"):
        infer(lambda x: F.one_hot(x.argmax(1)))
    assert infer(lambda x: F.one_hot(x.argmax(1), 6)).shape == (4, 6)


@pytest.mark.parametrize(
    "layer, x",
    [
        (torch.nn.LSTM(6, 2), X[None]),
        (torch.nn.GRU(6, 2), X[None]),
        (torch.nn.MultiheadAttention(6, 2), None),
        (torch.nn.TransformerEncoderLayer(6, 2, 8), X[None]),
        (torch.nn.AdaptiveAvgPool2d(2), X.view(1, 1, 4, 6)),
        (torch.nn.Embedding(9, 3), torch.tensor([[1, 2]])),
        (torch.nn.InstanceNorm1d(4), X[None]),
        (torch.nn.utils.weight_norm(torch.nn.Linear(6, 2)), X),
        (torch.nn.ConvTranspose1d(4, 2, 3), X[None]),
    ],
)
def test_layers_that_a_device_has_whole_compile_with_whatever_kernels_the_host_uses(layer, x):
    inputs = (X[None], X[None], X[None]) if x is None else (x,)
    actual, expected = poptorch.inferenceModel(layer.eval())(*inputs), layer(*inputs)
    torch.testing.assert_close(actual[0], expected[0].detach())


@needs_core("it reports and checks")
@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda o: o.deviceIterations(0), "deviceIterations is 0"),
        (lambda o: o.replicationFactor(-1), "replicationFactor is -1"),
        (lambda o: o._Popart.set("no such key", 1), "no such key"),
    ],
)
def test_options_that_cannot_be_compiled_are_refused_then(spoil, words):
    options = poptorch.Options()
    spoil(options)
    with raises(poptorch.Error, match=words):
        poptorch.inferenceModel(Classifier(), options)(torch.ones(2, 4))


@needs_core("the compiler refuses operations and arguments")
def test_options_of_a_compilation_are_told_for_debugging(log):
    options = poptorch.Options().enableExecutableCaching("cache")
    options.TensorLocations.numIOTiles(40)
    poptorch.inferenceModel(Classifier(), options)(torch.ones(2, 4))
    told = [record.getMessage() for record in log.records]
    assert {
        "poptorch.Options set enableEngineCaching to value true",
        "poptorch.Options set cachePath to value cache",
        "poptorch.Options set numIOTiles to value 40",
        "poptorch.Options set device_iterations to value 1",
    } <= set(told)


def test_option_that_is_set_in_two_ways_is_refused():
    options = poptorch.Options()
    options.TensorLocations.numIOTiles(40)
    options._Popart.set("numIOTiles", 40)
    with raises(AssertionError, match="numIOTiles"):
        poptorch.inferenceModel(Classifier(), options)(torch.ones(2, 4))


def test_compiling_leaves_buffers_inputs_gradients_and_random_numbers_alone():
    class Model(Classifier):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, x, labels):
            return super().forward(F.dropout(self.norm(x.add_(1)), 0.5), labels)

    model = Model()
    x, labels = classifier_batch(4)
    before, state = x.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    executor = trained(model, poptorch.Options().randomSeed(1))
    generator = torch.get_rng_state()
    executor.compile(x, labels)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@host_only("the record of a compilation")
def test_the_record_of_a_compilation_names_stages_operations_loss_and_shapes():
    class Staged(Classifier):
        def forward(self, x, labels):
            with poptorch.Block("first", ipu_id=0):
                x = self.fc(x)
            with poptorch.Block("second", ipu_id=1):
                return x, F.cross_entropy(x, labels)

    executor = trained(Staged(), accumulating(3))
    executor.compile(*classifier_batch(6))
    compiled = executor.compiled
    assert [(stage.ipu, stage.blocks) for stage in compiled.stages] == [(0, ("first",)), (1, ("second",))]
    assert "aten::linear" in compiled.stages[0].ops and "aten::cross_entropy" not in compiled.stages[0].ops
    assert "aten::nll_loss_forward" in compiled.ops
    assert compiled.loss.source == "output" and compiled.loss.position == 1 and compiled.ipus == 2
    assert compiled.output_shapes == [(2, 3), ()]
    assert [name for name, _ in compiled.input_shapes] == ["x", "labels"]
