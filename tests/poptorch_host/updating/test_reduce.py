# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Gradients summed over processes: two processes with a replica each against one process with both."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
from poptorch_host.precision.loss_scale import LossScale
from poptorch_host.updating import reduce

from tests import forked
from tests.backend import host_only, optim, poptorch
from tests.poptorch_host.device import Device, WithLoss, assert_close, make_batches, make_options

pytestmark = [
    host_only("its own modules, driven directly"),
    pytest.mark.skipif(not dist.is_available(), reason="this PyTorch is built without torch.distributed"),
]


STEPS, ACCUMULATION = 3, 2


class Net(torch.nn.Module):
    """A layer that every process uses, one that process 1 does in its first micro-batch only, and one nobody does."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.shared = torch.nn.Linear(6, 3)
        self.sometimes = torch.nn.Linear(6, 3)
        self.never = torch.nn.Linear(6, 3)
        self.to(dtype)

    def forward(self, values, extra):
        result = self.shared(values)
        return result + self.sometimes(values) if extra else result


CASES = {
    "float32": (torch.float32, lambda p: optim.AdamW(p, lr=0.05, max_grad_norm=0.5, loss_scaling=4.0), {}),
    "one at a time": (torch.float32, lambda p: optim.SGD(p, lr=0.05, momentum=0.9), {}),
    "half accumulators": (torch.float32, lambda p: optim.SGD(p, lr=0.05, accum_type=torch.float16), {}),
    "half": (torch.float16, lambda p: optim.AdamW(p, lr=0.05), {"enableStochasticRounding": True}),
    "automatic loss scaling": (
        torch.float16,
        lambda p: optim.SGD(p, lr=0.05, loss_scaling=16.0),
        {"automaticLossScalingSettings.enabled": True},
    ),
}


def options_of(case, process, processes):
    options = make_options(ACCUMULATION, **CASES[case][2])
    options.replicationFactor(2 // processes)
    options.Distributed.configureProcessId(process, processes)
    return options


def micro_batches(process, processes):
    """For each step (inputs, targets, whether the extra layer runs) of a process's micro-batches."""
    for inputs, targets in make_batches(STEPS, rows=4 * ACCUMULATION):
        parts = list(zip(inputs.chunk(2 * ACCUMULATION), targets.chunk(2 * ACCUMULATION)))
        yield [
            (part, target, index == 1)
            for index, (part, target) in enumerate(parts)
            for replica in [index % 2]
            if processes == 1 or replica == process
        ]


def train(case, process, processes, overlap=True):
    """The weights after STEPS updates, and the device."""
    dtype, make, _ = CASES[case]
    device = Device(Net(dtype), make, options_of(case, process, processes), seed=process)
    for step in micro_batches(process, processes):
        for inputs, targets, extra in step:
            if overlap:
                device.update.before_backward(1)
            # Written with sums and products only: old versions have no half kernels for more on a CPU.
            weights = device.module
            outputs = (weights.shared.weight.float() * inputs.mean(0)).sum(1) + weights.shared.bias.float()
            if extra:
                outputs = outputs + (weights.sometimes.weight.float() * inputs.mean(0)).sum(1)
            loss = (outputs - targets.mean(0)).square().mean()
            loss.backward(torch.full_like(loss, device.update.root_gradient()))
            device.update.accumulate(1)
        device.update.apply()
    return device


