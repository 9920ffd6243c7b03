# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""DataLoader: combined batches, lengths and ends of epochs, in every mode."""

import collections
import gc
import logging

import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from tests.backend import host_only, poptorch, raises
from tests.poptorch_host.deadline import deadline  # noqa: F401
from tests.poptorch_host.loading.sample_sets import (
    EpochNumbers,
    Numbers,
    Pairs,
    Records,
    Stream,
    graph_of,
    numbers,
)

SYNC, ASYNC, REBATCHED = poptorch.DataLoaderMode
FORK = {"sharing_strategy": poptorch.SharingStrategy.Fork}


def options(device_iterations=1, replicas=1, accumulation=1):
    made = poptorch.Options().deviceIterations(device_iterations).replicationFactor(replicas)
    made.Training.gradientAccumulation(accumulation)
    return made


class WithoutLength:
    """A sampler that does not know how many indices it will yield."""

    def __iter__(self):
        return iter(range(5))


class Unequal:
    """A batch sampler without a batch_size."""

    def __iter__(self):
        return iter([[0], [1, 2], [3, 4, 5], [6]])

    def __len__(self):
        return 4


def loaded(loader):
    """The numbers of every batch."""
    return [numbers(batch) for batch in loader]


@pytest.fixture
def messages(caplog):
    logger = logging.getLogger("poptorch::python")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


# The combined batch.


def test_combined_batch_holds_micro_batches_of_iterations_replicas_and_accumulation():
    loader = poptorch.DataLoader(options(2, 3, 4), Numbers(100), batch_size=2)
    assert loader.combinedBatchSize == 48
    assert [len(batch) for batch in loader] == [48, 48]


def test_combined_batch_counts_a_group_of_replicas_with_one_input_once():
    grouped = options(replicas=4).inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)
    assert poptorch.DataLoader(grouped, Numbers(8), batch_size=3).combinedBatchSize == 6


def test_combined_batch_does_not_depend_on_the_number_of_processes():
    distributed = options(2)
    distributed.Distributed.configureProcessId(0, 4)
    assert poptorch.DataLoader(distributed, Numbers(100), batch_size=3).combinedBatchSize == 6


def test_loader_freezes_the_options_and_keeps_them():
    given = options()
    loader = poptorch.DataLoader(given, Numbers(1))
    assert loader.options is given
    with raises(AttributeError, match="frozen"):
        given.deviceIterations(2)


def test_loader_takes_nothing_else_for_options():
    with raises(AssertionError, match="poptorch.Options"):
        poptorch.DataLoader(None, Numbers(1))


def test_loader_without_batch_size_hands_over_elements_as_they_are():
    loader = poptorch.DataLoader(options(2), Numbers(3), batch_size=None, drop_last=False)
    assert loader.combinedBatchSize is None
    assert [element.shape for element in loader] == [(2,)] * 3
    assert not hasattr(loader, "options")


def test_loader_without_batch_size_refuses_to_drop_the_last():
    with raises(ValueError, match="drop_last"):
        poptorch.DataLoader(options(), Numbers(3), batch_size=None)


# Ends of epochs and lengths.


@pytest.mark.parametrize(
    "samples, drop_last, sizes",
    [(12, True, [4, 4, 4]), (10, True, [4, 4]), (3, True, []), (12, False, [4, 4, 4]), (10, False, [4, 4, 2])],
)
def test_last_batch_is_dropped_or_smaller(samples, drop_last, sizes):
    loader = poptorch.DataLoader(options(2), Numbers(samples), batch_size=2, drop_last=drop_last)
    assert [len(batch) for batch in loader] == sizes
    assert len(loader) == len(sizes)


@host_only("its process and its messages")
@pytest.mark.parametrize("drop_last, samples, warned", [(False, 10, True), (False, 8, False), (True, 10, False)])
def test_smaller_last_batch_is_warned_of(drop_last, samples, warned, messages):
    poptorch.DataLoader(options(2), Numbers(samples), batch_size=2, drop_last=drop_last)
    assert (f"({samples}) is not divisible by the number of elements processed per step (4)" in messages.text) == warned
    assert (f"the last tensor will have a batch size of {samples % 4}" in messages.text) == warned


