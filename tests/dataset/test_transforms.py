# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The official augmentation and evaluation recipes, and mixup whose groups nothing moves."""

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment, rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms

from common.errors import EXIT_USAGE, Refusal
from dataset import native
from dataset import transforms as our_transforms
from dataset.mixup import MixingCollate, build_mixup, group, unmixed
from dataset.pixels import Pixels, Planes
from dataset.samplers import Layout
from dataset.samples import Batch
from dataset.transforms import (
    ByteErasing,
    Mirror,
    Normalise,
    PlainRandAugment,
    RandomResizedCrop,
    build_transform,
    seeded,
)
from tests.data_sets import photo, small_config

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NO_AUGMENTATION = {"AUG__AUTO_AUGMENT": "", "AUG__COLOR_JITTER": 0.0, "AUG__REPROB": 0.0, "AUG__HFLIP": 0.0}


compiled = pytest.mark.skipif(native.library() is None, reason="needs a C compiler")


def config_of(**overrides: object):
    return small_config(Path("."), **overrides)


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


class TestTraining:
    @compiled
    def test_recipe_is_crop_flip_randaugment_normalise_erase(self):
        parts = build_transform(config_of(), training=True).transforms
        kinds = [type(part) for part in parts]
        assert kinds[1:4] == [RandomResizedCrop, Mirror, PlainRandAugment] and kinds[4:] == [Planes, RandomErasing]
        crop, flip, augment, *_, erasing = parts[1:]
        assert list(crop.scale) == [0.08, 1.0] and list(crop.ratio) == [0.75, 4 / 3] and flip.p == 0.5
        assert (erasing.probability, erasing.mode, erasing.max_count) == (0.25, "pixel", 1)
        assert {operation.magnitude for operation in augment.ops} == {9}
        levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
        expected = Normalise(MEAN, STD)(torch.from_numpy(levels).permute(2, 0, 1))
        assert torch.equal(parts[4](Pixels(levels)), expected)

    @compiled
    def test_erasing_and_crop_are_those_of_the_configuration(self):
        parts = build_transform(
            config_of(
                AUG__REPROB=0.5,
                AUG__REMODE="const",
                AUG__RECOUNT=3,
                AUG__SCALE=[0.5, 0.9],
                AUG__RATIO=[1.0, 2.0],
                AUG__HFLIP=0.1,
            ),
            training=True,
        ).transforms
        assert (parts[-1].probability, parts[-1].mode, parts[-1].max_count) == (0.5, "const", 3)
        assert (list(parts[1].scale), list(parts[1].ratio), parts[2].p) == ([0.5, 0.9], [1.0, 2.0], 0.1)

    @pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m5-n3-p0.9", "rand-m9-n2-tweights"])
    def test_randaugment_draws_as_timms_does(self, policy):
        theirs = rand_augment_transform(policy, {})
        ours = PlainRandAugment(**vars(theirs))
        for place, operation in enumerate(theirs.ops):
            operation.aug_fn = lambda drawn, *arguments, place=place, **_: [*drawn, (place, arguments)]
        for seed in range(50):
            with seeded(seed):
                expected = theirs([])
            with seeded(seed):
                assert ours([]) == expected

    @pytest.mark.parametrize("nothing", ["", "none"])
    def test_colour_jitter_takes_over_without_randaugment(self, nothing):
        parts = build_transform(config_of(AUG__AUTO_AUGMENT=nothing), training=True).transforms
        parts = [getattr(part, "part", part) for part in parts]
        jitter = next(part for part in parts if isinstance(part, transforms.ColorJitter))
        assert jitter.brightness == (0.6, 1.4) and not any(isinstance(part, RandAugment) for part in parts)

    @pytest.mark.parametrize("policy", ["rand-m10-mstd0-inc1", "rand-m10-mstd101-inc1", "original", "augmix-m10"])
    def test_strongest_posterize_does_not_crash(self, policy):
        transform = build_transform(config_of(AUG__AUTO_AUGMENT=policy), training=True)
        for seed in range(60):
            with seeded(seed):
                transform(photo(seed))

    @pytest.mark.parametrize("policy", ["foo", "rand-zz9"])
    def test_unknown_policy_is_refused_by_name(self, policy):
        with pytest.raises(Refusal) as caught:
            build_transform(config_of(AUG__AUTO_AUGMENT=policy), training=True)
        assert caught.value.code == EXIT_USAGE and policy in str(caught.value)

    def test_posterize_to_no_bits_is_black(self, monkeypatch):
        monkeypatch.setattr(native, "library", lambda: None)
        parts = build_transform(config_of(), training=True).transforms
        randaugment = next(part for part in parts if isinstance(part, RandAugment))
        posterize = next(operation for operation in randaugment.ops if operation.name == "PosterizeIncreasing")
        assert not np.asarray(posterize.aug_fn(photo(0), 0)).any()
        assert np.array_equal(np.asarray(posterize.aug_fn(photo(0), 8)), np.asarray(photo(0)))
        assert np.array_equal(np.asarray(posterize.aug_fn(photo(0), 3)), np.asarray(photo(0)) & 0b11100000)

    def test_timm_itself_is_left_as_it_was(self):
        from timm.data import auto_augment

        build_transform(config_of(), training=True)
        assert auto_augment.NAME_TO_OP["PosterizeIncreasing"] is auto_augment.posterize

    @pytest.mark.parametrize(
        "precision, dtype, kind",
        [
            ("32.32", "float", torch.float32),
            ("16.16", "float", torch.float16),
            ("16.32", "float", torch.float16),
            ("mix", "float", torch.float32),
            ("16.16", "uint8", torch.uint8),
        ],
    )
    @pytest.mark.parametrize("training", [True, False])
    def test_image_is_channels_first_in_the_dtype_of_the_input(self, precision, dtype, kind, training):
        config = config_of(MODEL__PRECISION=precision, DATA__INPUT_DTYPE=dtype, DATA__IMG_SIZE=[32, 64])
        image = build_transform(config, training)(photo(0))
        assert image.shape == (3, 32, 64) and image.dtype == kind

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("keys", [{}, {"AUG__SHIFT": 1}, {"DATA__INTERPOLATION": "random"}, {"TEST__CROP": False}])
    def test_pictures_may_come_as_arrays(self, training, keys):
        transform = build_transform(config_of(**keys), training)
        with seeded(3):
            expected = transform(photo(0))
        with seeded(3):
            assert torch.equal(transform(np.array(photo(0))), expected)

    def test_transform_travels_to_other_processes(self):
        for dtype in ("float", "uint8"):
            transform = build_transform(config_of(DATA__INPUT_DTYPE=dtype, AUG__SHIFT=1), training=True)
            copy = pickle.loads(pickle.dumps(transform))
            with seeded(1):
                expected = transform(photo(0))
            with seeded(1):
                assert torch.equal(copy(photo(0)), expected)


