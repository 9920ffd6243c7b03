# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Overlays of a model's attention maps on its images."""

from pathlib import Path
from typing import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from yacs.config import CfgNode

from common.errors import EXIT_RESOURCE, Refusal
from common.launch import Launch
from training import processes
from utils import reason

LITTLE, MIDDLE, MUCH = "navy", "crimson", "yellow"  # colours of attention
OPACITY = 0.5
SHORTEST = 224  # minimum pixels of an overlay's shorter side: smaller images are enlarged
STEM = 60  # characters kept of a file's name, which has at most 255 bytes


class Overlays:
    """A folder of overlays: images with the attention map of `models.inspection.InspectedClassifier` on top.

    The map is interpolated to the size of the image and coloured from its smallest value (blue) to its largest
    (yellow): colours are not comparable between images. The image is the model's input, resized and cropped.
    Files are named by the image's position in the list of images, from 1, and its name: 0000012_cat.png.

    Args:
        folder: existing folder.
        config: configuration with the mean and standard deviation of the images.
    """

    def __init__(self, folder: Path, config: CfgNode):
        self._folder = folder
        self._mean, self._std = (torch.tensor(part).view(-1, 1, 1) for part in (config.DATA.MEAN, config.DATA.STD))

    @classmethod
    def made(cls, folder: Path, config: CfgNode, launch: Launch) -> "Overlays":
        """Overlays in a new or empty folder, which the leader creates for all processes.

        Raises:
            Refusal: if the folder cannot be created.
        """
        if launch.is_leader:
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise Refusal(f"{folder} cannot be created: {reason(error)}", EXIT_RESOURCE) from error
        processes.share(None, launch)  # waits for it
        return cls(folder, config)

    def draw(self, images: torch.Tensor, maps: torch.Tensor, numbers: torch.Tensor, files: Sequence[str]) -> None:
        """Writes the overlays of a batch.

        Args:
            images: (N, 3, H, W), as the model takes them.
            maps: (N, h, w).
            numbers: indices into `files`, (N,); negative ones are skipped.

        Raises:
            Refusal: if one cannot be written.
        """
        for image, attention, number in zip(images, maps.float(), numbers.tolist()):
            if number < 0:
                continue
            path = self._folder / f"{number + 1:07d}_{Path(files[number]).stem[:STEM]}.png"
            try:
                overlay(self._picture(image), attention.numpy()).save(str(path))
            except OSError as error:
                raise Refusal(f"{path} cannot be written: {reason(error)}", EXIT_RESOURCE) from error

    def _picture(self, image: torch.Tensor) -> Image.Image:
        if image.dtype != torch.uint8:
            image = ((image.float() * self._std + self._mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(image.permute(1, 2, 0).numpy())


def overlay(picture: Image.Image, attention: np.ndarray) -> Image.Image:
    """The picture with a coloured attention map (h, w) on top; a small picture is enlarged by an integer factor."""
    factor = -(-SHORTEST // min(picture.size))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    spread = float(np.ptp(attention)) or 1.0  # a constant map is all blue
    levels = ((attention - attention.min()) / spread * 255).astype(np.uint8)
    heat = Image.fromarray(levels).resize(picture.size, Image.Resampling.BICUBIC)
    return Image.blend(picture, ImageOps.colorize(heat, LITTLE, MUCH, MIDDLE), OPACITY)
