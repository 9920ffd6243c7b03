# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Pictures as arrays, with operations that give Pillow's result bit for bit in a fraction of its time (pixels.c)."""

import ctypes
import math
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import PIL
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp

from dataset import native
from dataset.decode import TiledPicture
from dataset.jpeg_tiles import Box

LEVELS = 256
CHANNELS = 3
CUBIC: Dict[int, int] = {
    Image.Resampling.BICUBIC: 1,
    Image.Resampling.BILINEAR: 0,
}  # the interpolations that pixels.c has
PILLOW = int(PIL.__version__.split(".")[0])
Address = Union[np.ndarray, torch.Tensor, Any]


class Pixels:
    """A picture of RGB bytes (height, width, 3), contiguous but for the distance of its rows.

    timm's augmentations take it for a Pillow image: it has the part of that interface that their geometric operations
    and look-up tables use. No operation changes a picture in place.
    """

    mode = "RGB"

    def __init__(self, array: np.ndarray):
        self._array = array
        self.height, self.width = array.shape[:2]

    @property
    def array(self) -> np.ndarray:
        """The bytes (height, width, 3)."""
        return self._array

    @property
    def size(self) -> Tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    def image(self) -> Image.Image:
        """The picture as a Pillow image."""
        return Image.fromarray(self.array)

    def crop(self, box: Box) -> "Pixels":
        """A part that shares memory with the picture."""
        left, top, width, height = box
        return Pixels(self.array[top : top + height, left : left + width])

    def resize(self, size: Tuple[int, int], resample: int, box: Optional[Box] = None) -> "Pixels":
        """The picture resized to `size` (width, height), with antialiasing; of that, only the part `box` is computed.

        Raises:
            ValueError: if `box` is not inside `size`.
        """
        left, top, width, height = box or (0, 0, *size)
        if min(left, top) < 0 or min(width, height) < 1 or left + width > size[0] or top + height > size[1]:
            raise ValueError(f"the part {box} reaches out of {size[0]}x{size[1]} pixels")
        out = _empty(width, height)
        stride = ctypes.c_int64(self.array.strides[0])
        part = (*self.size, *size, left, top, width, height, CUBIC[resample], _columns_first(self.size, size))
        enough = _run("resize", _at(self.array), stride, *part, _at(out))
        if not enough:
            raise MemoryError(f"resizing {self.width}x{self.height} pixels to {size[0]}x{size[1]}")
        return Pixels(out)

    def mirror(self) -> "Pixels":
        """Left and right exchanged."""
        return self._made("mirror", *self.size)

    def copy(self) -> "Pixels":
        """The picture itself, which nothing changes."""
        return self

    rotate = Image.Image.rotate  # makes the matrix for `transform`, or calls `transpose`

    def transpose(self, method: Image.Transpose) -> "Pixels":
        """Turned by a multiple of 90 degrees, or flipped."""
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
        matrix, fill, out = np.array(data, np.float64), np.array(fillcolor, np.uint8), _empty(*size)
        if not _run("affine", _at(self.array), *size, _at(matrix), CUBIC[resample], _at(fill), _at(out)):
            raise MemoryError(f"transforming {self.width}x{self.height} pixels")
        return Pixels(out)

    def histogram(self, mask: None = None) -> List[int]:
        """How many values of each level the red channel has, then green, then blue."""
        counts = np.empty(3 * LEVELS, np.int32)
        _run("histogram", _at(self.array), self._count(), _at(counts))
        return counts.tolist()

    def point(self, table: Sequence[int]) -> "Pixels":
        """Each value replaced by that of a table (768,) for red, green and blue."""
        levels = np.clip(table, 0, LEVELS - 1).astype(np.uint8)
        return self._made("look_up", self._count(), _at(levels))

    def mean_grey(self) -> int:
        """The mean of the grey levels, rounded."""
        total = ctypes.c_int64()
        _run("sum_of_greys", _at(self.array), self._count(), ctypes.byref(total))
        return int(total.value / (self.width * self.height) + 0.5)

    def saturated(self, factor: float) -> "Pixels":
        """As ImageEnhance.Color: 0 gives grey, 1 the picture."""
        return self._made("saturate", self._count(), ctypes.c_float(factor))

    def sharpened(self, factor: float) -> "Pixels":
        """As ImageEnhance.Sharpness: 0 gives a smooth picture, 1 the picture."""
        return self._made("sharpen", *self.size, ctypes.c_float(factor))

    def blended_with(self, level: int, factor: float) -> "Pixels":
        """0 gives a picture of the grey `level`, 1 the picture."""
        levels = np.arange(LEVELS, dtype=np.uint8)[None]
        table = Image.blend(Image.new("L", (LEVELS, 1), level), Image.fromarray(levels), factor)
        return self.point(list(table.tobytes()) * 3)

    def _count(self) -> ctypes.c_int64:
        return ctypes.c_int64(self.width * self.height)

    def _made(self, function: str, *arguments: Any) -> "Pixels":
        out = _empty(self.width, self.height)
        _run(function, _at(self.array), *arguments, _at(out))
        return Pixels(out)


