# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Compiling on the host's device "meta": every check, no values."""

import pytest
import torch
import torch.nn.functional as F
from poptorch_host import host

from tests.backend import host_only, poptorch

from ..models import Classifier, Function, accumulating, classifier_batch, trained

pytestmark = host_only("programs compiled from shapes alone")


X = torch.linspace(-1, 1, 24).view(4, 6)


@pytest.fixture
def meta():
    before = host.device()
    host.configure(device="meta")
    yield
    host.configure(device=before)


class Everything(torch.nn.Module):
    """Stages, half arithmetic, dropout, buffers of both kinds, factories and a loss of its own."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 4, 2, 2)
        self.norm = torch.nn.LayerNorm(4).half()
        self.attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = torch.nn.Linear(4, 5)
        self.register_buffer("order", torch.tensor([3, 2, 1, 0]))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images, targets):
        poptorch.Block.start("first", ipu_id=0)
        self.calls.add_(1)
        x = self.convolution(images.float() / 255).flatten(2).transpose(1, 2)
        x = self.norm(x.half()).float()[:, self.order] + torch.ones(4)
        poptorch.Block.start("second", ipu_id=1)
        x = F.dropout(self.attention(x, x, x, need_weights=False)[0], 0.1, self.training)
        logits = self.head(F.gelu(x).mean(1))
        loss = F.cross_entropy(logits, targets, reduction="none").mean()
        return logits, poptorch.identity_loss(loss, "none"), torch.arange(3)


def everything_compiled(training):
    options = poptorch.Options().deviceIterations(1 if training else 2)
    options.Training.gradientAccumulation(4 if training else 1)
    model = Everything().train(training)
    executor = poptorch.trainingModel(model, options) if training else poptorch.inferenceModel(model, options)
    executor.compile(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    return executor.compiled


@pytest.mark.parametrize("training", [True, False])
def test_the_record_of_a_program_is_the_same_without_values(meta, training):
    blank = everything_compiled(training)
    host.configure(device="cpu")
    real = everything_compiled(training)
    same = set(real._fields) - {"inputs", "outputs", "half_arithmetic"}  # what half needs is a matter of running it
    assert {name: getattr(blank, name) for name in same} == {name: getattr(real, name) for name in same}
    assert blank.input_shapes == real.input_shapes and blank.output_shapes == real.output_shapes
    assert real.updated_buffers == ("calls",) and len(real.stages) == 2 and real.draws_random_numbers == training


def test_weights_without_values_are_compiled(meta):
    with torch.device("meta"):
        model = torch.nn.Linear(100000, 100000)  # 40 GB if anything of it were computed
    executor = poptorch.inferenceModel(model)
    executor.compile(torch.zeros(1, 100000))
    assert executor.compiled.output_shapes == [(1, 100000)]


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda x: x * x.tril().sum().item(), r"\[aten::tril, aten::_local_scalar_dense\]"),
        (lambda x: x[x > 0], "by a boolean mask has a shape that depends on data"),
        (lambda x: x + X, "Expected an IPU tensor"),
        (lambda x: x + torch.arange(6).nonzero().sum(), "aten.nonzero.*depends on values.*compile on cpu"),
    ],
)
def test_what_cannot_be_compiled_is_named_without_values_too(meta, function, words):
    with pytest.raises(poptorch.Error, match=words):
        poptorch.inferenceModel(Function(function)).compile(X)


def test_a_pipeline_that_is_not_filled_is_refused_without_values_too(meta):
    class Staged(Classifier):
        def forward(self, x, labels):
            with poptorch.Block("second", ipu_id=1):
                return super().forward(x, labels)

    with pytest.raises(poptorch.Error, match="gradientAccumulation"):
        trained(Staged(), accumulating(2)).compile(*classifier_batch(4))


def test_a_program_without_values_neither_runs_nor_is_saved(meta, tmp_path):
    executor = poptorch.inferenceModel(torch.nn.Linear(6, 2))
    for _ in range(2):
        with pytest.raises(AssertionError, match="meta"):
            executor(X)
    with pytest.raises(poptorch.Error, match="meta"):
        executor.save(str(tmp_path / "program"))
    executor.destroy()
    host.configure(device="cpu")
    assert executor(X).shape == (4, 2)