def train_model(process, processes):
    """The weights after training through PopTorch's interface, two updates a call."""
    options = make_options(ACCUMULATION).deviceIterations(2).replicationFactor(2 // processes)
    options.Distributed.configureProcessId(process, processes)
    model = WithLoss()
    if process == 1:
        model.net[0].weight.data.zero_()  # a program has the weights of process 0 in every process
    optimizer = optim.AdamW(model.parameters(), lr=0.05, max_grad_norm=0.1)
    trainer = poptorch.trainingModel(model, options, optimizer)
    for inputs, targets in make_batches(STEPS, rows=8 * ACCUMULATION):
        parts = [torch.stack(rows.chunk(4 * ACCUMULATION)) for rows in (inputs, targets)]
        trainer(*[part[process::processes].flatten(0, 1) for part in parts])
    return [parameter.detach().clone() for parameter in model.parameters()]


def run_process(process, port, folder):
    """A process of two: every case, small buckets, results to a file."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    reduce.BUCKET_BYTES = 64
    results = {}
    for case in CASES:
        device = train(case, process, 2, overlap=case != "one at a time")
        results[case] = [weight.float() for weight in device.weights]
        results[f"{case}: extra"] = [
            torch.tensor([float(value) for value in device.update.rounding_state]),
            torch.tensor(device.update.loss_scale),
        ]
        device.update.release()
    results["model"] = train_model(process, 2)
    scale = LossScale(True, torch.device("cpu"), dist.group.WORLD)
    scale.observe([torch.tensor([10000.0, 1.0][process]).half()])
    scale.update(1.0, True)
    results["factor"] = torch.tensor(scale.factor)
    torch.save(results, os.path.join(folder, f"{process}.pt"))
    dist.barrier()
    os._exit(0)  # torch 2.0 hangs or aborts now and then when it takes a gloo group down


# Parallel runs of these tests must not start the processes of the fixture in every worker.
shares_results = pytest.mark.xdist_group("two_processes")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each of two processes had at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("processes")
    processes = [forked.start(run_process, process, port, str(folder)) for process in range(2)]
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{process}.pt", weights_only=True) for process in range(2)]


@shares_results
@pytest.mark.parametrize("case", CASES)
def test_processes_hold_the_same_weights(results, case):
    assert_close(results[0][case], results[1][case], 0)


@shares_results
@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_weights_of_one_with_both_replicas(results, case):
    alone = train(case, 0, 1)
    lowered = "half" in case or "automatic" in case
    assert_close(results[0][case], [weight.float() for weight in alone.weights], 4e-3 if lowered else 1e-6)


@shares_results
def test_training_model_in_two_processes_equals_one_process_with_both_replicas(results):
    alone = train_model(0, 1)
    for result in results:
        assert_close(result["model"], alone, 1e-6)


@shares_results
def test_parameter_used_in_one_process_is_updated_in_both_and_unused_one_in_none(results):
    start = [parameter.detach() for parameter in Net(torch.float32).parameters()]
    for weights in (results[0]["float32"], results[1]["float32"]):
        changed = [not torch.equal(before, after) for before, after in zip(start, weights)]
        assert changed == [True, True, True, False, False, False]


@shares_results
def test_processes_agree_on_the_seed_of_rounding_and_the_loss_scale(results):
    for case in CASES:
        for left, right in zip(results[0][f"{case}: extra"], results[1][f"{case}: extra"]):
            assert torch.equal(left, right)


@shares_results
def test_large_gradient_in_one_process_halves_the_scale_in_both(results):
    assert [result["factor"].item() for result in results] == [0.5, 0.5]


def test_one_process_needs_no_group():
    assert reduce.process_group(poptorch.Options(), torch.device("cpu")) is None


def test_several_processes_without_a_launcher_refused(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    options = poptorch.Options()
    options.Distributed.configureProcessId(0, 2)
    with pytest.raises(poptorch.Error, match="torchrun"):
        reduce.process_group(options, torch.device("cpu"))


@pytest.fixture
def lonely_group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture
def layers():
    return [torch.nn.Parameter(torch.ones(4)) for _ in range(5)]


def backward(layers):
    """Gradient of layer i: i + 1."""
    sum((index + 1) * layer.sum() for index, layer in enumerate(layers)).backward()


def make_reducer(layers, group, bucket_bytes):
    reducer = reduce.GradientReducer(layers, group, lambda index: layers[index].grad, bucket_bytes)
    sent, send = [], reducer._send
    reducer._send = lambda bucket: sent.append(bucket.members) or send(bucket)
    return reducer, sent


@pytest.mark.parametrize(
    "bucket_bytes, buckets", [(1, [[4], [3], [2], [1], [0]]), (32, [[4, 3], [2, 1], [0]]), (10**6, [[4, 3, 2, 1, 0]])]
)
def test_buckets_are_sent_during_the_last_backward_from_the_last_layer_on(lonely_group, layers, bucket_bytes, buckets):
    reducer, sent = make_reducer(layers, lonely_group, bucket_bytes)
    backward(layers)
    assert sent == []
    reducer.arm()
    backward(layers)
    assert sent == buckets
    sums = reducer.finish()
    assert sent == buckets
    assert_close(sums, [torch.full((4,), 2.0 * (index + 1)) for index in range(5)], 0)


def test_bucket_waits_for_those_before_it_whatever_becomes_ready_first(lonely_group, layers):
    reducer, sent = make_reducer(layers, lonely_group, 1)
    reducer.arm()
    backward(layers[:3])
    assert sent == []
    sums = reducer.finish()
    assert sent == [[4], [3], [2], [1], [0]]
    assert sums[3] is None and sums[4] is None
    assert_close(sums[:3], [torch.full((4,), index + 1.0) for index in range(3)], 0)


def test_nothing_is_sent_before_the_end_unless_armed(lonely_group, layers):
    reducer, sent = make_reducer(layers, lonely_group, 1)
    backward(layers)
    assert sent == []
    assert_close(reducer.finish(), [layer.grad for layer in layers], 0)


def test_closed_reducer_listens_no_more(lonely_group, layers):
    reducer, sent = make_reducer(layers, lonely_group, 1)
    reducer.arm()
    reducer.close()
    backward(layers)
    assert sent == []


def test_gradient_completed_twice_in_one_backward_refused(lonely_group, layers):
    reducer, _ = make_reducer(layers, lonely_group, 1)
    reducer.arm()
    backward(layers)
    with pytest.raises(poptorch.Error, match="twice"):
        backward(layers)


def test_group_of_another_size_than_the_options_say_refused(lonely_group):
    options = poptorch.Options()
    options.Distributed.configureProcessId(0, 2)
    with pytest.raises(poptorch.Error, match="2 processes"):
        reduce.process_group(options, torch.device("cpu"))


@pytest.mark.parametrize("accum_type", [torch.float32, torch.float16])
def test_update_sends_during_its_last_backward_and_not_before(lonely_group, monkeypatch, accum_type):
    monkeypatch.setattr("poptorch_host.updating.update.process_group", lambda *_: lonely_group)
    sent, send = [], dist.all_reduce
    monkeypatch.setattr(dist, "all_reduce", lambda *args, **kwargs: sent.append(1) or send(*args, **kwargs))
    device = Device(WithLoss(), lambda p: optim.SGD(p, lr=0.1, accum_type=accum_type), make_options(2))
    for messages in (0, 1):
        device.update.before_backward(1)
        device.module(*make_batches(1)[0])[1].backward()
        assert len(sent) == messages
        device.update.accumulate(1)
    device.update.apply()
    assert len(sent) == 1


def test_sums_are_laid_out_as_the_weights_are(lonely_group, monkeypatch):
    """Weights in channels-last order, with an update rule that torch fuses where it can."""

    def run():
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        device = Device(net, lambda p: optim.AdamW(p, lr=0.1))
        for seed in range(2):
            torch.manual_seed(seed)
            device.update.before_backward(1)
            device.module(torch.randn(2, 3, 5, 5)).square().sum().backward()
            device.update.accumulate(1)
            device.update.apply()
        return device.weights

    alone = run()
    monkeypatch.setattr("poptorch_host.updating.update.process_group", lambda *_: lonely_group)
    assert_close(run(), alone, 1e-6)


def test_processes_read_which_gradients_there_are_only_where_one_is_missing(lonely_group, monkeypatch):
    """A GPU would wait for that."""
    read = []
    monkeypatch.setattr(reduce._Bucket, "flags", lambda bucket, of=reduce._Bucket.flags: read.append(0) or of(bucket))
    tensors = [torch.zeros(2, requires_grad=True) for _ in range(2)]
    found = [torch.ones(2), torch.ones(2)]
    reducer = reduce.GradientReducer(tensors, lonely_group, lambda index: found[index])
    for missing in (False, True):
        if missing:
            found[1] = None
        reducer.arm()
        before = len(read)
        sums = reducer.finish()
        assert [None if total is None else total.tolist() for total in sums] == [[1, 1], None if missing else [1, 1]]
        assert len(read) - before == len(tensors) + missing  # each gradient is noted, and the notes are read
