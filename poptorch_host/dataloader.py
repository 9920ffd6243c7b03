# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""PopTorch's DataLoader, whose batches contain all micro-batches of one call of a model."""

import itertools
from typing import Any, Dict, Iterable, Iterator, Optional, Sequence, Union

import torch
from torch.utils.data import IterableDataset, Subset

from . import host
from ._logging import logger
from .enums import DataLoaderMode
from .errors import check, createPoptorchError
from .loading.accessor import AsynchronousDataAccessor
from .loading.element import concatenate
from .loading.partition import GlobalShuffle, share_of
from .options import Options


class DataLoader(torch.utils.data.DataLoader[Any]):
    """Loads combined batches: `batch_size` samples for each device iteration, accumulation step and group of replicas.

    In a distributed run, every process reads its own share of a map-style dataset. With `shuffle`, these are shares of
    a permutation that depends on `options.randomSeed`. A single process shuffles like PyTorch's DataLoader.

    Args:
        options: the options of the model, which are frozen.
        dataset: a map-style or iterable-style dataset.
        batch_size: the micro-batch size; None to not batch elements, which needs `drop_last=False`.
        shuffle: whether to shuffle the dataset in every epoch.
        num_workers: the number of processes that load batches; 0 to load in the process that iterates.
        drop_last: whether to drop the samples at the end that do not fill a combined batch. Otherwise, the last batch
            is smaller, and a compiled model does not accept it.
        persistent_workers: whether to keep the workers between epochs (default: True if there are workers).
        auto_distributed_partitioning: whether to partition the dataset between processes.
        mode: Sync to iterate in this process; Async to read ahead in a separate process, see AsynchronousDataAccessor;
            AsyncRebatched to also gather combined batches from smaller ones there, so that incomplete last batches of
            the workers of an iterable dataset are used. Async with `drop_last=False` is AsyncRebatched.
        async_options: arguments of the AsynchronousDataAccessor.
        rebatched_worker_size: the size of the batches to gather combined batches from (default: a combined batch).
        batch_sampler: yields the indices of micro-batches, which are concatenated. Its attribute `batch_size` replaces
            the argument, and its length is that of the loader.
        **kwargs: further arguments of PyTorch's DataLoader. `pin_memory` has an effect in Sync mode only, where it is
            on for models that run on a GPU.

    Attributes:
        rebatched_drop_last: `drop_last`, if combined batches are gathered in the accessor's process.
        batch_sampler_drop_last: `drop_last`, if there is a batch_sampler.

    Raises:
        Error: for a batch_sampler with batch_size, shuffle, or automatic partitioning between several processes.
        AssertionError: for other invalid combinations of arguments.
        ZeroDivisionError: if the dataset has less than one combined batch for each process.
    """

    def __init__(
        self,
        options: "Options",
        dataset: "torch.utils.data.Dataset[Any]",
        batch_size: int = 1,
        shuffle: Optional[bool] = None,
        num_workers: int = 0,
        drop_last: bool = True,
        persistent_workers: Optional[bool] = None,
        auto_distributed_partitioning: bool = True,
        mode: "DataLoaderMode" = DataLoaderMode.Sync,
        async_options: Optional[Dict[str, Any]] = None,
        rebatched_worker_size: Optional[int] = None,
        batch_sampler: Optional[Union[torch.utils.data.Sampler[Any], Iterable[Sequence[Any]]]] = None,
        **kwargs: Any,
    ) -> None:
        check(isinstance(options, Options), f"options must be a poptorch.Options, not {options!r}")
        check(isinstance(mode, DataLoaderMode), f"mode must be a poptorch.DataLoaderMode, not {mode!r}")
        options._freeze()
        self._accessor: Optional[AsynchronousDataAccessor] = None
        self._micro_batches = _micro_batches(options)
        self._set_batch_size(options, batch_size, batch_sampler)
        partitioned = auto_distributed_partitioning and options.Distributed.numProcesses > 1
        if batch_sampler is not None:
            _check_batch_sampler(batch_size, shuffle, partitioned)
        elif partitioned:
            dataset, shuffle = self._partition(dataset, shuffle, drop_last, kwargs)
        self._rebatched_size = self._choose_rebatched_size(mode, drop_last)
        drop_last = drop_last and (mode != DataLoaderMode.AsyncRebatched or self._rebatched_size is not None)
        sampling = self._sampling(drop_last, rebatched_worker_size, batch_sampler)
        _leave_out_unused(mode, self._rebatched_size is not None, async_options, rebatched_worker_size, kwargs)
        if mode == DataLoaderMode.Sync and host.device().type == "cuda":
            kwargs.setdefault("pin_memory", True)  # from where a batch moves to the GPU while the last one is computed
        super().__init__(
            dataset,
            shuffle=bool(shuffle),
            num_workers=num_workers,
            persistent_workers=num_workers > 0 if persistent_workers is None else persistent_workers,
            **sampling,
            **kwargs,
        )
        self._warn_of_duplicates()
        self._warn_of_size(drop_last)
        if mode != DataLoaderMode.Sync:
            self._accessor = self._read_ahead(async_options or {})

    def __len__(self) -> int:
        """Returns the number of batches in an epoch; with a batch_sampler, its length."""
        if self._rebatched_size is None or self._has_batch_sampler:
            return super().__len__()
        whole, rest = divmod(self._samples(), self._rebatched_size)
        return whole if self.rebatched_drop_last else whole + (rest > 0)

    @property
    def combinedBatchSize(self) -> Optional[int]:
        """The number of samples in a batch; None without batch_size."""
        return self._combined_batch_size

    @property
    def options(self) -> "Options":
        """The options of the loader. Raises AttributeError without batch_size, as in PopTorch."""
        return self._options

    def terminate(self) -> None:
        """Ends the process that reads ahead. No more batches can be loaded. No effect in Sync mode."""
        if self._accessor is not None:
            self._accessor.terminate()

    def __iter__(self) -> Any:
        if self._accessor is not None:
            return iter(self._accessor)
        batches = super().__iter__()
        if not self._has_batch_sampler or self._rebatched_size is not None or self._micro_batches == 1:
            return batches
        return self._combine(batches)

    def _set_batch_size(self, options: Options, batch_size: Optional[int], batch_sampler: Any) -> None:
        self._has_batch_sampler = batch_sampler is not None
        self._combined_batch_size: Optional[int] = None
        if self._has_batch_sampler:
            batch_size = getattr(batch_sampler, "batch_size", batch_size)
        if batch_size is not None:
            self._combined_batch_size = batch_size * self._micro_batches
            self._options = options

    def _partition(self, dataset: Any, shuffle: Optional[bool], drop_last: bool, kwargs: Dict[str, Any]) -> Any:
        """Returns this process's part of the dataset, and whether to shuffle it. May add a sampler to `kwargs`."""
        advice = "partition it yourself and pass auto_distributed_partitioning=False"
        check(not isinstance(dataset, IterableDataset), f"processes cannot share an IterableDataset: {advice}")
        size = self._combined_batch_size
        if size is None:
            raise AssertionError(f"processes cannot share a dataset without batch_size: {advice}")
        check(
            not shuffle or self._options.exists("random_seed"),
            "To shuffle a dataset that processes share, you must set the same options.randomSeed in all of them",
        )
        distributed = self._options.Distributed
        share = share_of(len(dataset), distributed.processId, distributed.numProcesses, size, drop_last)
        if not shuffle or kwargs.get("sampler") is not None:
            return Subset(dataset, range(share[0], sum(share))), shuffle
        kwargs["sampler"] = GlobalShuffle(len(dataset), share, self._options.random_seed, leaves_out=drop_last)
        return dataset, False

    def _choose_rebatched_size(self, mode: DataLoaderMode, drop_last: bool) -> Optional[int]:
        """Returns the size of the batches to gather in the accessor's process; None to not gather batches."""
        size = self._combined_batch_size
        if mode == DataLoaderMode.AsyncRebatched:
            return size
        return size if mode == DataLoaderMode.Async and not drop_last and (size or 1) > 1 else None

    def _sampling(self, drop_last: bool, rebatched_worker_size: Optional[int], batch_sampler: Any) -> Dict[str, Any]:
        """Returns the arguments of PyTorch's DataLoader for batches."""
        if self._rebatched_size is not None:
            self.rebatched_drop_last = drop_last
        if self._has_batch_sampler:
            self.batch_sampler_drop_last = drop_last
            return {"batch_sampler": batch_sampler}
        if self._rebatched_size is None:
            return {"batch_size": self._combined_batch_size, "drop_last": drop_last}
        size = self._rebatched_size if rebatched_worker_size is None else rebatched_worker_size
        check(
            size <= self._rebatched_size,
            f"rebatched_worker_size must be between 1 and the combined batch size {self._rebatched_size}, not {size}",
        )
        return {"batch_size": size, "drop_last": False}

    def _read_ahead(self, async_options: Dict[str, Any]) -> AsynchronousDataAccessor:
        check(
            "rebatched_size" not in async_options,
            "async_options cannot contain rebatched_size: DataLoaderMode.AsyncRebatched sets it",
        )
        return AsynchronousDataAccessor(self, rebatched_size=self._rebatched_size, **async_options)

    def _combine(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Concatenates the batches of the batch_sampler that belong to one call of the model."""
        while True:
            group = list(itertools.islice(batches, self._micro_batches))
            if not group or (len(group) < self._micro_batches and self.batch_sampler_drop_last):
                return
            yield concatenate(group)

    @property
    def _may_end_short(self) -> bool:
        """Whether the last batch may be smaller than the others."""
        keeps_last = not (self.batch_sampler_drop_last if self._has_batch_sampler else self.drop_last)
        return keeps_last and (self._combined_batch_size or 1) > 1

    def _samples(self) -> int:
        """Returns the number of samples in an epoch of this process. Raises TypeError if it is unknown."""
        counted: Any = self.dataset if isinstance(self.dataset, IterableDataset) else self.sampler
        return len(counted)

    def _warn_of_duplicates(self) -> None:
        if isinstance(self.dataset, IterableDataset) and self.num_workers > 1 and self.worker_init_fn is None:
            logger.warning(
                "The IterableDataset is passed to %d workers without a worker_init_fn that partitions it: its data "
                "is duplicated, unless it uses get_worker_info()",
                self.num_workers,
            )

    def _warn_of_size(self, drop_last: bool) -> None:
        """Logs that an epoch has no batch, or a last one that is smaller than the others."""
        if self._has_batch_sampler or self._combined_batch_size is None:
            return
        try:
            samples = self._samples()
        except TypeError:  # the size is unknown
            return
        rest = samples % self._combined_batch_size
        if drop_last and 0 < samples == rest:
            logger.warning(
                "The dataset has %d elements, fewer than the %d that are processed per step, and drop_last=True: "
                "an epoch has no batches",
                samples,
                self._combined_batch_size,
            )
        elif rest and not drop_last:
            logger.warning(
                "The number of elements in the dataset (%d) is not divisible by the number of elements "
                "processed per step (%d) and drop_last=False: the last tensor will have a batch size of %d, "
                "which a compiled model does not accept",
                samples,
                self._combined_batch_size,
                rest,
            )


def _micro_batches(options: Options) -> int:
    """Returns the number of micro-batches that one call of a model splits its inputs into."""
    groups = options.replication_factor // options.input_group_size
    return int(options.device_iterations * groups * options.Training.gradient_accumulation)


def _check_batch_sampler(batch_size: Optional[int], shuffle: Optional[bool], partitioned: bool) -> None:
    if batch_size != 1 or shuffle:
        raise createPoptorchError("batch_sampler is mutually exclusive with batch_size and shuffle")
    if partitioned:
        raise createPoptorchError(
            "processes cannot share a batch_sampler: let it sample the share of this process and "
            "pass auto_distributed_partitioning=False"
        )


def _leave_out_unused(
    mode: DataLoaderMode, rebatched: bool, async_options: Any, rebatched_worker_size: Any, kwargs: Dict[str, Any]
) -> None:
    """Logs arguments that have no effect in the mode, and removes `pin_memory` from `kwargs`.

    Memory that is pinned in another process is not pinned in this one.
    """
    unused = []
    if async_options and mode == DataLoaderMode.Sync:
        unused.append("async_options")
    if rebatched_worker_size is not None and not rebatched:
        unused.append("rebatched_worker_size")
    if mode != DataLoaderMode.Sync and kwargs.pop("pin_memory", False):
        unused.append("pin_memory")
    if unused:
        logger.info("%s: no effect with DataLoaderMode.%s", ", ".join(unused), mode.name)