@host_only("PopTorch is silent")
@pytest.mark.parametrize("samples, drop_last, warned", [(3, True, True), (3, False, False), (4, True, False)])
def test_loader_of_too_few_samples_for_one_batch_is_warned_of(samples, drop_last, warned, messages):
    loader = poptorch.DataLoader(options(2), Numbers(samples), batch_size=2, drop_last=drop_last)
    assert (len(loader) == 0) == warned
    assert (f"The dataset has {samples} elements, fewer than the 4 that" in messages.text) == warned


def test_sampler_without_length_can_keep_the_last_batch():
    loader = poptorch.DataLoader(options(), Numbers(9), batch_size=2, drop_last=False, sampler=WithoutLength())
    assert loaded(loader) == [[0, 1], [2, 3], [4]]


def test_iterable_data_set_is_batched_and_measured():
    loader = poptorch.DataLoader(options(2), Stream(10), batch_size=2)
    assert len(loader) == 2
    assert loaded(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@host_only("its process and its messages")
@pytest.mark.parametrize("workers, init, warned", [(2, None, True), (1, None, False), (2, print, False)])
def test_iterable_data_set_for_several_workers_is_warned_of(workers, init, warned, messages):
    poptorch.DataLoader(options(), Stream(10), num_workers=workers, worker_init_fn=init)
    assert ("duplicated" in messages.text) == warned


# What PyTorch's loader does for it.


def test_shuffling_in_one_process_is_pytorchs():
    ours = poptorch.DataLoader(options(2), Numbers(20), batch_size=2, shuffle=True)
    theirs = torch.utils.data.DataLoader(Numbers(20), batch_size=4, shuffle=True)
    torch.manual_seed(3)
    expected = [loaded(theirs), loaded(theirs)]
    torch.manual_seed(3)
    assert [loaded(ours), loaded(ours)] == expected


def test_keyword_arguments_reach_pytorch():
    sampler = [(epoch, index) for epoch, index in zip([3] * 4, range(4))]
    loader = poptorch.DataLoader(
        options(2),
        EpochNumbers(4),
        batch_size=1,
        sampler=sampler,
        auto_distributed_partitioning=False,
        collate_fn=lambda samples: {"all": samples},
    )
    assert [[tuple(pair.tolist()) for pair in batch["all"]] for batch in loader] == [[(3, 0), (3, 1)], [(3, 2), (3, 3)]]


@pytest.mark.parametrize("workers, asked, persistent", [(0, None, False), (1, None, True), (1, False, False)])
def test_workers_persist_unless_told_otherwise(workers, asked, persistent):
    loader = poptorch.DataLoader(options(), Numbers(1), num_workers=workers, persistent_workers=asked)
    assert loader.persistent_workers is persistent


def test_workers_load_the_same_batches():
    loader = poptorch.DataLoader(options(2), Numbers(8), batch_size=2, num_workers=2)
    assert [loaded(loader), loaded(loader)] == [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 2


def test_terminate_has_no_effect_on_a_synchronous_loader():
    loader = poptorch.DataLoader(options(), Numbers(2))
    loader.terminate()
    assert loaded(loader) == [[0], [1]]


# Batch samplers.

Pair = collections.namedtuple("Pair", "first second")


def batch_sampled(samples, drop_last=True, mode=SYNC, made=Numbers, **kwargs):
    sampler = BatchSampler(SequentialSampler(range(samples)), batch_size=3, drop_last=False)
    return poptorch.DataLoader(
        options(2), made(samples), batch_sampler=sampler, drop_last=drop_last, mode=mode, **kwargs
    )


@pytest.mark.parametrize("mode", [SYNC, ASYNC, REBATCHED])
@pytest.mark.parametrize("drop_last, batches", [(True, [[0, 1, 2, 3, 4, 5]]), (False, [[0, 1, 2, 3, 4, 5], [6, 7, 8]])])
def test_batches_of_a_batch_sampler_are_concatenated(mode, drop_last, batches):
    loader = batch_sampled(9, drop_last, mode, async_options=FORK)
    assert loaded(loader) == batches
    assert loader.batch_sampler_drop_last is drop_last
    loader.terminate()


def test_batch_sampler_gives_the_batch_size_and_the_length():
    loader = batch_sampled(20)
    assert loader.combinedBatchSize == 6
    assert len(loader) == 7


def test_batch_sampler_may_have_batches_of_any_size():
    loader = poptorch.DataLoader(options(2), Numbers(9), batch_sampler=Unequal())
    assert loaded(loader) == [[0, 1, 2], [3, 4, 5, 6]]


def test_batches_of_a_batch_sampler_are_concatenated_inside_containers():
    pairs, records = next(iter(batch_sampled(6, made=Pairs))), next(iter(batch_sampled(6, made=Records)))
    assert numbers(pairs[0]) == [0, 1, 2, 3, 4, 5] and pairs[1].tolist() == [0, -1, -2, -3, -4, -5]
    assert records["image"].dtype is torch.half and records["label"].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", [list, tuple, Pair._make])
def test_batches_of_a_batch_sampler_keep_the_class_of_their_container(kind):
    def collate(samples):
        return kind([torch.stack(samples), -torch.stack(samples)])

    batch = next(iter(batch_sampled(6, collate_fn=collate)))
    assert type(batch) is type(collate([torch.ones(1)]))
    assert numbers(batch[0]) == [0, 1, 2, 3, 4, 5] and numbers(batch[1]) == [0, -1, -2, -3, -4, -5]


def test_batches_of_a_batch_sampler_are_concatenated_inside_types_with_a_parser():
    graph = next(iter(batch_sampled(6, collate_fn=graph_of)))
    assert numbers(graph.nodes) == [0, 1, 2, 3, 4, 5] and numbers(graph.edges) == [0, 10, 20, 30, 40, 50]


@host_only("PopTorch does not check these")
def test_batches_of_a_batch_sampler_without_tensors_cannot_be_concatenated():
    with raises(poptorch.Error, match="contain str"):
        next(iter(batch_sampled(6, collate_fn=lambda samples: ["one", "two"])))


@pytest.mark.parametrize("arguments", [{"batch_size": 2}, {"shuffle": True}])
def test_batch_sampler_excludes_batch_size_and_shuffle(arguments):
    with raises(poptorch.Error, match="mutually exclusive"):
        poptorch.DataLoader(options(), Numbers(4), batch_sampler=Unequal(), **arguments)


# Asynchronous modes.


@pytest.mark.parametrize(
    "made, unpack",
    [(Numbers, lambda batch: batch), (Pairs, lambda batch: -batch[1]), (Records, lambda batch: batch["label"])],
)
def test_asynchronous_loader_gives_the_batches_of_a_synchronous_one(made, unpack):
    loader = poptorch.DataLoader(options(2), made(9), batch_size=2, mode=ASYNC)
    assert len(loader) == 2
    for _ in range(3):
        assert [numbers(unpack(batch)) for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    loader.terminate()


def test_asynchronous_loader_begins_anew_after_an_iteration_that_was_left():
    loader = poptorch.DataLoader(options(), Numbers(50), mode=ASYNC, async_options=FORK)
    for batch in loader:
        if numbers(batch) == [7]:
            break
    assert loaded(loader) == [[number] for number in range(50)]
    loader.terminate()


@pytest.mark.parametrize(
    "drop_last, batches", [(True, [[0, 1, 2, 3], [4, 5, 6, 7]]), (False, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]])]
)
@pytest.mark.parametrize("mode", [ASYNC, REBATCHED])
def test_rebatching_loader_gathers_combined_batches(mode, drop_last, batches):
    loader = poptorch.DataLoader(
        options(2),
        Numbers(10),
        batch_size=2,
        mode=mode,
        drop_last=drop_last,
        rebatched_worker_size=3,
        async_options=FORK,
    )
    assert len(loader) == len(batches)
    assert [loaded(loader), loaded(loader)] == [batches] * 2
    assert hasattr(loader, "rebatched_drop_last") == (mode == REBATCHED or not drop_last)
    loader.terminate()


def test_rebatching_uses_what_workers_of_an_iterable_data_set_have_left():
    kept = poptorch.DataLoader(options(4), Stream(12), mode=REBATCHED, num_workers=2, rebatched_worker_size=2)
    lost = poptorch.DataLoader(options(4), Stream(12), mode=ASYNC, num_workers=2)
    assert sorted(sum(loaded(kept), [])) == list(range(12))
    assert loaded(lost) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert len(kept) == 3
    for loader in (kept, lost):
        loader.terminate()


def test_asynchronous_loader_shuffles_anew_each_epoch_from_the_seed():
    def two_epochs():
        torch.manual_seed(5)
        loader = poptorch.DataLoader(options(), Numbers(30), shuffle=True, mode=ASYNC, async_options=FORK)
        epochs = [sum(loaded(loader), []) for _ in range(2)]
        loader.terminate()
        return epochs

    first, second = two_epochs()
    assert first != second and sorted(first) == sorted(second) == list(range(30))
    assert two_epochs() == [first, second]


def test_asynchronous_loader_takes_generators_and_samplers_along_with_a_fork():
    def order(mode):
        sampler = RandomSampler(range(30), generator=torch.Generator().manual_seed(9))
        loader = poptorch.DataLoader(options(), Numbers(30), sampler=sampler, mode=mode, async_options=FORK)
        numbers_read = sum(loaded(loader), [])
        loader.terminate()
        return numbers_read

    assert order(ASYNC) == order(SYNC)


@host_only("its process and its messages")
def test_asynchronous_loader_ends_its_process_when_it_is_deleted():
    loader = poptorch.DataLoader(options(), Numbers(9), mode=ASYNC, async_options=FORK)
    process = loader._accessor._process._process
    assert process.is_alive()
    gc.disable()  # without the help of cycle detection
    try:
        del loader
    finally:
        gc.enable()
    assert not process.is_alive()


def test_terminated_loader_refuses_to_iterate():
    loader = poptorch.DataLoader(options(), Numbers(9), mode=ASYNC, async_options=FORK)
    loader.terminate()
    loader.terminate()
    with raises(AssertionError, match="terminated"):
        iter(loader)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(mode=REBATCHED, batch_size=4, rebatched_worker_size=5), "rebatched_worker_size"),
        (dict(mode=REBATCHED, batch_size=4, rebatched_worker_size=0), "batch_size=0"),
        (dict(mode=REBATCHED, batch_size=1), "rebatched_size must exceed 1"),
        (dict(mode=REBATCHED, batch_size=0), "batch_size=0"),
        (dict(mode=ASYNC, async_options={"rebatched_size": 2}), "async_options cannot contain rebatched_size"),
        pytest.param(dict(mode=1), "DataLoaderMode", marks=host_only("PopTorch reads synchronously then")),
    ],
)
def test_arguments_of_asynchronous_modes_must_fit_together(arguments, message):
    with raises((AssertionError, ValueError), match=message):
        poptorch.DataLoader(options(), Numbers(9), **arguments)


