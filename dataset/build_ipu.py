# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Configuration -> data set and poptorch.DataLoader, which yields one combined batch per step."""

import contextlib
import math
import multiprocessing
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from yacs.config import CfgNode

import accelerator
from common.errors import EXIT_DATA, Refusal
from common.logs import logger
from common.memory import free_shared_memory
from configs.checks import check_files
from dataset.cached_image_folder import ImageMap, MappedImages, open_22k, open_zip
from dataset.decode import fast_jpeg
from dataset.generated import GeneratedImages
from dataset.handover import KeptMemory
from dataset.image_folder import check_root, open_split
from dataset.index_cache import cache_folder
from dataset.mixup import HandingOver, MixingCollate, build_mixup, group, unmixed
from dataset.samplers import Drawing, EvaluationSampler, Layout, TrainingSampler
from dataset.samples import Batch, EpochView, ImageDataset, NamedImages
from dataset.shards import ShardedImages, is_sharded
from dataset.transforms import build_transform, image_dtype
from dataset.workers import (
    ReaderSampler,
    affordable_workers,
    begin_worker,
    clear_failures,
    signals_held,
    stall_seconds,
)
from planning.geometry import architecture, image_size

GENERATED_STEPS = 100  # steps per epoch of generated images
GENERATED_EVALUATION = 512  # generated images per evaluation
GENERATED_CLASSES = 1000
Collate = Callable[[Batch], Tuple[torch.Tensor, torch.Tensor]]
REBATCHED_SAMPLES = 64  # approximate samples that a worker of a rebatching loader passes on at once


def build_dataset(config: CfgNode, training: bool) -> Any:
    """The data set of one split: `len()`, `.classes`, and `dataset[i]` -> (image (C, H, W), label).

    Raises:
        Refusal: EXIT_DATA, naming the path, if data is missing, empty, damaged or contradicts the configuration.
    """
    if config.DATA.DATASET == "generated":
        return _generated(config, training)
    check_files(config)
    if training and fast_jpeg() is None:
        logger.info(
            "simplejpeg is not installed: Pillow decodes unusual JPEGs, more slowly, and accepts some damaged ones"
        )
    transform = build_transform(config, training)  # checks its settings before a large data set is listed
    source = _source(config, training)
    configured, found = config.MODEL.NUM_CLASSES, len(source.classes)
    if configured and found > configured:
        raise Refusal(
            f"{config.DATA.DATA_PATH} has {found} classes and MODEL.NUM_CLASSES is {configured}: raise it, or "
            "set it to 0 to use the number in the data",
            EXIT_DATA,
        )
    return ImageDataset(
        source,
        transform,
        _shape(config),
        image_dtype(config),
        config.SEED,
        training,
        stop_at_bad=config.DATA.BAD_IMAGES == "fail",
    )


def build_images(config: CfgNode, files: Sequence[str]) -> ImageDataset:
    """Image files, as in evaluation: `dataset[i]` -> (image (C, H, W), i), with UNREADABLE for i if a file is bad."""
    source = MappedImages("", ImageMap(Path(), list(files), np.arange(len(files))), [])
    return NamedImages(
        source,
        build_transform(config, training=False),
        _shape(config),
        image_dtype(config),
        config.SEED,
        training=False,
        stop_at_bad=False,
    )


@contextlib.contextmanager
def ending(*loaders: Any) -> Iterator[None]:
    """Terminates loaders at the end of the context: PopTorch's processes would go on until this one exits."""
    try:
        yield
    finally:
        for loader in loaders:
            loader.terminate()


