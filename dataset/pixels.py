# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Pictures as arrays, with operations that give Pillow's results bit for bit in a fraction of the time (pixels.c)."""

import ctypes
import math
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import PIL
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp

from dataset import native
from dataset.decode import PartialPicture
from dataset.jpeg_parts import Box

LEVELS = 256
CHANNELS = 3
FIRST = LEVELS * np.arange(CHANNELS)[:, None]  # first entry of each channel in a table (3, 256)
IDENTITY = np.arange(LEVELS, dtype=np.uint8)  # the identity table
CUBIC: Dict[int, int] = {
    Image.Resampling.BICUBIC: 1,
    Image.Resampling.BILINEAR: 0,
}  # the interpolations of pixels.c
PILLOW = int(PIL.__version__.split(".")[0])


class Pixels:
    """A picture of RGB bytes (height, width, 3), contiguous within rows.

    timm's augmentations can treat it as a Pillow image: it has the part of that interface that their geometric
    operations use. No operation changes a picture in place.
    """

    mode = "RGB"

    _levels: Optional[np.ndarray] = None  # (3, 256) bytes: a lookup table still to be applied to the bytes

    def __init__(self, array: np.ndarray, levels: Optional[np.ndarray] = None):
        self._array, self._levels = array, levels
        self.height, self.width = array.shape[:2]

    @property
    def array(self) -> np.ndarray:
        """The bytes (height, width, 3)."""
        if self._levels is not None:
            out = _empty(self.width, self.height)
            _run("look_up", _at(self._array), self._count(), _at(self._levels), _at(out))
            self._array, self._levels = out, None
        return self._array

    def before_levels(self) -> Tuple[np.ndarray, Optional[np.ndarray]]:
        """The bytes, and the lookup table (3, 256) still to be applied, if any; saves a pass compared to `array`."""
        return (self.array, None) if self._levels is None else (self._array, self._levels)

    @property
    def size(self) -> Tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    def image(self) -> Image.Image:
        """The picture as a Pillow image."""
        return Image.fromarray(self.array)

    def part(self, box: Box) -> Tuple[np.ndarray, int, int]:
        """Pixels (height, width, 3) that include `box`, and the left and top of the first one."""
        return self.array, 0, 0

    def crop(self, box: Box) -> "Pixels":
        """A part that shares memory with the picture."""
        left, top, width, height = box
        array, x, y = self.part(box)
        return Pixels(array[top - y : top - y + height, left - x : left - x + width])

    def resize(self, size: Tuple[int, int], resample: int, box: Optional[Box] = None) -> "Pixels":
        """The part `box` of the picture resized to `size` (width, height), with antialiasing.

        Raises:
            ValueError: if `box` is not inside `size`.
        """
        left, top, width, height = box or (0, 0, *size)
        if min(left, top) < 0 or min(width, height) < 1 or left + width > size[0] or top + height > size[1]:
            raise ValueError(f"the part {box} extends beyond {size[0]}x{size[1]} pixels")
        return ResizedPixels(self, size, resample, (left, top, width, height))

    def mirror(self) -> "Pixels":
        """Left and right exchanged."""
        return self._made("mirror", *self.size)

    def copy(self) -> "Pixels":
        """The picture itself, which is immutable."""
        return self

    rotate = Image.Image.rotate  # makes the matrix for `transform`, or calls `transpose`

    def transpose(self, method: Image.Transpose) -> "Pixels":
        """Rotated by a multiple of 90 degrees, or flipped."""
        return Pixels(np.asarray(self.image().transpose(method)))

    def transform(
        self,
        size: Tuple[int, int],
        method: Image.Transform,
        data: Sequence[float],
        resample: int,
        fillcolor: Tuple[int, ...],
    ) -> "Pixels":
        """An affine transform to a picture of the same size."""
        if size != self.size or method != Image.Transform.AFFINE or resample not in CUBIC:
            changed = self.image().transform(size, method, data, resample, fillcolor=fillcolor)
            return Pixels(np.asarray(changed))
        matrix, out = (ctypes.c_double * 6)(*data), _empty(*size)
        if not _run("affine", _at(self.array), *size, matrix, CUBIC[resample], bytes(fillcolor), _at(out)):
            raise MemoryError(f"transforming {self.width}x{self.height} pixels")
        return Pixels(out)

    def counts(self) -> np.ndarray:
        """The number of pixels at each level, (3, 256) for red, green and blue."""
        counts = np.empty((CHANNELS, LEVELS), np.int32)
        _run("histogram", _at(self.array), self._count(), _at(counts))
        return counts

    def mapped(self, table: np.ndarray) -> "Pixels":
        """Applies a lookup table of bytes: (256,), or (3, 256) for red, green and blue."""
        array, levels = self.before_levels()
        tables = np.empty((CHANNELS, LEVELS), np.uint8)
        tables[:] = table
        return Pixels(array, tables if levels is None else _composed(tables, levels))

    def mean_grey(self) -> int:
        """The mean grey level, rounded."""
        total = ctypes.c_int64()
        _run("sum_of_greys", _at(self.array), self._count(), ctypes.byref(total))
        return int(total.value / (self.width * self.height) + 0.5)

    def saturated(self, factor: float) -> "Pixels":
        """As ImageEnhance.Color: 0 gives grey, 1 the picture."""
        return self._made("saturate", self._count(), factor)

    def sharpened(self, factor: float) -> "Pixels":
        """As ImageEnhance.Sharpness: 0 gives a smooth picture, 1 the picture."""
        return self._made("sharpen", *self.size, factor)

    def blended_with(self, level: int, factor: float) -> "Pixels":
        """Blends with the grey `level`: 0 gives grey, 1 the picture."""
        values = np.float32(level) + np.float32(factor) * (IDENTITY.astype(np.float32) - np.float32(level))
        return self.mapped(values.clip(0, LEVELS - 1).astype(np.uint8))

    def _count(self) -> int:
        return self.width * self.height

    def _made(self, function: str, *arguments: Any) -> "Pixels":
        out = _empty(self.width, self.height)
        _run(function, _at(self.array), *arguments, _at(out))
        return Pixels(out)


