# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Pictures -> tensors: the official Swin recipe for training and evaluation, from timm's transforms."""

import contextlib
import random
from typing import Any, Callable, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, AugMixAugment, AutoAugment, RandAugment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_interp_mode
from torch.utils.data import get_worker_info
from torchvision import transforms
from yacs.config import CfgNode

from common.errors import EXIT_USAGE, Refusal
from dataset import native
from dataset.decode import MAX_PIXELS, BadImage, PartialPicture, Picture
from dataset.pixels import PartialPixels, Pixels, Planes, adapt, put_levels, takes_pixels
from planning.geometry import CENTRE_SHARE, crop_share, evaluation_interpolation, image_size
from utils import one_line

Part = Callable[[Any], Any]  # a part of a transform, applied to the result of the previous part
BICUBIC, BILINEAR = transforms.InterpolationMode.BICUBIC, transforms.InterpolationMode.BILINEAR
PIXEL_MODES = {BICUBIC: Image.Resampling.BICUBIC, BILINEAR: Image.Resampling.BILINEAR}  # supported by `Pixels`
WITHIN_A_PICTURE = {"lanczos": "bicubic", "hamming": "bilinear"}  # Pillow rotates and shears with no others
NO_POLICY = ("", "none")  # the second is used by official configurations


class Transform:
    """A sequence of parts: a picture -> (3, H, W), written into a tensor if given."""

    def __init__(self, parts: List[Part]):
        self.transforms = parts

    def __call__(self, picture: Picture, into: Optional[torch.Tensor] = None) -> torch.Tensor:
        image: Any = picture
        for part in self.transforms:
            image = part(image, into) if isinstance(part, Planes) else part(image)
        return image if into is None or image is into else into.copy_(image)


def build_transform(config: CfgNode, training: bool) -> Transform:
    """The transform of one split: a picture -> (3, H, W) in the dtype of `image_dtype`.

    Training: random resized crop, flip, RandAugment or colour jitter, random erasing (paper, section A2.1); with
    AUG.SHIFT the whole picture is resized and shifted instead of cropped. Evaluation: resize, centre crop; with
    TEST.CROP off or AUG.SHIFT on the whole picture is resized. Floats are normalised; bytes are left to the device.
    """
    parts = _training_parts(config) if training else _evaluation_parts(config)
    normalise = None if image_dtype(config) == torch.uint8 else Normalise(*_statistics(config))
    parts = for_pixels(parts, normalise) if native.library() else for_images(parts, normalise)
    if training and config.AUG.REPROB > 0:
        parts.append(_erasing(config) if normalise else ByteErasing(_erasing(config), *_statistics(config)))
    if image_dtype(config) == torch.float16:
        parts.append(transforms.ConvertImageDtype(torch.float16))
    return Transform(parts)


def for_images(parts: Iterable[Part], normalise: Optional["Normalise"]) -> List[Part]:
    """Parts that work on Pillow images, and the one that converts the result to a tensor."""
    return [as_image, *parts, transforms.PILToTensor(), torch.Tensor.contiguous, *([normalise] if normalise else [])]


def for_pixels(parts: Iterable[Part], normalise: Optional["Normalise"]) -> List[Part]:
    """The same parts on `Pixels`, which are faster, with bit-identical results."""
    planes = Planes(normalise.scale.view(-1), normalise.shift.view(-1)) if normalise else Planes()
    return [as_pixels, *map(_for_pixels, parts), planes]


def _for_pixels(part: Part) -> Part:
    """The equivalent of `part` for `Pixels`."""
    if isinstance(part, RandomResizedCrop):
        modes = part.interpolation if isinstance(part.interpolation, (tuple, list)) else (part.interpolation,)
        return part if all(mode in PIXEL_MODES for mode in modes) else OnImage(part)
    if isinstance(part, transforms.RandomHorizontalFlip):
        return Mirror(part.p)
    if isinstance(part, NarrowPictures):
        return part
    if isinstance(part, ResizedCentre):
        return part if part.takes_pixels() else OnImage(part)
    if isinstance(part, (RandAugment, AutoAugment)):
        operations = list(_operations(part))
        if all(takes_pixels(operation) for operation in operations):
            for operation in operations:
                adapt(operation)
            return part if isinstance(part, AutoAugment) else PlainRandAugment(**vars(part))
    return OnImage(part)


