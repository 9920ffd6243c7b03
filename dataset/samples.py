# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Encoded images -> samples: decoding, augmentation by random numbers of a sample's own, and a policy for bad files."""

from typing import Any, List, Optional, Tuple

import torch
from torch.utils.data import Dataset

from common.logs import logger
from dataset.decode import DECODER_ERRORS, BadImage, decode, shown
from dataset.samplers import PADDING, Position, mix_seed
from dataset.transforms import Transform, seeded
from utils import one_line

PADDED = -1  # label of a row that only fills the last evaluation batch
UNREADABLE = -2  # label of an evaluation image that does not decode: it counts as an image, and never as correct
BAD_SHARE = 0.05  # of a data set that may be bad before the run stops
BAD_FEWEST = 3  # but so many are always tolerated


class DataError(Exception):
    """The data cannot be used; one line. It crosses process borders, so it takes nothing but its message."""


class ImageDataset(Dataset[Tuple[torch.Tensor, int]]):
    """Decoded and transformed images of a source (ImageFolder, ZippedImages, MappedImages).

    Every random number that a sample needs comes from a seed made of (seed, epoch, index).

    Args:
        source: has `classes`, `labels`, `name(index)` and `read(index)`.
        transform: picture -> tensor of `shape` and `dtype`.
        training: a bad image is replaced by its next good neighbour; else its row is blank and labelled UNREADABLE.
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

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        """Where a sample comes from, as a line can hold it."""
        return shown(self._source.name(index))

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, int]:
        """Image and label as in epoch 0."""
        return self.sample(0, index)

    def sample(self, epoch: int, index: int) -> Tuple[torch.Tensor, int]:
        """Image (C, H, W) and label of a sample as augmented in an epoch.

        Raises:
            DataError: for a bad image, or one too many.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        image = self._image(epoch, index)
        while image is None:
            if not self._training:
                return self.blank(), UNREADABLE
            index = (index + 1) % len(self)
            image = self._image(epoch, index)
        return image, int(self._source.labels[index])

    def _image(self, epoch: int, index: int) -> Optional[torch.Tensor]:
        """The finished image, or None for a bad one that is to be skipped."""
        try:
            picture = decode(self._source.read(index))
            with seeded(mix_seed(self._seed, epoch, index)):
                return self._transform(picture)
        except BadImage as error:
            self._note_bad(index, error)
        except (*DECODER_ERRORS, RuntimeError) as error:  # of a library, at a picture that it did not expect
            self._note_bad(index, BadImage(f"gives no sample: {one_line(error) or type(error).__name__}"))
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
            raise DataError(f"{line}; mend or remove it") from error
        count, limit = int(self._bad.sum()), max(BAD_FEWEST, int(BAD_SHARE * len(self)))
        if count > limit:
            raise DataError(f"{line}; that makes {count} bad images of {len(self)}: more than {limit} are not skipped")
        handling = "its neighbour is used instead" if self._training else "it counts as misclassified"
        logger.warning("%s: %s (bad image %d of at most %d)", line, handling, count, limit)


def _shared_flags(count: int) -> torch.Tensor:
    """`count` flags that worker processes set together, so that each bad file is counted and reported once."""
    flags = torch.zeros(count, dtype=torch.bool)
    try:
        return flags.share_memory_()
    except RuntimeError:  # no room in /dev/shm, and so none for workers: a private count is enough
        return flags


class NamedImages(ImageDataset):
    """Image files that somebody named: one that is bad is told and left out, however many there are."""

    def _note_bad(self, index: int, error: BadImage) -> None:
        logger.warning("%s %s", shown(self._source.name(index)), error)


class EpochView(Dataset[Tuple[torch.Tensor, int, int, int]]):
    """A data set as a sampler of positions addresses it: (epoch, index) -> (image, label, epoch, index).

    Args:
        dataset: has `sample(epoch, index)` and `blank()`.
        samples: what this process reads in one epoch, which is the length of this view.
    """

    def __init__(self, dataset: Any, samples: int):
        self.dataset = dataset
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, position: Position) -> Tuple[torch.Tensor, int, int, int]:
        epoch, index = position
        image, label = (self.dataset.blank(), PADDED) if index == PADDING else self.dataset.sample(epoch, index)
        return image, label, epoch, index