class ResizedPixels(Pixels):
    """The part `box` of a picture resized to `size`, computed lazily, together with a horizontal flip if any."""

    def __init__(self, source: Pixels, size: Tuple[int, int], resample: int, box: Box, mirrored: bool = False):
        self._source, self._size, self._resample, self._box, self._mirrored = source, size, resample, box, mirrored
        _, _, self.width, self.height = box
        self._done: Optional[np.ndarray] = None

    def mirror(self) -> Pixels:
        """Left and right exchanged."""
        return ResizedPixels(self._source, self._size, self._resample, self._box, not self._mirrored)

    @property
    def array(self) -> np.ndarray:
        """The bytes (height, width, 3)."""
        if self._done is None:
            self._done = self._resized()
        return self._done

    def _resized(self) -> np.ndarray:
        old, new, reach = self._source.size, self._size, 2 if CUBIC[self._resample] else 1
        left, wide = _made_of(old[0], new[0], self._box[0], self.width, reach)
        top, high = _made_of(old[1], new[1], self._box[1], self.height, reach)
        array, x, y = self._source.part((left, top, wide, high))
        window = array.strides[0], x, y, array.shape[1], array.shape[0]
        how, out = (CUBIC[self._resample], _columns_first(old, new), self._mirrored), _empty(self.width, self.height)
        if not _run("resize", _at(array), *window, *old, *new, *self._box, *how, _at(out)):
            raise MemoryError(f"resizing {old[0]}x{old[1]} pixels to {new[0]}x{new[1]}")
        return out


class PartialPixels(Pixels):
    """A picture decoded lazily: only the part needed for a crop or resize, or the whole for other operations."""

    def __init__(self, picture: PartialPicture):
        self._picture = picture
        self.width, self.height = picture.size
        self._whole: Optional[np.ndarray] = None

    @property
    def array(self) -> np.ndarray:
        """The bytes (height, width, 3)."""
        if self._whole is None:
            self._whole = self._picture.whole()
        return self._whole

    def part(self, box: Box) -> Tuple[np.ndarray, int, int]:
        """As in `Pixels`; decodes what it needs."""
        return self._picture.part(box)


