# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""DataLoader in one of several processes: which samples it reads."""

import pytest
import torch
from torch.utils.data import SequentialSampler, SubsetRandomSampler

from tests.backend import host_only, poptorch, raises
from tests.poptorch_host.deadline import deadline  # noqa: F401
from tests.poptorch_host.loading.sample_sets import Numbers, Stream, numbers

FORK = {"sharing_strategy": poptorch.SharingStrategy.Fork}


def loader_of(process, processes, samples, seed=None, device_iterations=1, **kwargs):
    options = poptorch.Options().deviceIterations(device_iterations)
    options.Distributed.configureProcessId(process, processes)
    if seed is not None:
        options.randomSeed(seed)
    return poptorch.DataLoader(options, Numbers(samples), **kwargs)


def epoch(loader):
    """All numbers of an iteration."""
    return [number for batch in loader for number in numbers(batch)]


def epochs(processes, samples, count, **kwargs):
    """For each of `count` epochs, the numbers that each process reads."""
    loaders = [loader_of(process, processes, samples, **kwargs) for process in range(processes)]
    return [[epoch(loader) for loader in loaders] for _ in range(count)]


@pytest.mark.parametrize("mode", poptorch.DataLoaderMode)
def test_processes_read_whole_combined_batches_of_their_own(mode):
    both = epochs(2, 13, 2, device_iterations=2, batch_size=2, mode=mode, async_options=FORK)
    assert both == [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 2


def test_processes_read_everything_when_the_last_batch_may_be_smaller():
    assert epochs(3, 10, 2, batch_size=4, drop_last=False) == [[[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]] * 2


@pytest.mark.parametrize("drop_last, lengths", [(True, [1, 1, 1]), (False, [2, 1, 1])])
def test_length_is_that_of_the_share(drop_last, lengths):
    loaders = [loader_of(process, 3, 10, batch_size=3, drop_last=drop_last) for process in range(3)]
    assert [len(loader) for loader in loaders] == lengths
    assert [len(loader.dataset) for loader in loaders] == ([3, 3, 3] if drop_last else [4, 3, 3])


def test_shuffled_shares_are_disjoint_and_new_in_every_epoch():
    first, second = epochs(4, 16, 2, seed=3, shuffle=True)
    for shares in (first, second):
        assert sorted(sum(shares, [])) == list(range(16))
        assert [len(share) for share in shares] == [4] * 4
    assert all(one != other for one, other in zip(first, second))


def test_shuffled_shares_are_ranges_of_one_permutation_that_alternate_their_start():
    generator = torch.Generator().manual_seed(7)
    permutations = [torch.randperm(11, generator=generator).tolist() for _ in range(3)]
    read = epochs(2, 11, 3, seed=7, batch_size=2, shuffle=True)
    for shares, permutation, start in zip(read, permutations, [3, 0, 3]):
        assert shares == [permutation[start : start + 4], permutation[start + 4 : start + 8]]


def test_shuffled_shares_hold_everything_when_the_last_batch_may_be_smaller():
    for shares in epochs(3, 10, 2, seed=1, batch_size=3, shuffle=True, drop_last=False):
        assert [len(share) for share in shares] == [4, 3, 3]
        assert sorted(sum(shares, [])) == list(range(10))


@host_only("PopTorch draws a permutation for every iterator, and shuffles in the data set")
def test_shuffling_does_not_depend_on_pytorchs_generator_nor_move_it():
    torch.manual_seed(1)
    loader = loader_of(0, 2, 40, seed=3, shuffle=True)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    permutation = list(iter(loader.sampler))
    assert torch.equal(torch.get_rng_state(), state)
    assert permutation == epoch(loader_of(0, 2, 40, seed=3, shuffle=True))


@pytest.mark.parametrize("kwargs", [{"num_workers": 1}, {"mode": poptorch.DataLoaderMode.Async, "async_options": FORK}])
def test_shuffling_is_the_same_whoever_loads(kwargs):
    plain = epochs(2, 20, 2, seed=3, shuffle=True)[0][1], epochs(2, 20, 2, seed=3, shuffle=True)[1][1]
    loader = loader_of(1, 2, 20, seed=3, shuffle=True, **kwargs)
    assert (epoch(loader), epoch(loader)) == plain
    loader.terminate()


@host_only("PopTorch draws a permutation for every iterator, and shuffles in the data set")
def test_iteration_that_never_starts_uses_up_no_permutation():
    loader = loader_of(0, 2, 20, seed=3, shuffle=True)
    iter(loader)
    assert epoch(loader) == epoch(loader_of(0, 2, 20, seed=3, shuffle=True))


def test_shuffling_needs_a_seed_that_processes_share():
    with raises(AssertionError, match="same options.randomSeed"):
        loader_of(0, 2, 20, shuffle=True)


@pytest.mark.parametrize("shuffle", [False, True])
def test_data_set_too_small_for_all_processes_is_refused(shuffle):
    with raises(ZeroDivisionError, match="7 samples.*batch of 4.*2 processes"):
        loader_of(0, 2, 7, seed=3, batch_size=4, shuffle=shuffle)


def test_sampler_draws_from_the_share():
    assert epoch(loader_of(1, 2, 8, sampler=SequentialSampler(range(4)))) == [4, 5, 6, 7]


def test_without_partitioning_the_sampler_decides_alone():
    loader = loader_of(1, 2, 8, sampler=SubsetRandomSampler([6]), auto_distributed_partitioning=False)
    assert epoch(loader) == [6]
    assert epoch(loader_of(1, 2, 4, auto_distributed_partitioning=False)) == [0, 1, 2, 3]


def test_iterable_data_set_cannot_be_shared():
    options = poptorch.Options()
    options.Distributed.configureProcessId(0, 2)
    with raises(AssertionError, match="auto_distributed_partitioning=False"):
        poptorch.DataLoader(options, Stream(4))
    assert len(list(poptorch.DataLoader(options, Stream(4), auto_distributed_partitioning=False))) == 4


def test_elements_without_batch_size_cannot_be_shared():
    with raises(AssertionError, match="without batch_size"):
        loader_of(0, 2, 8, batch_size=None, drop_last=False)


def test_batch_sampler_cannot_be_shared():
    batches = [[0, 1], [2, 3]]
    with raises(poptorch.Error, match="auto_distributed_partitioning=False"):
        loader_of(0, 2, 8, batch_sampler=batches)
    assert epoch(loader_of(0, 2, 8, batch_sampler=batches, auto_distributed_partitioning=False)) == [0, 1, 2, 3]