def image_dtype(config: CfgNode) -> torch.dtype:
    """uint8, float16 for an input precision of 16 bits, or float32."""
    if config.DATA.INPUT_DTYPE == "uint8":
        return torch.uint8
    return torch.float16 if config.MODEL.PRECISION.startswith("16") else torch.float32


def _training_parts(config: CfgNode) -> List[Part]:
    """Picture -> augmented bytes; raises `Refusal` for an unknown AUG.AUTO_AUGMENT."""
    policy = config.AUG.AUTO_AUGMENT
    jitter: Any = config.AUG.COLOR_JITTER or None  # None turns it off, although timm's annotation lacks it
    try:
        crop, augment, _ = create_transform(
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
    return [*first, *flips, *augment.transforms]


def _evaluation_parts(config: CfgNode) -> List[Part]:
    """Picture -> resized picture."""
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
    resize, crop, _ = resized.transforms  # the last converts to a tensor
    centre = ResizedCentre(resize, crop)
    return [NarrowPictures(image_size(config)), centre] if cropped else [centre]


def _statistics(config: CfgNode) -> Tuple[Sequence[float], Sequence[float]]:
    return config.DATA.MEAN, config.DATA.STD


def _resize_whole(config: CfgNode) -> transforms.Resize:
    return transforms.Resize(image_size(config), str_to_interp_mode(evaluation_interpolation(config)))


def as_image(picture: Picture) -> Image.Image:
    """The picture as a Pillow image."""
    if isinstance(picture, PartialPicture):
        picture = picture.whole()
    return Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture


def as_pixels(picture: Picture) -> Pixels:
    """The picture as `Pixels`."""
    return PartialPixels(picture) if isinstance(picture, PartialPicture) else Pixels(np.asarray(picture))


class OnImage:
    """Applies a part for Pillow images to `Pixels`."""

    def __init__(self, part: Part):
        self.part = part

    def __call__(self, picture: Pixels) -> Pixels:
        return Pixels(np.asarray(self.part(picture.image())))


class Mirror:
    """Flips `Pixels` with probability `p`, drawing the same random number as torchvision's RandomHorizontalFlip."""

    def __init__(self, p: float):
        self.p = p
        self._rounded = float(np.float32(p))  # as a tensor's comparison does

    def __call__(self, picture: Pixels) -> Pixels:
        return picture.mirror() if torch.rand(1).item() < self._rounded else picture


class NarrowPictures:
    """Rejects pictures so narrow that resizing the shorter side to `size` would give more than MAX_PIXELS."""

    def __init__(self, size: Sequence[int]):
        self.side = max(size) / CENTRE_SHARE

    def __call__(self, image: Any) -> Any:
        longer, shorter = max(image.size), min(image.size)
        if self.side * self.side * longer / shorter > MAX_PIXELS:
            raise BadImage(f"of {image.width}x{image.height} pixels is too narrow to be resized")
        return image


class RandomResizedCrop(RandomResizedCropAndInterpolation):
    """timm's random resized crop, which also accepts `Pixels`, with bit-identical results."""

    @staticmethod
    def get_params(picture: Any, scale: Sequence[float], ratio: Sequence[float]) -> Tuple[int, int, int, int]:
        """Top, left, height and width of a crop of at least one pixel, even in the smallest pictures."""
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(picture, scale, ratio)
        return top, left, max(height, 1), max(width, 1)

    def __call__(self, picture: Any) -> Any:
        if not isinstance(picture, Pixels):
            return super().__call__(picture)
        sizes = torch.empty_strided((picture.height, picture.width), (0, 0))  # torchvision does not know `Pixels`
        top, left, height, width = self.get_params(sizes, self.scale, self.ratio)
        modes = self.interpolation
        mode = random.choice(modes) if isinstance(modes, (tuple, list)) else modes
        return picture.crop((left, top, width, height)).resize((self.size[1], self.size[0]), PIXEL_MODES[mode])


class PlainRandAugment(RandAugment):
    """timm's RandAugment with the same random numbers, without the array of operations built by np.random.choice."""

    def __call__(self, picture: Pixels) -> Pixels:
        if self.choice_weights is not None:
            return super().__call__(picture)
        for place in np.random.randint(0, len(self.ops), self.num_layers).tolist():
            picture = self.ops[place](picture)
        return picture


class ResizedCentre:
    """timm's evaluation transform, the centre of a resized picture; for `Pixels` only this part is resized."""

    def __init__(self, resize: Any, crop: transforms.CenterCrop):
        self.resize, self.crop = resize, crop

    def takes_pixels(self) -> bool:
        """Whether this is supported: for squares, and for whole pictures."""
        return isinstance(self.resize, transforms.Resize) and self.resize.interpolation in PIXEL_MODES

    def __call__(self, picture: Any) -> Any:
        if not isinstance(picture, Pixels):
            return self.crop(self.resize(picture))
        height, width = self.crop.size
        wide, high = self._resized(picture)
        box = int(round((wide - width) / 2)), int(round((high - height) / 2)), width, height
        return picture.resize((wide, high), PIXEL_MODES[self.resize.interpolation], box)

    def _resized(self, picture: Pixels) -> Tuple[int, int]:
        """Width and height of the whole resized picture."""
        size = self.resize.size
        if not isinstance(size, int):
            return size[1], size[0]
        shorter = min(picture.size)
        wide, high = (size if side == shorter else int(size * side / shorter) for side in picture.size)
        return wide, high


class RandomShift:
    """Shifts a picture randomly by up to `pixels` in each direction; uncovered edges are black."""

    def __init__(self, pixels: int):
        self.pixels = pixels

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = (random.randint(0, 2 * self.pixels) for _ in range(2))
        return ImageOps.expand(image, self.pixels).crop((left, top, left + image.width, top + image.height))


class Normalise:
    """Bytes (..., C, H, W) -> float32 with mean 0 and standard deviation 1 over ImageNet.

    Args:
        mean, std: per channel, with 1 for white.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        means, deviations = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self.scale, self.shift = 1 / (255 * deviations), -means / deviations

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image.float().mul_(self.scale).add_(self.shift)


class ByteErasing:
    """Random erasing on bytes: the same rectangles, with the noise rounded to bytes.

    Args:
        erasing: timm's transform, which works on normalised floats.
        mean, std: per channel, with 1 for white.
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
        put_levels(self._image[region], noise, self._mean, self._std)


def _erasing(config: CfgNode) -> RandomErasing:
    return RandomErasing(config.AUG.REPROB, mode=config.AUG.REMODE, max_count=config.AUG.RECOUNT, device="cpu")


def allow_zero_bits(augment: transforms.Compose) -> None:
    """Allows posterize with 0 bits, which the recipe uses at its strongest level and Pillow rejects since version 13.

    The result is black, as in older versions. Only the operations of this transform are changed.
    """
    for part in augment.transforms:
        for operation in _operations(part):
            mend_posterize(operation)


def mend_posterize(operation: AugmentOp) -> None:
    """The same for one operation; others are left alone."""
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
    return ImageOps.posterize(image, bits) if bits > 0 else image.point([0] * 768)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of random, numpy and torch (CPU) inside the context, and restores them afterwards."""
    with generators_kept():
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Restores the global generators after the context; nested contexts leave this to the outermost one.

    Loader workers do not restore them, to save time: they use them for nothing else.
    """
    if _kept or get_worker_info():
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _kept.append(True)
    try:
        yield
    finally:
        _kept.clear()
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


_kept: List[bool] = []  # not empty inside `generators_kept`