class Planes:
    """`Pixels` -> a tensor (3, height, width): bytes, or float32 with each value scaled and then shifted.

    Args:
        scale, shift: of red, green and blue, float32 (3,); None: the result is bytes.
    """

    def __init__(self, scale: Optional[torch.Tensor] = None, shift: Optional[torch.Tensor] = None):
        values = torch.arange(LEVELS, dtype=torch.uint8).expand(CHANNELS, LEVELS)
        self._factors: List[torch.Tensor] = []
        if scale is not None and shift is not None:
            self._factors = [scale.contiguous(), shift.contiguous()]
            values = values.float().mul_(scale[:, None]).add_(shift[:, None])
        self.dtype, self._values = values.dtype, values.numpy()
        self._function = "planes_of_floats" if self._factors else "planes_of_bytes"

    def __call__(self, picture: Pixels, into: Optional[torch.Tensor] = None) -> torch.Tensor:
        """The tensor: `into` if it fits, else a new one."""
        shape = (CHANNELS, picture.height, picture.width)
        fits = into is not None and into.shape == shape and into.dtype == self.dtype and into.is_contiguous()
        out = into if into is not None and fits else torch.empty(shape, dtype=self.dtype)
        array, levels = picture.before_levels()
        if levels is None:
            _run(self._function, _at(array), picture._count(), *map(_at, self._factors), _at(out))
        else:
            table = _composed(self._values, levels)
            _run(f"mapped_{self._function}", _at(array), picture._count(), _at(table), _at(out))
        return out