def build_loader(
    config: CfgNode, options: Any, dataset: Any, training: bool, start_epoch: int = 0, start_step: int = 0
) -> Any:
    """The poptorch.DataLoader of one split, in PopTorch's order: device iteration, accumulation, replica, micro-batch.

    Training batches are (images, targets): soft targets (N, classes) with mixup or cutmix, else class indices (N,).
    They depend on seed, epoch and position only, not on the number of workers or processes. Every iteration is the next
    epoch; the first one starts at batch `start_step` of `start_epoch`.
    Evaluation batches are (images, labels) with every image once; rows labelled samples.PADDED fill the last batch, and
    images that do not decode are labelled samples.UNREADABLE. `loader.order` has the sample of each row.

    Args:
        options: poptorch.Options, which are frozen.
        dataset: from `build_dataset`.

    Raises:
        Refusal: if the data set cannot fill one step, or mixup cannot pair images.
    """
    poptorch = accelerator.poptorch()
    layout = Layout.of(options, _micro_batch(config, training))
    sampler: Union[TrainingSampler, EvaluationSampler]
    if training:
        sampler = TrainingSampler(len(dataset), layout, config.SEED, start_epoch, start_step, drawing(config, dataset))
        collate, unit = _training_collate(config, layout, dataset)
    else:
        sampler = EvaluationSampler(len(dataset), layout)
        collate, unit = unmixed, 1
    mode = _mode(config, layout, poptorch)
    if mode == poptorch.DataLoaderMode.Sync:
        arguments: Dict[str, Any] = {"generator": torch.Generator()}  # otherwise iterating draws from the global one
    else:
        arguments = {"async_options": {"early_preload": training}}
    handed_over = layout.combined_batch
    if mode == poptorch.DataLoaderMode.AsyncRebatched:
        handed_over = arguments["rebatched_worker_size"] = _share_of(layout.combined_batch, unit)
    arguments.update(_worker_arguments(config, dataset, len(sampler), handed_over))
    kept = _kept_memory(arguments, handed_over * _image_bytes(config))
    view = EpochView(dataset, len(sampler), kept)
    others = set(multiprocessing.active_children())
    # Asynchronous loaders draw a seed when they start: without the fork, the model built next would depend on the mode.
    with clear_failures(lambda: [], view.failure), torch.random.fork_rng(devices=[]), signals_held():
        loader = poptorch.DataLoader(
            options,
            view,
            batch_size=layout.micro_batch,
            sampler=ReaderSampler(sampler),
            collate_fn=HandingOver(collate) if kept else collate,
            auto_distributed_partitioning=False,
            mode=mode,
            **arguments,
        )
    loader.readers = set(multiprocessing.active_children()) - others  # of an asynchronous loader
    if isinstance(sampler, EvaluationSampler):
        loader.order = sampler.order()
    return loader


def drawing(config: CfgNode, dataset: Any) -> Drawing:
    """How a training epoch draws samples of a data set from `build_dataset`.

    Generated images need no balancing: their labels are random.
    """
    labels = getattr(dataset, "labels", None) if config.DATA.BALANCED_SAMPLING else None
    return Drawing(config.AUG.REPEATS, None if labels is None else np.asarray(labels))


def example_batch(config: CfgNode, options: Any, classes: int, training: bool) -> Tuple[torch.Tensor, torch.Tensor]:
    """A combined batch with the shapes and types of a split's loader, for compiling a program.

    All rows are views of one generated image, since combined batches can take gigabytes.
    """
    rows = Layout.of(options, _micro_batch(config, training)).combined_batch
    image, _ = _generated(config, training)[0]
    images = image.expand(rows, *image.shape)
    if training and build_mixup(config, classes) is not None:
        return images, torch.full((classes,), 1 / classes).expand(rows, classes)
    return images, torch.zeros(1, dtype=torch.int64).expand(rows)


def _micro_batch(config: CfgNode, training: bool) -> int:
    return config.DATA.BATCH_SIZE if training else config.TEST.BATCH_SIZE or config.DATA.BATCH_SIZE


def _source(config: CfgNode, training: bool) -> Any:
    root = check_root(config.DATA.DATA_PATH)
    if config.DATA.DATASET == "imagenet22K":
        return open_22k(root, training, config.MODEL.NUM_CLASSES)
    if config.DATA.ZIP_MODE:
        return open_zip(root, training, config.DATA.CACHE_MODE, *_process_share(), config.MODEL.NUM_CLASSES)
    if is_sharded(root):
        return ShardedImages(root, "train" if training else "validation", config.DATA.ALLOW_EMPTY_CLASSES)
    return open_split(root, training, config.DATA.ALLOW_EMPTY_CLASSES, cache_folder(config))


