# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""PopTorch's data loader: every batch holds all the micro-batches of one call of a model."""

import itertools
from typing import Any, Dict, Iterable, Iterator, Optional, Sequence, Union

import torch
from torch.utils.data import IterableDataset, Subset

from ._logging import logger
from .enums import DataLoaderMode
from .errors import check, createPoptorchError
from .loading.accessor import AsynchronousDataAccessor
from .loading.element import concatenate
from .loading.partition import GlobalShuffle, share_of
from .options import Options


class DataLoader(torch.utils.data.DataLoader):
    """Loads combined batches: `batch_size` samples for each device iteration, accumulation step and group of replicas.

    In a distributed run every process reads its own share of a map-style data set. With `shuffle` the shares are taken
    from a permutation that all processes draw from `options.randomSeed`; a single process shuffles as PyTorch does.

    Args:
        options: of the model that is fed; frozen from now on.
        dataset: map-style or iterable.
        batch_size: samples in a micro-batch. None: elements are handed over as they are, and `drop_last` must be False.
        shuffle: read in a random order.
        num_workers: processes that load batches; 0 loads in the process that iterates.
        drop_last: leave out the samples at the end that fill no combined batch. Otherwise the last one is smaller,
            which a compiled model refuses.
        persistent_workers: keep the workers from epoch to epoch; None: where there are any.
        auto_distributed_partitioning: share the data set between processes. Without, sampling is all yours.
        mode: Sync iterates in this process. Async reads ahead in another one: see AsynchronousDataAccessor.
            AsyncRebatched does too, and gathers combined batches there out of smaller ones, so that what the workers of
            an iterable data set have left at their ends is used. Async with `drop_last=False` becomes AsyncRebatched.
        async_options: arguments of the AsynchronousDataAccessor.
        rebatched_worker_size: samples that are loaded at a time to be gathered; a combined batch by default.
        batch_sampler: yields the indices of micro-batches, of which the results are concatenated. Its own `batch_size`
            takes the place of the argument, and its length is the loader's.
        **kwargs: further arguments of PyTorch's DataLoader. `pin_memory` has an effect in Sync mode only.

    Attributes:
        rebatched_drop_last: `drop_last`, where combined batches are gathered in the accessor's process.
        batch_sampler_drop_last: `drop_last`, where there is a batch_sampler.

    Raises:
        Error: for a batch_sampler together with batch_size, shuffle or automatic partitioning over several processes.
        AssertionError: for other arguments that do not fit together.
        ZeroDivisionError: for a data set that does not give every process a combined batch.
    """

    def __init__(
        self,
        options: "Options",
        dataset: "torch.utils.data.Dataset",
        batch_size: int = 1,
        shuffle: bool = None,
        num_workers: int = 0,
        drop_last: bool = True,
        persistent_workers: Optional[bool] = None,
        auto_distributed_partitioning: bool = True,
        mode: "DataLoaderMode" = DataLoaderMode.Sync,
        async_options: Optional[Dict[str, Any]] = None,
        rebatched_worker_size: Optional[int] = None,
        batch_sampler: Optional[Union[torch.utils.data.Sampler, Iterable[Sequence]]] = None,
        **kwargs,
    ):
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
        self._rebatched = self._is_rebatched(mode, drop_last)
        sampling = self._sampling(drop_last, rebatched_worker_size, batch_sampler)
        _leave_out_unused(mode, self._rebatched, async_options, rebatched_worker_size, kwargs)
        super().__init__(
            dataset,
            shuffle=bool(shuffle),
            num_workers=num_workers,
            persistent_workers=num_workers > 0 if persistent_workers is None else persistent_workers,
            **sampling,
            **kwargs,
        )
        self._warn_of_duplicates()
        self._warn_of_short_batch(drop_last)
        if mode != DataLoaderMode.Sync:
            self._accessor = self._read_ahead(async_options or {})

    def __len__(self) -> int:
        """Batches in an epoch; with a batch_sampler the length of that."""
        if not self._rebatched or self._has_batch_sampler:
            return super().__len__()
        whole, rest = divmod(self._samples(), self._combined_batch_size)
        return whole if self.rebatched_drop_last else whole + (rest > 0)

    @property
    def combinedBatchSize(self) -> Optional[int]:
        """Samples in a batch; None without batch_size."""
        return self._combined_batch_size

    @property
    def options(self) -> "Options":
        """The options this loader was made with. AttributeError without batch_size, as in PopTorch."""
        return self._options

    def terminate(self) -> None:
        """Ends the process that reads ahead; nothing can be loaded any more. Without effect in Sync mode."""
        if self._accessor is not None:
            self._accessor.terminate()

    def __iter__(self) -> "torch.utils.data.dataloader._BaseDataLoaderIter":
        if self._accessor is not None:
            return iter(self._accessor)
        batches = super().__iter__()
        if not self._has_batch_sampler or self._rebatched or self._micro_batches == 1:
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
        """This process's part of the data set, and whether PyTorch is to shuffle it. May add a sampler to `kwargs`."""
        advice = "divide it between the processes yourself and pass auto_distributed_partitioning=False"
        check(not isinstance(dataset, IterableDataset), f"processes cannot share an IterableDataset: {advice}")
        check(self._combined_batch_size is not None, f"processes cannot share a data set without batch_size: {advice}")
        distributed = self._options.Distributed
        share = share_of(
            len(dataset), distributed.processId, distributed.numProcesses, self._combined_batch_size, drop_last
        )
        if not shuffle or kwargs.get("sampler") is not None:
            return Subset(dataset, range(share[0], sum(share))), shuffle
        check(
            self._options.exists("random_seed"),
            "To shuffle a data set that processes share, you must set options.randomSeed, to the same in all of them",
        )
        kwargs["sampler"] = GlobalShuffle(len(dataset), share, self._options.random_seed, leaves_out=drop_last)
        return dataset, False

    def _is_rebatched(self, mode: DataLoaderMode, drop_last: bool) -> bool:
        if mode == DataLoaderMode.AsyncRebatched:
            check(self._combined_batch_size is not None, "DataLoaderMode.AsyncRebatched needs a batch_size")
            return True
        return mode == DataLoaderMode.Async and not drop_last and (self._combined_batch_size or 1) > 1

    def _sampling(self, drop_last: bool, rebatched_worker_size: Optional[int], batch_sampler: Any) -> Dict[str, Any]:
        """What PyTorch's loader is to do about batches."""
        if self._rebatched:
            self.rebatched_drop_last = drop_last
        if self._has_batch_sampler:
            self.batch_sampler_drop_last = drop_last
            return {"batch_sampler": batch_sampler}
        if not self._rebatched:
            return {"batch_size": self._combined_batch_size, "drop_last": drop_last}
        size = self._combined_batch_size if rebatched_worker_size is None else rebatched_worker_size
        check(
            0 < size <= self._combined_batch_size,
            f"rebatched_worker_size must be from 1 to the combined batch size, {self._combined_batch_size}: {size}",
        )
        return {"batch_size": size, "drop_last": False}

    def _read_ahead(self, async_options: Dict[str, Any]) -> AsynchronousDataAccessor:
        check(
            "rebatched_size" not in async_options,
            "async_options cannot contain rebatched_size: DataLoaderMode.AsyncRebatched sets it",
        )
        return AsynchronousDataAccessor(
            self, rebatched_size=self._combined_batch_size if self._rebatched else None, **async_options
        )

    def _combine(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Concatenates the batches of the batch_sampler, as many at a time as a call of the model takes."""
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
        """Samples in an epoch of this process. TypeError where neither data set nor sampler tells."""
        return len(self.dataset) if isinstance(self.dataset, IterableDataset) else len(self.sampler)

    def _warn_of_duplicates(self) -> None:
        if isinstance(self.dataset, IterableDataset) and self.num_workers > 1 and self.worker_init_fn is None:
            logger.warning(
                "The IterableDataset goes to %d workers without a worker_init_fn that divides it: its data "
                "is duplicated, unless it looks at get_worker_info()",
                self.num_workers,
            )

    def _warn_of_short_batch(self, drop_last: bool) -> None:
        if drop_last or self._has_batch_sampler or self._combined_batch_size is None:
            return
        try:
            samples = self._samples()
        except TypeError:  # nothing to warn of as long as the size is not known
            return
        rest = samples % self._combined_batch_size
        if rest:
            logger.warning(
                "The number of elements in the dataset (%d) is not divisible by the number of elements "
                "processed per step (%d) and drop_last=False: the last tensor will have a batch size of %d, "
                "which a compiled model refuses",
                samples,
                self._combined_batch_size,
                rest,
            )


def _micro_batches(options: Options) -> int:
    """Micro-batches of different data that one call of a model takes."""
    groups = options.replication_factor // options.input_group_size
    return options.device_iterations * groups * options.Training.gradient_accumulation


def _check_batch_sampler(batch_size: Optional[int], shuffle: Optional[bool], partitioned: bool) -> None:
    if batch_size != 1 or shuffle:
        raise createPoptorchError("batch_sampler is mutually exclusive with batch_size and shuffle: it decides both")
    if partitioned:
        raise createPoptorchError(
            "processes cannot share a batch_sampler: let it sample the part of this process, and "
            "pass auto_distributed_partitioning=False"
        )


def _leave_out_unused(
    mode: DataLoaderMode, rebatched: bool, async_options: Any, rebatched_worker_size: Any, kwargs: Dict[str, Any]
) -> None:
    """Reports arguments that the mode has no use for. Takes `pin_memory` from `kwargs`: pages that another process has
    locked are of no use to this one."""
    unused = []
    if async_options and mode == DataLoaderMode.Sync:
        unused.append("async_options")
    if rebatched_worker_size is not None and not rebatched:
        unused.append("rebatched_worker_size")
    if mode != DataLoaderMode.Sync and kwargs.pop("pin_memory", False):
        unused.append("pin_memory")
    if unused:
        logger.info("%s: no effect with DataLoaderMode.%s", ", ".join(unused), mode.name)