class TiledPixels(Pixels):
    """A picture that is decoded where it is cropped or resized, and as a whole for anything else."""

    def __init__(self, picture: TiledPicture):
        self._picture = picture
        self.width, self.height = picture.size
        self._whole: Optional[np.ndarray] = None

    @property
    def array(self) -> np.ndarray:
        """The bytes (height, width, 3)."""
        if self._whole is None:
            self._whole = self._picture.whole()
        return self._whole

    def crop(self, box: Box) -> Pixels:
        """A part of the picture."""
        return Pixels(self._picture.part(box))

    def resize(self, size: Tuple[int, int], resample: int, box: Optional[Box] = None) -> Pixels:
        """As that of `Pixels`: of the picture, only what `box` is made of is decoded."""
        if box is None:
            return super().resize(size, resample)
        reach = 2 if CUBIC[resample] else 1
        left, width = _made_of(self.width, size[0], box[0], box[2], reach)
        top, height = _made_of(self.height, size[1], box[1], box[3], reach)
        frame = _empty(self.width, self.height)
        frame[top : top + height, left : left + width] = self._picture.part((left, top, width, height))
        return Pixels(frame).resize(size, resample, box)


class Planes:
    """`Pixels` -> a tensor (3, height, width) with each value replaced by a table's.

    Args:
        table: (3, 256), bytes or float32, which the result becomes too.
    """

    def __init__(self, table: torch.Tensor):
        self.table = table.contiguous()
        self._function = {torch.uint8: "planes_of_bytes", torch.float32: "planes_of_floats"}[table.dtype]

    def __call__(self, picture: Pixels, into: Optional[torch.Tensor] = None) -> torch.Tensor:
        """The tensor: `into` if it fits, else a new one."""
        shape = (CHANNELS, picture.height, picture.width)
        fits = into is not None and into.shape == shape and into.dtype == self.table.dtype and into.is_contiguous()
        out = into if into is not None and fits else torch.empty(shape, dtype=self.table.dtype)
        _run(self._function, _at(picture.array), picture._count(), _at(self.table), _at(out))
        return out


def _made_of(old: int, new: int, start: int, count: int, reach: int) -> Tuple[int, int]:
    """The first pixel of `old` that pixels start..start+count of `new` are made of, and how many follow at the most."""
    scale = old / new
    first = max(math.floor(start * scale - reach * max(scale, 1)), 0)
    end = min(math.ceil((start + count) * scale + reach * max(scale, 1)), old)
    return first, end - first


def mix(one: torch.Tensor, other: torch.Tensor, share: float) -> None:
    """Makes each of two images `share` of itself and the rest of the other, in place; bytes are rounded to nearest.

    The products and the sum are of float32, whatever the images' dtype is.
    """
    function = {torch.uint8: "mix_bytes", torch.float32: "mix_floats"}.get(one.dtype)
    if function and native.library() and one.is_contiguous() and other.is_contiguous():
        shares = ctypes.c_float(share), ctypes.c_float(1.0 - share)
        _run(function, _at(one), _at(other), ctypes.c_int64(min(one.numel(), other.numel())), *shares)
        return
    first, second = one.float(), other.float()
    for image, mixed in (
        (one, first.mul(share).add_(second.mul(1.0 - share))),
        (other, second.mul(share).add_(first.mul(1.0 - share))),
    ):
        image.copy_(mixed if image.is_floating_point() else mixed.round_())


def _columns_first(size: Tuple[int, int], new: Tuple[int, int]) -> bool:
    """Whether Pillow resizes columns before rows: since version 13, where the height shrinks the most."""
    narrower, lower = size[0] - new[0], size[1] - new[1]
    return PILLOW >= 13 and lower > 0 and lower > 2 * narrower


def _run(function: str, *arguments: Any) -> int:
    library = native.library()
    if library is None:
        raise RuntimeError("pixels.c is not compiled in this process")
    return getattr(library, function)(*arguments)


def _empty(width: int, height: int) -> np.ndarray:
    return np.empty((height, width, 3), np.uint8)


def _at(memory: Address) -> ctypes.c_void_p:
    return ctypes.c_void_p(memory.data_ptr() if isinstance(memory, torch.Tensor) else memory.ctypes.data)


def takes_pixels(operation: AugmentOp) -> bool:
    """Whether `adapt` lets an operation of timm take `Pixels`."""
    return _kind(operation) in ENHANCEMENTS or _kind(operation) in AS_PILLOW


def adapt(operation: AugmentOp) -> None:
    """Lets an operation of timm take `Pixels`."""
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


ENHANCEMENTS: Dict[str, Callable[..., Pixels]] = {
    "Color": _color,
    "Desaturate": _desaturate,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
}
# What `Pixels` offers is enough for timm's own functions of these.
AS_PILLOW = (
    *("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd", "Rotate", "ShearX", "ShearY"),
    *("TranslateX", "TranslateY", "TranslateXRel", "TranslateYRel"),
)
