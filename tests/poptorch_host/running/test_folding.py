# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
import copy
import functools
import os

import pytest
import torch
from poptorch_host import host
from torch.utils.checkpoint import checkpoint

from tests.backend import host_only, poptorch

from ..models import Classifier, Function, accumulating, classifier_batch, trained

pytestmark = host_only("how many micro-batches one forward covers")


@pytest.fixture(autouse=True)
def fresh_settings(monkeypatch):
    monkeypatch.setattr(host, "_settings", type(host._settings)())
    monkeypatch.delenv("POPTORCH_HOST_FOLD", raising=False)
    monkeypatch.delenv("POPTORCH_HOST_DEVICE", raising=False)


def forwards_of_a_call(model, options, *inputs):
    """How often forward runs in a call, after compilation."""
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(None))
    executor = trained(model, options)
    executor.compile(*inputs)
    calls.clear()
    executor(*inputs)
    return len(calls)


@pytest.mark.parametrize("setting, forwards", [(None, 2), ("0", 16), ("1", 16), ("4", 4), ("auto", 2), ("100", 2)])
def test_the_environment_says_how_many_micro_batches_one_forward_covers(setting, forwards, monkeypatch):
    if setting is not None:
        monkeypatch.setenv("POPTORCH_HOST_FOLD", setting)
    options = accumulating(8).deviceIterations(2)
    assert forwards_of_a_call(Classifier(), options, *classifier_batch(16)) == forwards


def test_configure_says_it_too():
    host.configure(fold=2)
    assert forwards_of_a_call(Classifier(), accumulating(8), *classifier_batch(8)) == 4
    host.configure(fold=False)
    assert forwards_of_a_call(Classifier(), accumulating(8), *classifier_batch(8)) == 8
    host.configure(fold=True)
    assert forwards_of_a_call(Classifier(), accumulating(8), *classifier_batch(8)) == 1
    for wrong in (-1, "many"):
        with pytest.raises(poptorch.Error, match="fold is"):
            host.configure(fold=wrong)


@pytest.mark.parametrize("whole", [True, False])
def test_module_that_is_kept_apart_keeps_its_program_from_folding_and_no_other(whole):
    apart = Classifier()
    host.keep_apart(apart if whole else next(apart.children()))
    assert forwards_of_a_call(copy.deepcopy(apart), accumulating(8), *classifier_batch(8)) == 8
    assert forwards_of_a_call(Classifier(), accumulating(8), *classifier_batch(8)) == 1


def test_devices_are_those_of_pytorch(monkeypatch):
    assert host.device() == torch.device("cpu")
    monkeypatch.setenv("POPTORCH_HOST_DEVICE", "cuda:1")
    assert host.device() == torch.device("cuda:1")
    host.configure(device="cpu")
    assert host.device() == torch.device("cpu")
    with pytest.raises(poptorch.Error, match="unknown to PyTorch"):
        host.configure(device="no such thing")


@pytest.mark.parametrize(
    "limits, size",
    [({}, None), ({"v2": "max"}, None), ({"v2": "4096"}, 4096), ({"v1": "4096"}, 4096), ({"v1": "9" * 19}, None)],
)
def test_memory_of_the_host_is_that_of_its_container(limits, size, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "_MEMORY_LIMITS", (tmp_path / "v2", tmp_path / "v1"))
    for name, text in limits.items():
        (tmp_path / name).write_text(f"{text}\n")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert host.total_memory(torch.device("cpu")) == (size or machine)


def test_each_folded_micro_batch_keeps_its_own_loss_statistics_and_shape():
    shapes = []

    def forward(x):
        shapes.append(tuple(x.shape))
        return torch.nn.functional.batch_norm(x, None, None, training=True), x.mean(), x.argmax()

    executor = poptorch.inferenceModel(Function(forward), poptorch.Options().deviceIterations(4))
    x = torch.randn(16, 2)
    normed, means, best = executor(x)
    assert set(shapes) == {(4, 2)} and len(shapes) == 2
    for index, rows in enumerate(x.split(4)):
        expected, mean, position = forward(rows)
        torch.testing.assert_close(normed[4 * index : 4 * index + 4], expected)
        torch.testing.assert_close(means[index], mean)
        assert best[index] == position


