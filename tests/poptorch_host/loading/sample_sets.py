# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Data sets whose samples tell where they come from. Other processes import them, so they stand in a light module."""

import multiprocessing
import os
import random
import signal
import time
from typing import Any, Iterator, List

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from tests.backend import poptorch


def check_index(dataset: Dataset, index: Any) -> None:
    """Ends an iteration over a data set that has indices only, as a list does."""
    if isinstance(index, int) and index >= len(dataset):
        raise IndexError(index)


class Numbers(Dataset):
    """Sample i is a tensor filled with i."""

    def __init__(self, length: int, shape=(2,), dtype=torch.float32):
        self.length, self.shape, self.dtype = length, shape, dtype

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        check_index(self, index)
        return torch.full(self.shape, index, dtype=self.dtype)


class Pairs(Numbers):
    """Sample i is (tensor filled with i, -i)."""

    def __getitem__(self, index):
        return super().__getitem__(index), -index


class Records(Numbers):
    """Sample i is a dictionary."""

    def __getitem__(self, index):
        return {"image": super().__getitem__(index).half(), "label": index}


class EpochNumbers(Numbers):
    """Sample (epoch, i) is a tensor of both."""

    def __getitem__(self, index):
        return torch.tensor(index)


class Counted(Numbers):
    """Counts in shared memory how often it was asked."""

    def __init__(self, length):
        super().__init__(length)
        self.count = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __getitem__(self, index):
        check_index(self, index)
        self.count += 1
        return super().__getitem__(index)


class Failing(Numbers):
    """Raises at one sample."""

    def __init__(self, length, at, error=RuntimeError):
        super().__init__(length)
        self.at, self.error = at, error

    def __getitem__(self, index):
        if index == self.at:
            raise self.error(f"sample {index} is broken")
        return super().__getitem__(index)


class Deadly(Numbers):
    """Kills the process that asks for sample 20."""

    def __getitem__(self, index):
        if index == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class RandomNumbers(Dataset):
    """Every sample is drawn from the generators of PyTorch and Python."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        check_index(self, index)
        return torch.tensor([torch.rand(()), random.random()])


class ProcessIds(Dataset):
    """Every sample is the id of the process that made it, and of that process's parent."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        check_index(self, index)
        return torch.tensor([os.getpid(), os.getppid()])


class Stuck(ProcessIds):
    """Sample 3 takes a minute."""

    def __getitem__(self, index):
        if index == 3:
            time.sleep(60)
        return super().__getitem__(index)


class Gated(Numbers):
    """Waits for a permit before each sample, and remembers the order of samples in shared memory."""

    def __init__(self, length):
        super().__init__(length, shape=())
        self.gate = multiprocessing.get_context("fork").Semaphore(0)
        self.order = torch.full((100,), -1).share_memory_()

    def __getitem__(self, index):
        check_index(self, index)
        self.gate.acquire()
        self.order[(self.order >= 0).sum()] = index
        return super().__getitem__(index)


class Once:
    """Has an element in the first iteration alone; counts iterations in shared memory."""

    def __init__(self):
        self.count = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __iter__(self):
        self.count += 1
        return iter([torch.tensor(1)] if self.count == 1 else [])


class Overlapping:
    """Changes a tensor and shows another one in the same memory."""

    def __init__(self):
        self.whole = torch.zeros(4)
        self.part = self.whole[1:3]

    def __iter__(self):
        self.whole += 1
        yield self.part


class Stream(IterableDataset):
    """The numbers from 0, dealt out to the workers one by one."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return (torch.tensor([number]) for number in range(start, self.length, step))


class Graph:
    """Neither a tensor nor a container of them."""

    def __init__(self, nodes: torch.Tensor, edges: torch.Tensor, name: str):
        self.nodes, self.edges, self.name = nodes, edges, name


class Unregistered:
    """A type whose parser no module registers when it is imported."""

    def __init__(self, nodes: torch.Tensor, edges: torch.Tensor):
        self.nodes, self.edges = nodes, edges


class GraphParser(poptorch.ICustomArgParser):
    """Takes graphs apart."""

    def yieldTensors(self, struct):
        yield struct.nodes
        yield struct.edges

    def reconstruct(self, original_structure, tensor_iterator):
        return Graph(next(tensor_iterator), next(tensor_iterator), original_structure.name)


poptorch.registerCustomArgParser(Graph, GraphParser())  # here, where a process that imports this module has it too


def graph_of(samples: List[torch.Tensor]) -> Graph:
    """A collate function."""
    nodes = torch.stack(samples)
    return Graph(nodes, nodes * 10, "graph")


def numbers(batch: torch.Tensor) -> List[int]:
    """The first number of every row."""
    return [int(row.flatten()[0]) for row in batch]
