# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Pictures -> tensors: the official Swin recipe for training and evaluation, from timm's transforms."""

import contextlib
import functools
import random
from typing import Any, Callable, Iterable, Iterator, List, Sequence, Tuple

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torch.nn.functional import interpolate
from torch.utils.data import get_worker_info
from torchvision import transforms
from yacs.config import CfgNode

from common.errors import EXIT_USAGE, Refusal
from dataset.decode import MAX_PIXELS, BadImage, Picture
from planning.geometry import CENTRE_SHARE, crop_share, evaluation_interpolation, image_size
from utils import one_line

Transform = Callable[[Picture], torch.Tensor]
Part = Callable[[Any], Any]  # a part of a transform: takes the result of the part before it
FAST_RESIZE = {transforms.InterpolationMode.BICUBIC: "bicubic", transforms.InterpolationMode.BILINEAR: "bilinear"}
WITHIN_A_PICTURE = {"lanczos": "bicubic", "hamming": "bilinear"}  # rotations and shears in Pillow have no other
NO_POLICY = ("", "none")  # the second is the official configurations' word


def build_transform(config: CfgNode, training: bool) -> Transform:
    """The transform of one split: a picture -> (3, H, W) in the dtype that `image_dtype` names.

    Training: random resized crop, flip, RandAugment or colour jitter, random erasing (paper, section A2.1); with
    AUG.SHIFT the whole picture is resized and shifted instead of cropped. Evaluation: resize, centre crop; with
    TEST.CROP off or AUG.SHIFT on the whole picture is resized. Floats are normalised; bytes are left to the device.
    """
    parts: List[Part] = _training_parts(config) if training else [as_image, _evaluation(config)]
    parts.append(torch.Tensor.contiguous)  # as bytes, which is cheaper; collating copies plane by plane
    erases = training and config.AUG.REPROB > 0
    if image_dtype(config) == torch.uint8:
        return transforms.Compose(parts + ([ByteErasing(_erasing(config), *_statistics(config))] if erases else []))
    parts.append(Normalise(*_statistics(config)))
    if erases:
        parts.append(_erasing(config))
    if image_dtype(config) == torch.float16:
        parts.append(transforms.ConvertImageDtype(torch.float16))
    return transforms.Compose(parts)


def image_dtype(config: CfgNode) -> torch.dtype:
    """uint8, or float16 where the input precision is 16 bits, else float32."""
    if config.DATA.INPUT_DTYPE == "uint8":
        return torch.uint8
    return torch.float16 if config.MODEL.PRECISION.startswith("16") else torch.float32


