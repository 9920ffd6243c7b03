# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""When the running statistics of norms change, and what forward reads of them."""

import copy

import pytest
import torch

from tests.backend import needs_core, poptorch
from tests.poptorch_host.models import accumulating, trained

pytestmark = needs_core("its batch norm writes no statistics, and its variable updates do")

X = torch.arange(32.0).reshape(8, 4)


class Normed(torch.nn.Module):
    """Normalizes `times` times, and returns the statistics as they are afterwards."""

    def __init__(self, norm, times=1):
        super().__init__()
        self.norm, self.times = norm, times

    def forward(self, x):
        for _ in range(self.times):
            y = x = 2 * self.norm(x)
        return self.norm.running_mean, self.norm.running_var, poptorch.identity_loss(y**2, "mean")


@pytest.mark.parametrize("half", [False, True])
def test_inference_in_training_mode_leaves_the_statistics_as_they_are(half):
    model = Normed(torch.nn.BatchNorm1d(4))
    model.norm.running_mean += torch.arange(4)
    x, model = (X.half(), model.half()) if half else (X, model)
    before = copy.deepcopy(model.norm.state_dict())
    executor = poptorch.inferenceModel(model)
    for _ in range(2):
        mean, var, _ = executor(x)
        assert torch.equal(mean, before["running_mean"]) and torch.equal(var, before["running_var"])
    executor.copyWeightsToHost()
    assert torch.equal(model.norm.running_mean, before["running_mean"])


def test_training_reads_the_statistics_of_the_micro_batch_before():
    norm = torch.nn.BatchNorm1d(4, affine=False)
    model = Normed(norm)
    expected = [norm.running_mean.clone()]
    native = copy.deepcopy(norm)
    for rows in X.split(4):
        native(rows)
        expected.append(native.running_mean.clone())
    model.layer = torch.nn.Linear(1, 1)  # something to train
    mean, _, _ = trained(model, accumulating(2).outputMode(poptorch.OutputMode.All))(X)
    torch.testing.assert_close(mean.view(2, 4), torch.stack(expected[:2]))
    torch.testing.assert_close(norm.running_mean, expected[2])


def test_a_norm_that_is_used_twice_keeps_what_its_last_use_computed():
    model = Normed(torch.nn.BatchNorm1d(4), times=2)
    once = copy.deepcopy(model.norm)
    once(2 * torch.nn.functional.batch_norm(X, None, None, training=True))
    trained(model)(X)
    torch.testing.assert_close(model.norm.running_mean, once.running_mean)
    torch.testing.assert_close(model.norm.running_var, once.running_var)


def test_instance_norms_compute_no_statistics():
    model = Normed(torch.nn.InstanceNorm1d(4, affine=True, track_running_stats=True))
    trained(model)(X.view(2, 4, 4))
    assert torch.equal(model.norm.running_mean, torch.zeros(4)) and torch.equal(model.norm.running_var, torch.ones(4))
