# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Batches of workers in memory that is kept."""

import os
from pathlib import Path

import pytest
import torch

import accelerator
from dataset import build_ipu
from dataset.build_ipu import build_dataset, build_loader
from dataset.handover import HandedOver, KeptMemory
from tests.backend import DEVICE
from tests.data_sets import small_config, write_folders
from tests.dataset.test_build_ipu import options_of


def received(message: HandedOver) -> torch.Tensor:
    function, arguments = message.__reduce__()
    return function(*arguments)


def sent(kept: KeptMemory, tensor: torch.Tensor) -> HandedOver:
    size = tensor.numel() * tensor.element_size()
    memory = kept.take(size)
    assert memory is not None
    memory[:size].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    return HandedOver(memory, tuple(tensor.shape), tensor.dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
def test_a_tensor_arrives_in_the_memory_that_it_was_written_to(dtype: torch.dtype) -> None:
    kept, tensor = KeptMemory(1), torch.arange(24).view(2, 3, 4).to(dtype)
    message = sent(kept, tensor)
    given = received(message)
    assert given.dtype == dtype and torch.equal(given, tensor)
    assert given.data_ptr() == message.memory.data_ptr()


def test_memory_is_free_when_nothing_uses_it_any_more() -> None:
    kept, tensor = KeptMemory(2), torch.arange(6.0)
    one, two = (received(sent(kept, tensor + shift)) for shift in (0, 10))
    part = one[2:].numpy()
    assert kept.take(24) is None
    del one
    assert kept.take(24) is None and part.tolist() == [2, 3, 4, 5]
    place = part.ctypes.data - 2 * 4
    del part
    three = received(sent(kept, tensor + 20))
    assert kept.take(24) is None and three.data_ptr() == place and (two[0], three[0]) == (10, 20)


def test_memory_of_another_size_is_given_up() -> None:
    kept = KeptMemory(1)
    for count in (5, 5, 3, 6):
        assert torch.equal(received(sent(kept, torch.arange(count))), torch.arange(count))
        assert len(kept._memory) == 1
    large = received(sent(kept, torch.arange(6)))
    assert kept.take(8) is None and len(large) == 6


def test_a_process_forked_from_the_receiver_frees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptMemory(1)
    tensor = received(sent(kept, torch.ones(3)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        del tensor
    assert kept.take(12) is None


def file_of(tensor: torch.Tensor) -> str:
    """The inode of the shared memory that a tensor is in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, inode = line.split()[:5]
        first, end = (int(address, 16) for address in addresses.split("-"))
        if first <= tensor.data_ptr() < end:
            return inode
    raise AssertionError("no such memory")


class TestLoader:
    @pytest.fixture()
    def config(self, tmp_path):
        accelerator.select(DEVICE)
        write_folders(tmp_path, {"train": {"a": 20, "b": 20}, "validation": {"a": 1, "b": 1}})
        # Asynchronous loaders hand out buffers of their own, which the next batches overwrite.
        keys = {"DATA__LOADER": "sync", "DATA__BATCH_SIZE": 2}
        yield lambda workers: small_config(tmp_path, DATA__NUM_WORKERS=workers, **keys)
        accelerator._selected = None

    def loader(self, config):
        return build_loader(config, options_of(), build_dataset(config, True), True)

    def test_batches_that_are_kept_stay_as_they_are(self, config) -> None:
        expected, loader = list(self.loader(config(0))), self.loader(config(2))
        given = list(loader)
        assert len(given) > 8  # more than there are pieces
        for (images, targets), (kept, others) in zip(expected, given):
            assert torch.equal(images, kept) and torch.equal(targets, others)

    def test_batches_that_are_gone_leave_their_memory_to_others(self, config) -> None:
        loader = self.loader(config(1))
        assert len({file_of(images) for _ in range(2) for images, _ in loader}) <= 4

    def test_without_room_each_batch_has_memory_of_its_own(self, config, monkeypatch) -> None:
        two_loaders = 2 * 4 * (2 * 3 * 32 * 32 * 4)
        for room, is_kept in ((two_loaders, True), (two_loaders - 1, False)):
            monkeypatch.setattr(build_ipu, "free_shared_memory", lambda room=room: room)
            loader = self.loader(config(1))
            assert (loader.dataset._kept is not None) == is_kept and len(list(loader)) == 20
