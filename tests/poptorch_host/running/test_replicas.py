# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
import socket

import pytest
import torch

from tests import forked
from tests.backend import host_only, needs_core, optim, poptorch, raises

from ..models import Classifier, accumulating, classifier_batch, trained

KINDS = poptorch.CommGroupType
ONE = poptorch.VariableRetrievalMode.OnePerGroup


class Counting(torch.nn.Module):
    """Adds its input to a buffer and returns it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("sum", torch.zeros(1))

    def forward(self, x):
        self.sum += x
        return self.sum * 1


@needs_core("it has groups of replicas")
def test_buffers_that_forward_updates_cannot_be_broadcast():
    with raises(poptorch.Error, match="does not support broadcasting buffers.*sum"):
        poptorch.inferenceModel(Counting(), poptorch.Options().replicationFactor(2))(torch.ones(2))
    grouped = poptorch.Options().replicationFactor(2)
    grouped.inputReplicaGrouping(2, KINDS.Consecutive)
    poptorch.inferenceModel(Counting(), grouped)(torch.ones(1))


@needs_core("it has groups of replicas")
def test_replicas_keep_buffers_of_their_own():
    options = poptorch.Options().replicationFactor(2).deviceIterations(2).broadcastBuffers(False)
    model = Counting()
    executor = poptorch.inferenceModel(model, options)
    assert executor(torch.tensor([1.0, 10, 1, 10])).tolist() == [1, 10, 2, 20]
    assert executor(torch.tensor([1.0, 10, 1, 10])).tolist() == [3, 30, 4, 40]
    executor.copyWeightsToHost()
    assert model.sum.item() == 4
    executor.copyWeightsToDevice()
    assert executor(torch.zeros(4)).tolist() == [4, 4, 4, 4]


def test_batch_norm_may_be_replicated():
    model = torch.nn.BatchNorm1d(3)
    x = torch.randn(8, 3)
    executor = poptorch.inferenceModel(model, poptorch.Options().replicationFactor(2))
    torch.testing.assert_close(executor(x), torch.cat([torch.nn.BatchNorm1d(3)(half) for half in x.split(4)]).detach())


@pytest.mark.parametrize("reduction", ["Mean", "Sum"])
def test_replicas_and_accumulation_are_one_batch(reduction):
    def weight(options, batch, lr):
        torch.manual_seed(0)
        model = Classifier()
        options.Training.accumulationAndReplicationReductionType(getattr(poptorch.ReductionType, reduction))
        trained(model, options, lr)(*batch)
        return model.fc.weight.detach()

    batch = classifier_batch(12)
    expected = weight(poptorch.Options(), batch, 0.1 * (6 if reduction == "Sum" else 1))
    for options in (
        accumulating(6),
        accumulating(2).autoRoundNumIPUs().replicationFactor(3),
        poptorch.Options().autoRoundNumIPUs().replicationFactor(6),
    ):
        torch.testing.assert_close(weight(options, batch, 0.1), expected)


class Grouped(torch.nn.Module):
    """Multiplies by a weight that replicas need not share."""

    def __init__(self, start):
        super().__init__()
        self.weight = torch.nn.Parameter(start.clone())

    def forward(self, x):
        return x * self.weight, poptorch.identity_loss(x * self.weight, "sum")


@needs_core("it has groups of replicas")
@pytest.mark.parametrize(
    "kind, size, rows",
    [
        (KINDS.NoGrouping, 0, [0, 1, 2, 3]),
        (KINDS.Consecutive, 2, [0, 0, 1, 1]),
        (KINDS.Orthogonal, 2, [0, 1, 0, 1]),
        (KINDS.Consecutive, 1, [0, 1, 2, 3]),
    ],
)
@pytest.mark.parametrize("reduction", ["Mean", "Sum"])
def test_groups_of_replicas_have_weights_of_their_own(kind, size, rows, reduction):
    start = torch.arange(1.0, max(rows) + 2).view(-1, 1)
    model = Grouped(start)
    options = poptorch.Options().replicationFactor(4)
    options.Training.accumulationAndReplicationReductionType(getattr(poptorch.ReductionType, reduction))
    executor = trained(model, options, lr=1.0)
    executor.weight.replicaGrouping(kind, size, ONE)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    products, _ = executor(x)
    assert products.tolist() == [start[row].item() * value for row, value in zip(rows, x.tolist())]
    members = [[value for row, value in zip(rows, x.tolist()) if row == group] for group in range(max(rows) + 1)]
    gradients = [sum(values) / (4 if reduction == "Mean" else 1) for values in members]  # a mean is over all replicas
    torch.testing.assert_close(model.weight.detach(), start - torch.tensor(gradients).view(-1, 1))


@needs_core("it has groups of replicas")
@pytest.mark.parametrize(
    "groups, shared", [(KINDS.Consecutive, KINDS.Orthogonal), (KINDS.Orthogonal, KINDS.Consecutive)]
)
def test_weights_and_data_cut_across_each_other_train_like_the_whole(groups, shared):
    generator = torch.Generator().manual_seed(3)
    x, whole = torch.randn(8, 5, generator=generator), torch.randn(5, 6, generator=generator)
    reference = Product(whole)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    shards = whole.view(5, 3, 2).transpose(0, 1)
    model = Product(shards)
    options = (
        poptorch.Options()
        .autoRoundNumIPUs()
        .replicationFactor(6)
        .inputReplicaGrouping(3, shared)
        .outputMode(poptorch.OutputMode.All)
    )
    executor = trained(model, options, lr=0.1)
    executor.weight.replicaGrouping(groups, 2, ONE)
    for _ in range(3):
        expected = reference(x)[1]
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(executor(x)[1].mean(), expected.detach())
    torch.testing.assert_close(model.weight.detach().transpose(0, 1).reshape(5, 6), reference.weight.detach())


class Product(Grouped):
    """A matrix product whose loss is a mean."""

    def forward(self, x):
        product = x @ self.weight
        return product, poptorch.identity_loss(product**2, "mean")


@needs_core("it has groups of replicas")
def test_replicas_without_groups_are_compiled_with_a_row_and_keep_states_of_their_own():
    model = Product(torch.ones(4, 6))
    optimizer = poptorch.optim.AdamW(model.parameters(), 0.1)
    executor = poptorch.trainingModel(model, poptorch.Options().replicationFactor(4), optimizer)
    executor.weight.replicaGrouping(KINDS.NoGrouping, 0, ONE)
    executor(torch.ones(4, 6))
    state = optimizer.state_dict()
    assert {name: tensor.shape[0] for name, tensor in state["ipu_state"].items()} == dict.fromkeys(
        state["ipu_state"], 4
    )
    optimizer.load_state_dict(state)
    assert executor(torch.ones(4, 6))[0].shape == (4,)
    assert optimizer.state_dict()["ipu_state"]["Step___weight"].tolist() == [2, 2, 2, 2]


@needs_core("it has groups of replicas")
def test_all_replicas_share_without_a_dimension_in_front():
    executor = trained(Grouped(torch.ones(1)), poptorch.Options().replicationFactor(2))
    executor.weight.replicaGrouping(KINDS.All, 0, ONE)
    assert executor(torch.ones(2))[0].tolist() == [1, 1]


@needs_core("it has groups of replicas")
def test_every_replica_can_be_fetched():
    model = Grouped(torch.tensor([[1.0], [2.0]]))
    executor = trained(model, poptorch.Options().replicationFactor(4), lr=2.0)
    executor.weight.replicaGrouping(KINDS.Consecutive, 2, poptorch.VariableRetrievalMode.AllReplicas)
    executor(torch.ones(4))
    assert model.weight.detach().flatten().tolist() == [0, 0, 1, 1]
    executor.copyWeightsToDevice()
    assert executor(torch.ones(4))[0].tolist() == [0, 0, 1, 1]


@needs_core("it has groups of replicas")
def test_groupings_are_exported_with_the_model(tmp_path):
    executor = trained(Grouped(torch.tensor([[2.0], [3.0]])), poptorch.Options().replicationFactor(2))
    executor.weight.replicaGrouping(KINDS.NoGrouping, 0, ONE)
    executor.compileAndExport(str(tmp_path / "program"), torch.ones(2))
    loaded = poptorch.load(str(tmp_path / "program"))
    for _ in range(2):
        assert torch.equal(loaded(torch.ones(2))[0], executor(torch.ones(2))[0])


@needs_core("it has groups of replicas")
def test_groupings_are_checked():
    executor = trained(Grouped(torch.ones(3, 1)), poptorch.Options().replicationFactor(4))
    with raises(AssertionError):
        executor.weight.replicaGrouping("All", 0, ONE)
    executor.weight.replicaGrouping(KINDS.NoGrouping, 0, ONE)
    with raises(poptorch.Error, match="must be the number of groups, 4"):
        executor(torch.ones(4))
    executor = trained(Grouped(torch.ones(4, 1)), poptorch.Options().replicationFactor(4))
    executor.weight.replicaGrouping(KINDS.Consecutive, 3, ONE)
    with raises(poptorch.Error, match="do not divide"):
        executor(torch.ones(4))


@needs_core("it has groups of replicas")
def test_the_proxy_of_a_parameter_behaves_like_it():
    model = Grouped(torch.tensor([3.0]))
    executor = poptorch.inferenceModel(model)
    proxy = executor.weight
    assert proxy.shape == (1,) and float(proxy) == 3 and (proxy + 1).item() == 4 and len(proxy) == 1
    assert torch.mul(proxy, 2).item() == 6 and torch.stack([proxy, proxy]).shape == (2, 1) and proxy[0] == 3
    proxy.data.fill_(5)
    assert model.weight.item() == 5


def train_share(rank, world, port, folder):
    """In a process of its own: trains with its share of four replicas and of the batches, and keeps the weights."""
    if world > 1:
        torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.manual_seed(rank)  # weights are those of the first process
    model = Classifier()
    model.fc = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    options = poptorch.Options().replicationFactor(4 // world)
    options.Training.gradientAccumulation(3)
    options.Distributed.configureProcessId(rank, world)
    executor = poptorch.trainingModel(model, options, optim.AdamW(model.parameters(), lr=0.01))
    generator = torch.Generator().manual_seed(7)
    for _ in range(3):
        x, y = torch.randn(3, 4, 2, 4, generator=generator), torch.randint(0, 3, (3, 4, 2), generator=generator)
        mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
        executor(x[:, mine].reshape(-1, 4), y[:, mine].reshape(-1))
    torch.save(model.state_dict(), folder / f"{world}_{rank}.pt")


@host_only("processes joined by torch.distributed")
def test_two_processes_with_half_the_replicas_train_like_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    runs = [(0, 1), (0, 2), (1, 2)]
    processes = [forked.start(train_share, rank, world, port, tmp_path) for rank, world in runs]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    one, first, second = (torch.load(tmp_path / f"{world}_{rank}.pt", weights_only=True) for rank, world in runs)
    for name, value in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