def _composed(tables: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Applies a lookup table (3, 256) to another one, (3, 256) bytes."""
    return tables.ravel().take(levels + FIRST)


def _made_of(old: int, new: int, start: int, count: int, reach: int) -> Tuple[int, int]:
    """The first of the `old` pixels that contribute to pixels start..start+count of `new`, and their maximum number."""
    scale = old / new
    first = max(math.floor(start * scale - reach * max(scale, 1)), 0)
    end = min(math.ceil((start + count) * scale + reach * max(scale, 1)), old)
    return first, end - first


def mix(one: torch.Tensor, other: torch.Tensor, share: float) -> None:
    """Blends two images in place, each with `share` of itself and the rest of the other; bytes are rounded to nearest.

    Computed in float32, whatever the images' dtype.
    """
    function = {torch.uint8: "mix_bytes", torch.float32: "mix_floats"}.get(one.dtype)
    if function and native.library() and one.is_contiguous() and other.is_contiguous():
        _run(function, _at(one), _at(other), min(one.numel(), other.numel()), share, 1.0 - share)
        return
    first, second = one.float(), other.float()
    for image, mixed in (
        (one, first.mul(share).add_(second.mul(1.0 - share))),
        (other, second.mul(share).add_(first.mul(1.0 - share))),
    ):
        image.copy_(mixed if image.is_floating_point() else mixed.round_())


def exchange(one: torch.Tensor, other: torch.Tensor) -> None:
    """Swaps parts (C, height, width) of two images, given by slices."""
    if not native.library() or one.stride() != other.stride() or one.stride(2) != 1:
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)
        return
    planes, rows, columns = one.shape
    plane, row, value = (one.element_size() * stride for stride in one.stride())
    _run("exchange", _at(one), _at(other), planes, plane, rows, row, columns * value)


def put_levels(image: torch.Tensor, noise: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Fills a part (C, height, width) of an image of bytes, given by slices, with the levels nearest to `noise`.

    Args:
        noise: normalised values as float32, of the part's shape or broadcast to it.
        mean, std: of each channel (C, 1, 1), in units of 1 for white.
    """
    if not native.library() or noise.shape != image.shape or not noise.is_contiguous() or image.stride(2) != 1:
        image.copy_(((noise * std + mean) * 255).round_().clamp_(0, 255))
        return
    _, rows, columns = image.shape
    for values, part, factor, offset in zip(noise, image, std.view(-1).tolist(), mean.view(-1).tolist()):
        _run("to_levels", _at(values), rows, columns, factor, offset, _at(part), part.stride(0))


def _columns_first(size: Tuple[int, int], new: Tuple[int, int]) -> bool:
    """Whether Pillow resizes columns before rows: since version 13, if the height shrinks the most."""
    narrower, lower = size[0] - new[0], size[1] - new[1]
    return PILLOW >= 13 and lower > 0 and lower > 2 * narrower


def _run(function: str, *arguments: Any) -> int:
    library = native.library()
    if library is None:
        raise RuntimeError("pixels.c is not compiled in this process")
    return getattr(library, function)(*arguments)


def _empty(width: int, height: int) -> np.ndarray:
    return np.empty((height, width, 3), np.uint8)


def _at(memory: Union[np.ndarray, torch.Tensor]) -> int:
    return memory.data_ptr() if isinstance(memory, torch.Tensor) else int(memory.__array_interface__["data"][0])


def takes_pixels(operation: AugmentOp) -> bool:
    """Whether `adapt` supports an operation of timm."""
    return _kind(operation) in ENHANCEMENTS or _kind(operation) in AS_PILLOW


def adapt(operation: AugmentOp) -> None:
    """Makes an operation of timm accept `Pixels`."""
    operation.aug_fn = ENHANCEMENTS.get(_kind(operation), operation.aug_fn)


def _kind(operation: AugmentOp) -> str:
    return operation.name.replace("Increasing", "").replace("Original", "")


def _color(picture: Pixels, factor: float, **_: Any) -> Pixels:
    return picture.saturated(factor)


def _desaturate(picture: Pixels, factor: float, **_: Any) -> Pixels:
    return picture.saturated(min(1.0, max(0.0, 1.0 - factor)))


def _contrast(picture: Pixels, factor: float, **_: Any) -> Pixels:
    return picture.blended_with(picture.mean_grey(), factor)


def _brightness(picture: Pixels, factor: float, **_: Any) -> Pixels:
    return picture.blended_with(0, factor)


def _sharpness(picture: Pixels, factor: float, **_: Any) -> Pixels:
    return picture.sharpened(factor)


def _autocontrast(picture: Pixels, **_: Any) -> Pixels:
    return picture.mapped(np.stack([_stretched(counts) for counts in picture.counts()]))


def _stretched(counts: np.ndarray) -> np.ndarray:
    """The lookup table that maps the darkest level to black and the lightest to white."""
    present = counts.nonzero()[0]
    darkest, lightest = int(present[0]), int(present[-1])
    if darkest == lightest:
        return IDENTITY
    scale = 255.0 / (lightest - darkest)
    return (np.arange(LEVELS) * scale + -darkest * scale).clip(0, LEVELS - 1).astype(np.uint8)


def _equalize(picture: Pixels, **_: Any) -> Pixels:
    return picture.mapped(np.stack([_evened(counts) for counts in picture.counts()]))


def _evened(counts: np.ndarray) -> np.ndarray:
    """The table that makes all levels equally frequent, as far as one can."""
    darker = np.cumsum(counts) - counts
    step = int(darker[counts.nonzero()[0][-1]]) // 255  # of all but the lightest
    return ((step // 2 + darker) // step).clip(0, LEVELS - 1).astype(np.uint8) if step else IDENTITY


def _invert(picture: Pixels, **_: Any) -> Pixels:
    return picture.mapped(IDENTITY[::-1])


def _posterize(picture: Pixels, bits: int, **_: Any) -> Pixels:
    return picture if bits >= 8 else picture.mapped(IDENTITY & (LEVELS - (1 << 8 - max(bits, 0))))


def _solarize(picture: Pixels, threshold: int, **_: Any) -> Pixels:
    return picture.mapped(np.where(np.arange(LEVELS) < threshold, IDENTITY, IDENTITY[::-1]))


def _solarize_add(picture: Pixels, add: int, threshold: int = 128, **_: Any) -> Pixels:
    levels = np.arange(LEVELS)
    return picture.mapped(np.where(levels < threshold, np.minimum(levels + add, LEVELS - 1), levels).astype(np.uint8))


ENHANCEMENTS: Dict[str, Callable[..., Pixels]] = {
    "Color": _color,
    "Desaturate": _desaturate,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
}
# timm's own functions for these work on `Pixels` unchanged.
AS_PILLOW = (*("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "TranslateXRel", "TranslateYRel"),)