def _process_share() -> Tuple[int, int]:
    """The index of this process and the number of processes."""
    popdist = accelerator.selected().popdist
    if popdist is None or not popdist.isPopdistEnvSet():
        return 0, 1
    return popdist.getInstanceIndex(), popdist.getNumInstances()


def _generated(config: CfgNode, training: bool) -> GeneratedImages:
    update = config.DATA.BATCH_SIZE * config.TRAIN.ACCUMULATION_STEPS * config.IPU.REPLICAS
    samples = GENERATED_STEPS * update * config.IPU.DEVICE_ITERATIONS if training else GENERATED_EVALUATION
    classes = config.MODEL.NUM_CLASSES or GENERATED_CLASSES
    return GeneratedImages(
        samples, classes, _shape(config), image_dtype(config), config.DATA.MEAN, config.DATA.STD, config.SEED
    )


def _shape(config: CfgNode) -> Tuple[int, int, int]:
    return (architecture(config).IN_CHANS, *image_size(config))


def _training_collate(config: CfgNode, layout: Layout, dataset: Any) -> Tuple[Collate, int]:
    """The collate function, and the minimum number of consecutive samples that it needs."""
    mixup = build_mixup(config, config.MODEL.NUM_CLASSES or len(dataset.classes))
    if mixup is None:
        return unmixed, 1
    groups = group(layout)
    return MixingCollate(mixup, groups, config.SEED), groups.unit


def _mode(config: CfgNode, layout: Layout, poptorch: Any) -> Any:
    modes = poptorch.DataLoaderMode
    name = config.DATA.LOADER
    if name == "auto":
        name = "async" if accelerator.is_ipu() else "sync"
    if name == "rebatched" and layout.combined_batch == 1:  # PopTorch rebatches to more than one sample only
        name = "async"
    return {"sync": modes.Sync, "async": modes.Async, "rebatched": modes.AsyncRebatched}[name]


def _share_of(combined_batch: int, unit: int) -> int:
    """The largest divisor of a combined batch up to about REBATCHED_SAMPLES that is a multiple of `unit`."""
    units = combined_batch // unit
    parts = [unit * count for count in range(1, units + 1) if units % count == 0]
    return max([part for part in parts if part <= REBATCHED_SAMPLES] or parts[:1])


def _worker_arguments(config: CfgNode, dataset: Any, epoch: int, samples: int) -> Dict[str, Any]:
    """Arguments of torch's DataLoader for workers that pass on `samples` at a time, of `epoch` samples per epoch.

    Does not start workers that would be idle, as with few images to predict.
    """
    target_bytes = 4 * (config.MODEL.NUM_CLASSES or len(dataset.classes))
    useful = min(config.DATA.NUM_WORKERS, math.ceil(epoch / samples))
    workers, prefetch = affordable_workers(useful, samples * (_image_bytes(config) + target_bytes))
    if workers == 0:
        return {"num_workers": 0}
    return {
        "num_workers": workers,
        "prefetch_factor": prefetch,
        "timeout": stall_seconds(samples),
        "worker_init_fn": begin_worker,
    }


def _image_bytes(config: CfgNode) -> int:
    return math.prod(_shape(config)) * torch.empty((), dtype=image_dtype(config)).element_size()


def _kept_memory(arguments: Dict[str, Any], batch_bytes: int) -> Optional[KeptMemory]:
    """Memory for the batches prefetched by a worker, the one in use and the next, if there is room for two loaders."""
    workers, pieces = arguments["num_workers"], arguments.get("prefetch_factor", 0) + 2
    return KeptMemory(pieces) if 0 < 2 * workers * pieces * batch_bytes <= free_shared_memory() else None
