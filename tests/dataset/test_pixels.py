# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Operations on arrays beside timm's and Pillow's, and how the C code is built."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, AugmentOp

from common.compiled import FLAGS
from dataset import native
from dataset.pixels import Pixels, Planes, adapt, exchange, put_levels, takes_pixels
from dataset.transforms import mend_posterize, seeded
from tests.data_sets import photo

compiled = pytest.mark.skipif(native.library() is None, reason="needs a C compiler")
NO_PIXELS = {"GaussianBlur", "GaussianBlurRand"}
SIZES = [(1, 1), (23, 200), (200, 23), (64, 64), (16, 5), (5, 16), (300, 300)]
NOISE = np.random.RandomState(0).randint(0, 256, (60, 70, 3), dtype=np.uint8)


def operation(name: str, level: float, interpolation: int) -> AugmentOp:
    made = AugmentOp(name, 1.0, level, dict(img_mean=(124, 116, 103), interpolation=interpolation, translate_const=20))
    mend_posterize(made)
    return made


@compiled
class TestOperations:
    @pytest.mark.parametrize("interpolation", [Image.BICUBIC, Image.BILINEAR])
    @pytest.mark.parametrize("name", sorted(set(LEVEL_TO_ARG) - NO_PIXELS))
    def test_results_are_those_of_timm_bit_for_bit_at_every_level(self, name, interpolation):
        for level in (0, 1, 3.7, 5, 9.2, 10):
            for picture in (photo(3, (61, 45)), Image.fromarray(NOISE), Image.new("RGB", (9, 7), (5, 5, 200))):
                theirs, ours = (operation(name, level, interpolation) for _ in range(2))
                adapt(ours)
                with seeded(int(10 * level)):
                    expected = theirs(picture)
                with seeded(int(10 * level)):
                    given = ours(Pixels(np.array(picture)))
                assert np.array_equal(given.array, np.asarray(expected)), (level, picture.size)

    def test_tables_one_after_the_other_are_applied_in_their_order_by_one_pass(self):
        picture, names = Image.fromarray(NOISE), ["SolarizeAdd", "AutoContrast", "Posterize", "Brightness", "Equalize"]
        for shift in range(len(names)):
            expected, given = picture, Pixels(NOISE)
            for name in names[shift:] + names[:shift]:
                theirs, ours = (operation(name, 6, 0) for _ in range(2))
                adapt(ours)
                with seeded(shift):
                    expected = theirs(expected)
                with seeded(shift):
                    given = ours(given)
                assert given.before_levels()[1] is not None
                for planes in (Planes(), Planes(torch.tensor([0.1, 2.0, -3.0]), torch.tensor([0.3, -1.7, 0.9]))):
                    assert torch.equal(planes(given), planes(Pixels(np.array(expected))))
            assert np.array_equal(given.array, np.asarray(expected))

    def test_what_cannot_take_pixels_says_so(self):
        assert {name for name in LEVEL_TO_ARG if not takes_pixels(operation(name, 5, 0))} == NO_PIXELS

    @pytest.mark.parametrize("box", [(-1, 0, 2, 2), (0, 0, 9, 2), (3, 7, 2, 2), (0, 0, 0, 2)])
    def test_part_outside_of_the_resized_picture_is_refused(self, box):
        with pytest.raises(ValueError, match="extends beyond 8x8"):
            Pixels(NOISE).resize((8, 8), Image.BICUBIC, box)

    @pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 20), (20, 1)])
    def test_smallest_pictures(self, size):
        picture = photo(1, size)
        for name in ("Rotate", "ShearX", "Sharpness", "Equalize"):
            theirs, ours = (operation(name, 7, Image.BICUBIC) for _ in range(2))
            adapt(ours)
            with seeded(0):
                expected = theirs(picture)
            with seeded(0):
                assert np.array_equal(ours(Pixels(np.array(picture))).array, np.asarray(expected))

    def test_operations_leave_the_picture_alone(self):
        pixels = Pixels(NOISE.copy())
        pixels.mirror(), pixels.mapped(np.zeros(256, np.uint8)).array, pixels.saturated(0.5), pixels.sharpened(0.5)
        pixels.transform(pixels.size, Image.AFFINE, (1, 0.1, 0, 0, 1, 0), Image.BICUBIC, (0, 0, 0))
        assert np.array_equal(pixels.array, NOISE)


