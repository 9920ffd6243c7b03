# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Encoded images -> samples: decoding, augmentation seeded per sample, and a policy for bad files."""

from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from common.logs import logger
from common.memory import has_room, is_shortage
from dataset.decode import DECODER_ERRORS, BadImage, most_bad, open_picture, shown
from dataset.failure_note import FailureNote
from dataset.handover import KeptMemory, shared_bytes
from dataset.samplers import PADDING, Position, mix_seed
from dataset.transforms import Transform, generators_kept, seeded
from utils import one_line

PADDED = -1  # label of rows that only fill the last evaluation batch
UNREADABLE = -2  # label of evaluation images that do not decode: they count as incorrect


class Batch(NamedTuple):
    """A batch of samples, to be handed over.

    Attributes:
        images: (N, C, H, W).
        labels: (N,) int64.
        positions: (epoch, index) of each sample.
        memory: the kept memory whose start holds the images, if any.
    """

    images: torch.Tensor
    labels: torch.Tensor
    positions: Sequence[Position]
    memory: Optional[torch.Tensor] = None


class DataError(Exception):
    """Unusable data, in one line. It is pickled between processes, so its only argument is the message."""


class ShortageError(RuntimeError):
    """The machine lacks a resource to read a sample; no image is to blame. As DataError, with a one-line message."""


class ImageDataset(Dataset[Tuple[torch.Tensor, int]]):
    """Decoded and transformed images of a source (ImageFolder, ZippedImages, MappedImages).

    All random numbers of a sample are seeded by (seed, epoch, index).

    Args:
        source: has `classes`, `labels`, `name(index)` and `read(index)`.
        transform: picture -> tensor of `shape` and `dtype`.
        training: bad images are replaced by their next good neighbour; else they are blank and labelled UNREADABLE.
        stop_at_bad: raise DataError at the first bad image instead.
    """

    def __init__(
        self,
        source: Any,
        transform: Transform,
        shape: Tuple[int, ...],
        dtype: torch.dtype,
        seed: int,
        training: bool,
        stop_at_bad: bool,
    ):
        self._source = source
        self._transform = transform
        self._shape = shape
        self._dtype = dtype
        self._seed = seed
        self._training = training
        self._stop_at_bad = stop_at_bad
        self._bad = _shared_flags(len(source))

    @property
    def classes(self) -> List[str]:
        """Names of the classes; a label is an index into it."""
        return self._source.classes

    @property
    def labels(self) -> Any:
        """The label of each sample, int64 (N,)."""
        return self._source.labels

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> bytes:
        """The encoded image of a sample; raises BadImage."""
        return self._source.read(index)

    def name(self, index: int) -> str:
        """The origin of a sample, for messages."""
        return shown(self.path(index))

    def path(self, index: int) -> str:
        """The origin of a sample, unescaped."""
        return self._source.name(index)

    def label(self, index: int) -> int:
        """The class of a sample, whether or not it can be read."""
        return int(self._source.labels[index])

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, int]:
        """Image and label as in epoch 0."""
        return self.sample(0, index)

    def sample(self, epoch: int, index: int, into: Optional[torch.Tensor] = None) -> Tuple[torch.Tensor, int]:
        """Image (C, H, W), written `into` a tensor if given, and label of a sample, as augmented in an epoch.

        Raises:
            DataError: for a bad image if `stop_at_bad`, or for too many of them.
            ShortageError: if memory or file descriptors are exhausted.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        image = self._image(epoch, index, into)
        while image is None:
            if not self._training:
                return self.blank() if into is None else into.zero_(), UNREADABLE
            index = (index + 1) % len(self)
            image = self._image(epoch, index, into)
        return image, int(self._source.labels[index])

    def _image(self, epoch: int, index: int, into: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
        """The finished image, or None if it is bad and is to be skipped."""
        try:
            picture = open_picture(self._source.read(index))
            with seeded(mix_seed(self._seed, epoch, index)):
                return self._transform(picture, into)
        except (BadImage, *DECODER_ERRORS, RuntimeError) as error:  # libraries raise any of these for bad input
            if is_shortage(error) or not has_room():
                raise ShortageError(
                    f"no memory or descriptors are left to read {self.name(index)}: use fewer --num-workers, a lower "
                    "--batch-size, or raise the limits of this process (ulimit -a)"
                ) from error
            said = f"gives no sample: {one_line(error) or type(error).__name__}"
            self._note_bad(index, error if isinstance(error, BadImage) else BadImage(said))
        return None

    def blank(self) -> torch.Tensor:
        """An image of zeros."""
        return torch.zeros(self._shape, dtype=self._dtype)

    def _note_bad(self, index: int, error: BadImage) -> None:
        if self._bad[index]:
            return
        self._bad[index] = True
        line = f"{self.name(index)} {error}"
        if self._stop_at_bad:
            raise DataError(f"{line}; repair or remove the file") from error
        count, limit = int(self._bad.sum()), most_bad(len(self))
        if count > limit:
            raise DataError(f"{line}; that makes {count} bad images of {len(self)}: more than {limit} are not skipped")
        handling = "its neighbour is used instead" if self._training else "it counts as misclassified"
        logger.warning("%s: %s (bad image %d of at most %d)", line, handling, count, limit)


def _shared_flags(count: int) -> torch.Tensor:
    """`count` flags shared by worker processes, so each bad file is counted and reported once."""
    flags = torch.zeros(count, dtype=torch.bool)
    try:
        return flags.share_memory_()
    except RuntimeError:  # no room in /dev/shm, hence no workers: private flags are enough
        return flags


class NamedImages(ImageDataset):
    """Image files given by name; bad ones are logged and skipped, without a limit."""

    def _note_bad(self, index: int, error: BadImage) -> None:
        logger.warning("%s %s", shown(self._source.name(index)), error)


class EpochView(Dataset[Batch]):
    """A data set indexed by the positions of a sampler, a batch at a time.

    Args:
        dataset: has `sample(epoch, index, into)` and `blank()`.
        samples: samples that this process reads per epoch, the length of this view.
        kept: memory for the batches of workers; None: each batch gets new memory.

    Attributes:
        failure: why a sample could not be read.
    """

    def __init__(self, dataset: Any, samples: int, kept: Optional[KeptMemory] = None):
        self.dataset = dataset
        self._kept = kept
        self.failure = FailureNote()
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def __getitems__(self, positions: Sequence[Position]) -> Batch:
        """The samples of some positions; PyTorch's loader prefers this to indexing."""
        images, memory = self._rows(len(positions))
        labels = np.empty(len(positions), np.int64)
        try:
            with generators_kept():
                for row, (epoch, index) in enumerate(positions):
                    labels[row] = self._read(epoch, index, images[row])
        except (DataError, ShortageError) as error:
            self.failure.write(f"{type(error).__name__}: {error}")
            raise
        return Batch(images, torch.from_numpy(labels), positions, memory)

    def _read(self, epoch: int, index: int, into: torch.Tensor) -> int:
        """Writes an image, and returns its label."""
        if index == PADDING:
            into.zero_()
            return PADDED
        label: int = self.dataset.sample(epoch, index, into)[1]
        return label

    def _rows(self, count: int) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """Memory for `count` images, which a worker shares with the process that it works for; the second if kept."""
        image = self.dataset.blank()
        shape, size = (count, *image.shape), count * image.numel() * image.element_size()
        if get_worker_info() is None:
            return image.new_empty(shape), None
        kept = self._kept.take(size) if self._kept else None
        memory = shared_bytes(size) if kept is None else kept
        return memory[:size].view(image.dtype).view(shape), kept