def test_attention_is_folded_and_few_or_large_micro_batches_are_not():
    attention = Function(lambda x: torch.nn.functional.scaled_dot_product_attention(x, x, x))
    x = torch.randn(16, 2, 8, 4)
    executor = poptorch.inferenceModel(attention, poptorch.Options().deviceIterations(8))
    torch.testing.assert_close(executor(x), attention(x))
    assert executor._program.engine.fold == (
        8 if hasattr(torch.nn, "attention") else 1
    )  # older vmap does not know its parts
    few = poptorch.inferenceModel(attention, poptorch.Options().deviceIterations(2))
    few.compile(x)
    large = poptorch.inferenceModel(Function(lambda x: x + 1), poptorch.Options().deviceIterations(4))
    large.compile(torch.ones(4, 2**20))
    assert few._program.engine.fold == large._program.engine.fold == 1


def test_programs_with_state_are_not_folded():
    class Normed(Classifier):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(4)

        def forward(self, x, labels):
            return super().forward(self.norm(x), labels)

    assert forwards_of_a_call(Normed(), accumulating(4), *classifier_batch(16)) == 4
    assert forwards_of_a_call(Normed().eval(), accumulating(4), *classifier_batch(16)) == 1


def test_what_vmap_refuses_runs_one_by_one():
    lstm, x = torch.nn.LSTM(2, 2), torch.randn(12, 2)
    executor = poptorch.inferenceModel(lstm, poptorch.Options().deviceIterations(4))
    expected = torch.cat([lstm(rows)[0].detach() for rows in x.split(3)])
    for _ in range(2):
        torch.testing.assert_close(executor(x)[0], expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_weights_are_the_same_with_a_checkpoint_in_forward(reentrant):
    """One that is not reentrant runs a part of the model again in the backward pass, which is outside the fold."""

    class Model(Classifier):
        def __init__(self, run):
            super().__init__()
            self.first, self.run = torch.nn.Linear(4, 4), run

        def forward(self, x, labels):
            return torch.nn.functional.cross_entropy(self.run(self.fc, self.first(x)), labels)

    weights = []
    for run in (lambda layer, x: layer(x), functools.partial(checkpoint, use_reentrant=reentrant)):
        torch.manual_seed(0)
        model = Model(run)
        trainer = trained(model, accumulating(8))
        for _ in range(2):
            trainer(*classifier_batch(16))
        weights.append(model.fc.weight.detach().clone())
    torch.testing.assert_close(*weights)


def test_a_forward_that_writes_to_its_inputs_writes_once():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = torch.nn.LSTM(2, 2)  # which vmap refuses, after the write

        def forward(self, x):
            x += 1
            return x * 1, self.lstm(x)[0]

    x = torch.zeros(8, 2)
    output, _ = poptorch.inferenceModel(Model(), poptorch.Options().deviceIterations(8))(x)
    assert torch.equal(output, torch.ones(8, 2))


def test_errors_of_the_program_come_out_as_they_are():
    fail = []

    def forward(x):
        if fail:
            raise KeyError("from the program")
        return x

    executor = poptorch.inferenceModel(Function(forward), poptorch.Options().deviceIterations(4))
    executor(torch.ones(4))
    fail.append(True)
    with pytest.raises(KeyError, match="from the program"):
        executor(torch.ones(4))


def test_dropout_masks_of_folded_micro_batches_differ():
    model = Classifier()
    model.drop = torch.nn.Dropout(0.5)
    model.forward = lambda x, labels: torch.nn.functional.cross_entropy(model.fc(model.drop(x)), labels)
    options = accumulating(8).randomSeed(1)
    options.outputMode(poptorch.OutputMode.All)
    losses = trained(model, options)(torch.ones(8, 4), torch.zeros(8, dtype=torch.int64))
    assert len(set(losses.tolist())) > 2


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int32, torch.float16])
def test_sums_have_the_dtype_of_what_is_summed(dtype):
    rows = torch.arange(8).to(dtype)
    sums = []
    for fold in (False, True):
        host.configure(fold=fold)
        options = poptorch.Options().deviceIterations(8).outputMode(poptorch.OutputMode.Sum)
        sums.append(poptorch.inferenceModel(Function(lambda x: x.clone()), options)(rows))
    assert sums[0].dtype == sums[1].dtype == dtype
    assert torch.equal(sums[0], sums[1])