def _training_parts(config: CfgNode) -> List[Part]:
    """Picture -> augmented bytes; raises `Refusal` for an unknown AUG.AUTO_AUGMENT."""
    policy = config.AUG.AUTO_AUGMENT
    jitter: Any = config.AUG.COLOR_JITTER or None  # None turns it off, which timm's annotation omits
    try:
        crop, augment, finish = create_transform(
            (3, *image_size(config)),
            is_training=True,
            separate=True,
            interpolation=WITHIN_A_PICTURE.get(config.DATA.INTERPOLATION, config.DATA.INTERPOLATION),
            mean=tuple(config.DATA.MEAN),
            normalize=False,
            hflip=config.AUG.HFLIP,
            color_jitter=jitter,
            auto_augment=policy if policy not in NO_POLICY else None,
        )
    except (AssertionError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise Refusal(f"AUG.AUTO_AUGMENT {policy} is not a policy of timm: {one_line(error)}", EXIT_USAGE) from error
    allow_zero_bits(augment)
    flips = [part for part in crop.transforms if isinstance(part, transforms.RandomHorizontalFlip)]
    if config.AUG.SHIFT:
        first: List[Part] = [as_image, _resize_whole(config), RandomShift(config.AUG.SHIFT)]
    else:
        first = [RandomResizedCrop(image_size(config), config.AUG.SCALE, config.AUG.RATIO, config.DATA.INTERPOLATION)]
    return [*first, *flips, *augment.transforms, *finish.transforms]


def _evaluation(config: CfgNode) -> Transform:
    """Picture -> bytes."""
    share = crop_share(config)
    cropped = share < 1.0
    resized = create_transform(
        (3, *image_size(config)),
        is_training=False,
        interpolation=evaluation_interpolation(config),
        normalize=False,
        crop_pct=share,
        crop_mode="center" if cropped else "squash",
    )
    return transforms.Compose([NarrowPictures(image_size(config)), resized]) if cropped else resized


def _statistics(config: CfgNode) -> Tuple[Sequence[float], Sequence[float]]:
    return config.DATA.MEAN, config.DATA.STD


def _resize_whole(config: CfgNode) -> transforms.Resize:
    return transforms.Resize(image_size(config), str_to_interp_mode(evaluation_interpolation(config)))


def as_image(picture: Picture) -> Image.Image:
    """The picture as a Pillow image."""
    return Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture


class NarrowPictures:
    """Rejects pictures so narrow that resizing the shorter side to `size` would give more than MAX_PIXELS."""

    def __init__(self, size: Sequence[int]):
        self.side = max(size) / CENTRE_SHARE

    def __call__(self, image: Image.Image) -> Image.Image:
        longer, shorter = max(image.size), min(image.size)
        if self.side * self.side * longer / shorter > MAX_PIXELS:
            raise BadImage(f"of {image.width}x{image.height} pixels is too narrow to be resized")
        return image


class RandomResizedCrop(RandomResizedCropAndInterpolation):
    """timm's random resized crop, three times as fast if PyTorch has a vectorised resize of bytes.

    Crops are the same. Pixels of photographs differ from Pillow's by at most 2 of 255 levels and by 0.02 on average; at
    black-white edges one in a thousand differs by more, since overshoots are clipped at another stage.
    """

    @staticmethod
    def get_params(picture: Any, scale: Sequence[float], ratio: Sequence[float]) -> Tuple[int, int, int, int]:
        """Top, left, height and width of a crop; at least one pixel even in the smallest pictures."""
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(picture, scale, ratio)
        return top, left, max(height, 1), max(width, 1)

    def __call__(self, picture: Picture) -> Image.Image:
        mode = FAST_RESIZE.get(self.interpolation) if has_fast_resize() else None
        if mode is None:
            return super().__call__(as_image(picture))
        if isinstance(picture, np.ndarray):
            pixels = torch.from_numpy(picture).permute(2, 0, 1)
            top, left, height, width = self.get_params(pixels, self.scale, self.ratio)
            part = pixels[:, top : top + height, left : left + width]
        else:
            top, left, height, width = self.get_params(picture, self.scale, self.ratio)
            part = torch.from_numpy(np.array(picture.crop((left, top, left + width, top + height)))).permute(2, 0, 1)
        part = part[None].contiguous(memory_format=torch.channels_last)
        resized = interpolate(part, self.size, mode=mode, antialias=True)
        return Image.fromarray(resized[0].permute(1, 2, 0).numpy())


@functools.lru_cache(maxsize=None)
def has_fast_resize() -> bool:
    """Whether PyTorch resizes bytes with vector instructions; before 2.1 it converts to floats, slower than Pillow."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return version >= (2, 1) and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


class RandomShift:
    """Moves a picture by up to `pixels` in each direction; the uncovered edges are black."""

    def __init__(self, pixels: int):
        self.pixels = pixels

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = (random.randint(0, 2 * self.pixels) for _ in range(2))
        return ImageOps.expand(image, self.pixels).crop((left, top, left + image.width, top + image.height))


class Normalise:
    """Bytes (..., C, H, W) -> float32 with mean 0 and standard deviation 1 over ImageNet.

    Args:
        mean, std: of each channel, in units of 1 for white.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        means, deviations = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self.scale, self.shift = 1 / (255 * deviations), -means / deviations

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image.float().mul_(self.scale).add_(self.shift)


class ByteErasing:
    """Random erasing on bytes: the same rectangles, filled with the noise's nearest byte values.

    Args:
        erasing: timm's transform, which works on normalised floats.
        mean, std: of each channel, in units of 1 for white.
    """

    def __init__(self, erasing: RandomErasing, mean: Sequence[float], std: Sequence[float]):
        self.erasing = erasing
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.erasing(_Canvas(image, self.mean, self.std))
        return image


class _Canvas:
    """A write-only view of a uint8 image as a tensor of normalised floats, for random erasing."""

    dtype = torch.float32

    def __init__(self, image: torch.Tensor, mean: torch.Tensor, std: torch.Tensor):
        self._image, self._mean, self._std = image, mean, std

    def size(self) -> torch.Size:
        """Channels, height and width."""
        return self._image.size()

    def __setitem__(self, region: Tuple[slice, ...], noise: torch.Tensor) -> None:
        self._image[region] = ((noise * self._std + self._mean) * 255).round_().clamp_(0, 255)


def _erasing(config: CfgNode) -> RandomErasing:
    return RandomErasing(config.AUG.REPROB, mode=config.AUG.REMODE, max_count=config.AUG.RECOUNT, device="cpu")


def allow_zero_bits(augment: transforms.Compose) -> None:
    """Allows posterize with 0 bits, which the recipe's strongest level uses and Pillow rejects since version 13.

    The result is black, as in older versions. Only the operations of this transform are changed.
    """
    for part in augment.transforms:
        for operation in _operations(part):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize


def _operations(part: Any) -> Iterable[AugmentOp]:
    if isinstance(part, (RandAugment, AugMixAugment)):
        operations = part.ops
    else:
        operations = part.policy if isinstance(part, AutoAugment) else ()
    for operation in operations:  # AutoAugment has sequences of them
        yield from operation if isinstance(operation, (list, tuple)) else [operation]


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of random, numpy and torch (CPU) inside the context, and restores them afterwards.

    Loader workers do not restore them, to save time: they have no other use for them.
    """
    states = None if get_worker_info() else (random.getstate(), np.random.get_state(), torch.get_rng_state())
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if states:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