def both_paths(monkeypatch, training, **overrides):
    """The transform on `Pixels` and the one on Pillow's images."""
    fast = build_transform(config_of(**overrides), training)
    with monkeypatch.context() as patch:
        patch.setattr(native, "library", lambda: None)
        return fast, build_transform(config_of(**overrides), training)


@compiled
class TestPixels:
    @pytest.mark.parametrize(
        "keys",
        [
            {},
            {"DATA__INPUT_DTYPE": "uint8"},
            {"MODEL__PRECISION": "16.16"},
            {"DATA__INTERPOLATION": "random"},
            {"DATA__INTERPOLATION": "lanczos"},
            {"DATA__IMG_SIZE": [32, 64]},
            {"AUG__SHIFT": 1},
            {"TEST__CROP": False},
            {"AUG__AUTO_AUGMENT": "augmix-m5"},
            {"AUG__AUTO_AUGMENT": "3a"},
            {"AUG__AUTO_AUGMENT": "original"},
            {"AUG__AUTO_AUGMENT": ""},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("training", [True, False])
    def test_samples_are_those_of_pillow_bit_for_bit(self, monkeypatch, training, keys):
        fast, slow = both_paths(monkeypatch, training, **keys)
        for seed in range(12):
            picture = photo(seed, (50 + 5 * seed, 60))
            with seeded(seed):
                expected = slow(picture)
            with seeded(seed):
                given = fast(np.array(picture))
            assert given.dtype == expected.dtype and torch.equal(given, expected)

    def test_nothing_is_converted_to_an_image_in_the_official_recipes(self):
        for training in (True, False):
            parts = build_transform(config_of(), training).transforms
            assert not any(isinstance(part, our_transforms.OnImage) for part in parts)

    def test_random_interpolation_still_draws_one(self):
        crop = RandomResizedCrop((48, 64), (0.08, 1.0), (0.75, 4 / 3), "random")
        pictures = {}
        for seed in range(8):
            with seeded(seed):
                crop.get_params(torch.empty(3, 30, 40), crop.scale, crop.ratio)
                pictures.setdefault(random.random() < 0.5, seed)
        for seed in pictures.values():
            with seeded(seed):
                expected = RandomResizedCropAndInterpolation((48, 64), interpolation="random")(photo(0))
            with seeded(seed):
                assert np.array_equal(crop(Pixels(np.array(photo(0)))).array, np.asarray(expected))


class TestBytes:
    def test_bytes_normalised_later_are_floats_normalised_now(self):
        floats, as_bytes = (
            build_transform(config_of(DATA__INPUT_DTYPE=dtype), training=True) for dtype in ("float", "uint8")
        )
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        for seed in range(20):
            with seeded(seed):
                expected = floats(photo(seed))
            with seeded(seed):
                given = Normalise(MEAN, STD)(as_bytes(photo(seed)))
            # Where they differ is the noise of the erased rectangle, rounded to bytes and cut off where bytes end.
            nearest = torch.round((expected * std + mean) * 255).clamp(0, 255)
            assert torch.allclose(given, Normalise(MEAN, STD)(nearest), atol=1e-4)
            assert torch.isclose(given, expected, atol=1e-5).all(dim=0).float().mean() > 0.6

    def test_evaluation_is_the_same_to_rounding(self):
        expected = build_transform(config_of(), training=False)(photo(3))
        given = build_transform(config_of(DATA__INPUT_DTYPE="uint8"), training=False)(photo(3))
        assert torch.allclose(Normalise(MEAN, STD)(given), expected, atol=1e-5)

    def test_erasing_leaves_the_other_pixels_alone(self):
        erasing = ByteErasing(RandomErasing(1.0, mode="pixel", device="cpu"), MEAN, STD)
        image = torch.full((3, 32, 32), 77, dtype=torch.uint8)
        with seeded(0):
            erased = erasing(image)
        changed = (erased != 77).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
        rectangle = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert 0.02 * 1024 <= rectangle <= 1024 / 3 + 32 and changed.sum() > 0.9 * rectangle


class TestShift:
    def test_picture_is_moved_by_at_most_so_many_pixels(self):
        config = config_of(AUG__SHIFT=1, DATA__INPUT_DTYPE="uint8", **NO_AUGMENTATION)
        transform = build_transform(config, training=True)
        picture = photo(0, (32, 32))
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
        padded = torch.nn.functional.pad(pixels, (1, 1, 1, 1))
        moves = {(top, left): padded[:, top : top + 32, left : left + 32] for top in range(3) for left in range(3)}
        seen = set()
        for seed in range(60):
            with seeded(seed):
                image = transform(picture)
            seen.update(move for move, moved in moves.items() if torch.equal(moved, image))
            assert any(torch.equal(moved, image) for moved in moves.values())
        assert len(seen) == 9

    def test_small_picture_is_resized_before_it_is_moved(self):
        config = config_of(AUG__SHIFT=2, **NO_AUGMENTATION)
        assert build_transform(config, training=True)(photo(0, (8, 8))).shape == (3, 32, 32)

    def test_evaluation_sees_the_whole_picture_as_training_does(self):
        shifted, whole = (
            build_transform(config_of(**keys), training=False)(photo(2))
            for keys in ({"AUG__SHIFT": 1}, {"TEST__CROP": False})
        )
        assert torch.equal(shifted, whole)

    def test_flips_stay_if_wanted(self):
        parts = build_transform(config_of(AUG__SHIFT=1), training=True).transforms
        assert any(isinstance(part, (Mirror, transforms.RandomHorizontalFlip)) for part in parts)


class TestEvaluation:
    @pytest.mark.parametrize("size, resized", [(224, 256), (384, 438), (32, 36)])
    def test_shorter_side_is_resized_by_256_to_224_and_the_centre_kept(self, size, resized):
        picture = photo(1, (500, 400))
        expected = transforms.Compose(
            [
                transforms.Resize(resized, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(size),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )(picture)
        config = config_of(DATA__IMG_SIZE=size, MODEL__SWIN__WINDOW_SIZE=size // 8)
        assert torch.allclose(build_transform(config, training=False)(picture), expected, atol=1e-6)

    def test_without_crop_the_whole_picture_is_resized(self):
        picture = photo(1, (500, 400))
        expected = transforms.ToTensor()(picture.resize((32, 32), Image.BICUBIC))
        image = build_transform(config_of(TEST__CROP=False), training=False)(picture)
        assert torch.allclose(image, transforms.Normalize(MEAN, STD)(expected), atol=1e-6)

    @pytest.mark.parametrize("interpolation", ["bilinear", "nearest", "random"])
    def test_every_interpolation_has_an_evaluation(self, interpolation):
        transform = build_transform(config_of(DATA__INTERPOLATION=interpolation), training=False)
        assert transform(photo(0)).shape == (3, 32, 32)


class TestSeeding:
    def test_global_generators_are_left_as_they_were(self):
        before = states()
        with seeded(5):
            random.random(), np.random.rand(), torch.rand(1)
        assert states() == before

    def test_generators_are_restored_after_an_error(self):
        before = states()
        with pytest.raises(KeyError), seeded(5):
            np.random.rand()
            raise KeyError
        assert states() == before

    def test_same_seed_draws_the_same(self):
        draws = []
        for _ in range(2):
            with seeded(2**63 + 5):
                draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
        assert draws[0] == draws[1]


def samples(count: int, dtype: torch.dtype = torch.float32, epoch: int = 0):
    """Samples whose image is constant: its index."""
    return batch(range(count), dtype, epoch)


def batch(indices, dtype: torch.dtype = torch.float32, epoch: int = 0) -> Batch:
    images = torch.tensor(list(indices), dtype=dtype).view(-1, 1, 1, 1).repeat(1, 3, 8, 8)
    labels = torch.tensor([index % 5 for index in indices])
    return Batch(images, labels, [(epoch, index) for index in indices])


def collate_of(layout: Layout, seed: int = 0, **overrides: object) -> MixingCollate:
    config = config_of(AUG__CUTMIX=0.0, **overrides)
    return MixingCollate(build_mixup(config, classes=5), group(layout), seed)


class TestMixup:
    def test_no_mixup_gives_class_indices(self):
        assert build_mixup(config_of(AUG__MIXUP=0.0, AUG__CUTMIX=0.0), 5) is None
        images, labels = unmixed(samples(4))
        assert images.shape == (4, 3, 8, 8) and labels.dtype == torch.int64 and labels.tolist() == [0, 1, 2, 3]

    def test_targets_are_the_smoothed_mixture_of_the_labels(self):
        images, targets = collate_of(Layout(1, 1, 1, 1, 0, 2), MODEL__LABEL_SMOOTHING=0.1)(samples(2))
        share = 1 - images[0, 0, 0, 0].item()  # image 0 is black, image 1 is 1: the mixture tells its share
        expected = torch.full((5,), 0.02)
        expected[0], expected[1] = 0.02 + 0.9 * share, 0.02 + 0.9 * (1 - share)
        assert 0 < share < 1 and torch.allclose(targets[0], expected, atol=1e-6)
        assert torch.allclose(targets.sum(dim=1), torch.ones(2), atol=1e-6)

    def test_images_mix_within_their_micro_batch_only(self):
        images, _ = collate_of(Layout(1, 3, 1, 1, 0, 4))(samples(12))
        for start in (0, 4, 8):
            values = images[start : start + 4, 0, 0, 0]
            assert values.min() >= start and values.max() <= start + 3 and not torch.equal(values, values.round())

    def test_group_depends_on_seed_epoch_and_first_index_alone(self):
        collate = collate_of(Layout(1, 3, 1, 1, 0, 4))
        together, targets = collate(samples(12))
        alone, alone_targets = collate(batch(range(4, 8)))
        assert torch.equal(together[4:8], alone) and torch.equal(targets[4:8], alone_targets)
        assert not torch.allclose(together[4:8] - 4, together[:4])  # groups draw shares of their own
        assert not torch.equal(collate(samples(4))[0], collate(samples(4, epoch=1))[0])
        assert not torch.equal(collate(samples(4))[0], collate_of(Layout(1, 3, 1, 1, 0, 4), seed=1)(samples(4))[0])

    def test_global_generators_are_left_as_they_were(self):
        before = states()
        collate_of(Layout(1, 1, 1, 1, 0, 4))(samples(4))
        assert states() == before

    def test_odd_micro_batches_pair_with_the_replicas_next_one(self):
        layout = Layout(device_iterations=1, accumulation=2, local_replicas=2, processes=1, process=0, micro_batch=1)
        images, targets = collate_of(layout)(samples(4))  # accumulation step 0: replicas 0, 1; step 1: replicas 0, 1
        values = images[:, 0, 0, 0]
        assert values[0] + values[2] == pytest.approx(2) and values[1] + values[3] == pytest.approx(4)
        assert (targets[0] > 0.1).nonzero().ravel().tolist() == [0, 2]

    def test_odd_micro_batches_are_paired_alike_in_every_process(self):
        whole = Layout(device_iterations=1, accumulation=2, local_replicas=2, processes=1, process=0, micro_batch=1)
        half = whole._replace(local_replicas=1, processes=2)
        together, _ = collate_of(whole)(samples(4))
        for process in range(2):
            mine = batch([process, process + 2])
            assert torch.equal(collate_of(half)(mine)[0], together[process::2])

    def test_rows_return_to_their_places_for_any_number_of_replicas(self):
        images, _ = collate_of(Layout(1, 4, 3, 1, 0, 1))(samples(12))
        values = images[:, 0, 0, 0].view(2, 2, 3)  # pair of accumulation steps, step, replica
        sums = torch.arange(12.0).view(2, 2, 3).sum(dim=1)
        assert torch.allclose(values.sum(dim=1), sums, atol=1e-4)

    def test_odd_accumulation_pairs_neighbouring_replicas(self):
        images, _ = collate_of(Layout(1, 1, 2, 1, 0, 3))(samples(6))
        assert images[:, 0, 0, 0].sum().item() == pytest.approx(15)

    def test_what_cannot_be_paired_is_refused(self):
        with pytest.raises(Refusal) as caught:
            group(Layout(1, 3, 1, 2, 0, 1))
        assert caught.value.code == EXIT_USAGE and "micro-batch 1" in str(caught.value)

    @pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
    @pytest.mark.parametrize(
        "kind", [{"AUG__CUTMIX": 1.0}, {"AUG__MIXUP": 0.0, "AUG__CUTMIX": 1.0}, {"AUG__CUTMIX_MINMAX": [0.2, 0.8]}]
    )
    def test_bytes_and_halves_are_mixed_as_floats_and_rounded(self, mode, kind):
        mixup = build_mixup(config_of(AUG__MIXUP_MODE=mode, **kind), classes=5)
        collate = MixingCollate(mixup, group(Layout(1, 1, 1, 1, 0, 8)), seed=3)
        floats, targets = collate(samples(8))
        for dtype in (torch.uint8, torch.float16):
            images, same_targets = collate(samples(8, dtype))
            assert images.dtype == dtype and torch.equal(targets, same_targets)
            assert torch.equal(images, floats.round().to(dtype) if dtype == torch.uint8 else floats.to(dtype))