@compiled
class TestResize:
    def test_any_part_of_any_crop_is_pillows_bit_for_bit(self):
        whole, image = Pixels(NOISE), Image.fromarray(NOISE)
        for seed in range(200):
            draw, mode = random.Random(seed), (Image.BICUBIC, Image.BILINEAR)[seed % 2]
            left, top, wide, high = draw.randint(0, 39), draw.randint(0, 29), draw.randint(1, 31), draw.randint(1, 31)
            if seed < 40:  # near the proportion at which Pillow 13 changes the order of its passes
                wide, high, size = 30, 30, (30 - seed % 10, max(30 - 2 * (seed % 10) + seed // 10 - 2, 1))
            else:
                size = draw.randint(1, 50), draw.randint(1, 50)
            box = draw.randrange(size[0]), draw.randrange(size[1])
            part = (*box, draw.randint(1, size[0] - box[0]), draw.randint(1, size[1] - box[1]))
            expected = image.crop((left, top, left + wide, top + high)).resize(size, mode)
            expected = expected.crop((part[0], part[1], part[0] + part[2], part[1] + part[3]))
            given = whole.crop((left, top, wide, high)).resize(size, mode, part)
            assert np.array_equal(given.array, np.asarray(expected)), (seed, wide, high, size)

    def test_mirror_exchanges_left_and_right(self):
        assert np.array_equal(Pixels(NOISE).mirror().array, NOISE[:, ::-1])
        for columns, rows in ((50, 40), (20, 10), (90, 20)):
            resized = Pixels(NOISE).resize((columns, rows), Image.BICUBIC)
            assert np.array_equal(resized.mirror().array, resized.array[:, ::-1])
            assert np.array_equal(resized.mirror().mirror().array, resized.array)


class TestParts:
    """Parts of images that are changed in place, with the C code and without it."""

    @pytest.mark.parametrize(
        "part", [np.s_[:, 2:9, 3:70], np.s_[:, 0:1, 0:1], np.s_[:, 4:4, :], np.s_[:, :, :]], ids=str
    )
    @pytest.mark.parametrize("is_compiled", [True, False])
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
    def test_two_exchange_their_contents(self, part, is_compiled, dtype, monkeypatch):
        if not is_compiled:
            monkeypatch.setattr(native, "library", lambda: None)
        one, other = (torch.from_numpy(NOISE).permute(2, 0, 1).contiguous().to(dtype) * factor for factor in (1, 2))
        expected, others = one.clone(), other.clone()
        expected[part], others[part] = other[part], one[part]
        exchange(one[part], other[part])
        assert torch.equal(one, expected) and torch.equal(other, others)

    @compiled
    @pytest.mark.parametrize("shape", [(3, 17, 31), (3, 1, 1)])
    def test_levels_of_noise_are_pytorchs(self, shape, monkeypatch):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.5, 0.1, 0.9), (0.2, 1.5, 0.3)))
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        noise[:, 0, 0] = torch.tensor([(0.5 / 255 - 0.5) / 0.2, -9.0, 9.0])
        given, expected = torch.full((2, 3, 40, 50), 7, dtype=torch.uint8)
        put_levels(given[:, 5:22, 9:40], noise, mean, std)
        expected[:, 5:22, 9:40] = ((noise * std + mean) * 255).round().clamp(0, 255)
        assert torch.equal(given, expected)


def library_of(environment: dict) -> str:
    code = "from dataset import native; print(native.library() is not None)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=True
    )
    return done.stdout.strip()


class TestBuilding:
    def test_no_compiler_means_pillow(self, tmp_path):
        assert library_of({"CC": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}) == "False"

    @compiled
    def test_processor_without_vectors_means_pillow(self, tmp_path):
        assert library_of({"CC": "cc -mno-avx2", "XDG_CACHE_HOME": str(tmp_path)}) == "False"

    @compiled
    def test_the_oldest_vectors_give_the_same_pixels(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        given = [Pixels(NOISE).resize(size, Image.BICUBIC).array for size in SIZES]
        monkeypatch.setenv("CC", "cc -mno-avx512f")
        plain = native.library.__wrapped__()
        monkeypatch.setattr(native, "library", lambda: plain)
        for size, expected in zip(SIZES, given):
            assert np.array_equal(Pixels(NOISE).resize(size, Image.BICUBIC).array, expected), size

    @compiled
    @pytest.mark.parametrize(
        "name, said",
        [("pixels", "300 rounds without an error\n"), ("jpeg", "300 rounds without an error, 261 files decoded\n")],
    )
    def test_nothing_is_read_or_written_beyond_a_buffer(self, tmp_path, name, said):
        program = tmp_path / "fuzz"
        checks = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        source = str(Path(__file__).with_name(f"fuzz_{name}.c"))
        command = [
            "cc",
            *FLAGS[1:3],
            *native.FLAGS[:2],
            *checks,
            "-o",
            str(program),
            source,
            *map(str, native.SOURCES),
            "-lm",
        ]
        made = subprocess.run(command, capture_output=True, text=True)
        if "cannot find" in made.stderr:
            pytest.skip("the compiler has no address sanitizer")
        assert made.returncode == 0, made.stderr
        done = subprocess.run([str(program), "300", "1"], capture_output=True, text=True, timeout=60)
        assert done.stdout == said, done.stderr