def test_samples_without_batches_are_not_gathered():
    loader = poptorch.DataLoader(options(), Numbers(3), mode=REBATCHED, batch_size=None, async_options=FORK)
    assert [tensor.tolist() for tensor in loader] == [[0, 0], [1, 1], [2, 2]]


@host_only("its process and its messages")
@pytest.mark.parametrize(
    "arguments, unused",
    [
        (dict(async_options=FORK), "async_options"),
        (dict(rebatched_worker_size=1), "rebatched_worker_size"),
        (dict(mode=ASYNC, async_options=FORK, pin_memory=True), "pin_memory"),
    ],
)
def test_arguments_without_effect_are_reported(arguments, unused, messages):
    messages.set_level(logging.INFO, "poptorch::python")
    loader = poptorch.DataLoader(options(), Numbers(9), **arguments)
    assert f"{unused}: no effect with DataLoaderMode.{arguments.get('mode', SYNC).name}" in messages.text
    assert not loader.pin_memory
    loader.terminate()


@pytest.mark.parametrize("mode", [ASYNC, REBATCHED])
def test_asynchronous_loader_takes_no_second_accessor(mode):
    loader = poptorch.DataLoader(options(), Numbers(9), batch_size=2, mode=mode, async_options=FORK)
    with raises(poptorch.Error, match="already has an accessor"):
        poptorch.AsynchronousDataAccessor(loader)
    loader.terminate()


def test_loader_with_persistent_workers_can_be_given_to_a_forked_accessor_after_use():
    loader = poptorch.DataLoader(options(), Numbers(4), num_workers=1)
    expected = loaded(loader)
    accessor = poptorch.AsynchronousDataAccessor(loader, **FORK)
    assert loaded(accessor) == expected
    accessor.terminate()
