# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Sample order as a function of seed, epoch and position alone."""

import pickle
from typing import List

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import EXIT_USAGE, Refusal
from dataset.samplers import (
    NEXT_DRAW,
    ONCE,
    PADDING,
    Drawing,
    EvaluationSampler,
    Layout,
    TrainingSampler,
    epoch_order,
    mix_seed,
    step_samples,
)

UNEVEN = np.array([0] * 40 + [1] * 7 + [2] * 13 + [4] * 2)  # labels of four classes in 62 images
DRAWINGS = st.sampled_from([ONCE, Drawing(repeats=3), Drawing(labels=UNEVEN)])


@st.composite
def layouts(draw, accumulate=True):
    """Every process's layout of the same run."""
    small = st.integers(1, 3)
    accumulation = draw(small) if accumulate else 1
    iterations, local, processes, micro = draw(small), draw(small), draw(small), draw(small)
    return [Layout(iterations, accumulation, local, processes, process, micro) for process in range(processes)]


def alone(layout: Layout) -> Layout:
    """The layout of one process with all the replicas."""
    return layout._replace(local_replicas=layout.replicas, processes=1, process=0)


def reassemble(parts: List[list], layout: Layout) -> list:
    """The order of one process with all replicas, out of what each process read."""
    local = [np.array(part).reshape(-1, layout.local_replicas, layout.micro_batch) for part in parts]
    return np.concatenate(local, axis=1).reshape(-1).tolist()


def fitting(drawing: Drawing, samples: int) -> Drawing:
    """The drawing with labels for so many samples, if it has labels."""
    return drawing if drawing.labels is None else Drawing(labels=np.resize(drawing.labels, samples))


def indices(sampler) -> list:
    return [index for _, index in sampler]


class TestTraining:
    def test_layout_is_iterations_then_accumulation_then_replicas_then_micro_batch(self):
        order = epoch_order(24, 7, 0)
        for process in range(2):
            layout = Layout(
                device_iterations=2, accumulation=3, local_replicas=1, processes=2, process=process, micro_batch=2
            )
            expected = [
                order[((iteration * 3 + step) * 2 + process) * 2 + row]
                for iteration in range(2)
                for step in range(3)
                for row in range(2)
            ]
            assert indices(TrainingSampler(24, layout, seed=7)) == expected

    @given(layouts(), st.integers(0, 50), st.integers(0, 3), DRAWINGS)
    def test_processes_together_read_what_one_process_reads(self, run, extra, epoch, drawing):
        samples = run[0].global_batch + extra
        drawing = fitting(drawing, samples)
        parts = [list(TrainingSampler(samples, layout, 3, epoch, drawing=drawing)) for layout in run]
        whole = list(TrainingSampler(samples, alone(run[0]), 3, epoch, drawing=drawing))
        for column in (0, 1):
            together = reassemble([[position[column] for position in part] for part in parts], run[0])
            assert together == [position[column] for position in whole]

    @given(layouts(), st.integers(1, 5), st.integers(0, 20), st.integers(0, 12), DRAWINGS)
    def test_restart_goes_on_with_the_same_samples(self, run, steps, extra, start, drawing):
        layout = run[-1]
        samples = steps * layout.global_batch + min(extra, layout.global_batch - 1)
        drawing = fitting(drawing, samples)
        unbroken = TrainingSampler(samples, layout, 0, drawing=drawing)
        positions = [position for _ in range(start // steps + 2) for position in unbroken]
        restarted = TrainingSampler(samples, layout, 0, start_epoch=0, start_step=start, drawing=drawing)
        again = [position for _ in range(2) for position in restarted]
        first = start * layout.combined_batch
        assert again == positions[first:]

    def test_every_sample_is_read_at_most_once_an_epoch_and_epochs_differ(self):
        sampler = TrainingSampler(103, Layout(1, 5, 2, 1, 0, 5), seed=0)
        first, second = list(sampler), list(sampler)
        assert [epoch for epoch, _ in first + second] == [0] * 100 + [1] * 100
        assert len({index for _, index in first}) == len({index for _, index in second}) == 100
        assert [index for _, index in first] != [index for _, index in second]

    def test_length_is_a_whole_epoch_also_after_a_restart(self):
        layout = Layout(1, 2, 2, 2, 1, 3)
        sampler = TrainingSampler(100, layout, 0, start_step=3)
        assert len(sampler) == 4 * layout.combined_batch == 96 // 2
        assert len(list(sampler)) == 1 * layout.combined_batch and len(list(sampler)) == 4 * layout.combined_batch

    def test_iterator_that_is_never_started_uses_up_no_epoch(self):
        sampler = TrainingSampler(8, Layout(1, 1, 1, 1, 0, 4), seed=0)
        iter(sampler)
        assert next(iter(sampler))[0] == 0

    def test_copy_in_another_process_goes_on_alike(self):
        sampler = TrainingSampler(8, Layout(1, 1, 1, 1, 0, 4), seed=0, start_epoch=3, start_step=1)
        assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)

    def test_data_set_smaller_than_a_step_is_refused_with_the_arithmetic(self):
        with pytest.raises(Refusal) as caught:
            TrainingSampler(1023, Layout(1, 64, 2, 2, 0, 4), seed=0)
        assert caught.value.code == EXIT_USAGE
        for number in ("1023", "1024", "micro-batch 4", "accumulation 64", "replicas 4", "iterations 1"):
            assert number in str(caught.value)


class TestDrawing:
    def test_repeats_follow_each_other_on_other_replicas_each_with_its_own_augmentation(self):
        """Three repeats on three replicas of micro-batch 2: rows 0, 2 and 4 of a step are one sample."""
        sampler = TrainingSampler(60, Layout(1, 2, 3, 1, 0, 2), 5, start_epoch=4, drawing=Drawing(repeats=3))
        positions = list(sampler)
        assert len(positions) == 60 and len(set(positions)) == 60
        for first in (0, 1, 6, 7, 54, 55):
            assert {index for _, index in positions[first : first + 6 : 2]} == {positions[first][1]}
            assert [epoch for epoch, _ in positions[first : first + 6 : 2]] == [4, 4 + NEXT_DRAW, 4 + 2 * NEXT_DRAW]
        assert [index for _, index in positions[::6]] == epoch_order(60, 5, 4)[:20:2].tolist()

    def test_classes_are_drawn_equally_often_and_their_samples_too(self):
        seen = set()
        for epoch in range(20):
            order = epoch_order(62, 0, epoch, Drawing(labels=UNEVEN))
            per_class = [np.bincount(order, minlength=62)[UNEVEN == label] for label in (0, 1, 2, 4)]
            assert sorted(counts.sum() for counts in per_class) == [15, 15, 16, 16]
            assert all(counts.max() - counts.min() <= 1 for counts in per_class)
            seen.update(order.tolist())
        assert seen == set(range(62))  # the large class's turn comes, too

    def test_draws_of_a_sample_in_an_epoch_are_told_apart(self):
        positions = list(TrainingSampler(62, Layout(1, 1, 2, 1, 0, 1), 0, 3, drawing=Drawing(labels=UNEVEN)))
        assert len(set(positions)) == 62 > len({index for _, index in positions})
        assert min(positions)[0] == 3 and max(positions)[0] == 3 + 7 * NEXT_DRAW

    @pytest.mark.parametrize("drawing", [ONCE, Drawing(repeats=3), Drawing(labels=UNEVEN)])
    def test_samples_of_a_step_are_those_that_were_read_in_it(self, drawing):
        layout = Layout(1, 2, 2, 2, 1, 3)
        read = indices(TrainingSampler(62, layout, 0, drawing=drawing))
        assert step_samples(62, layout, 0, 0, 1, drawing).tolist() == read[12:24]


class TestEvaluation:
    @given(layouts(accumulate=False), st.integers(1, 60))
    def test_every_sample_is_read_exactly_once_by_all_processes_together(self, run, samples):
        parts = [indices(EvaluationSampler(samples, layout)) for layout in run]
        assert sorted(index for part in parts for index in part if index != PADDING) == list(range(samples))
        assert {len(part) for part in parts} == {len(EvaluationSampler(samples, run[0]))}
        assert len(parts[0]) % run[0].combined_batch == 0

    @given(layouts(accumulate=False), st.integers(1, 60))
    def test_padding_fills_the_last_step_only(self, run, samples):
        order = reassemble([indices(EvaluationSampler(samples, layout)) for layout in run], run[0])
        assert order[:samples] == list(range(samples)) and set(order[samples:]) <= {PADDING}
        assert len(order) - samples < run[0].global_batch


def test_order_is_the_same_with_every_version_of_numpy():
    assert epoch_order(12, 0, 0).tolist() == [0, 11, 7, 5, 3, 9, 2, 10, 4, 1, 8, 6]
    assert epoch_order(12, 1, 5).tolist() == [9, 3, 7, 8, 11, 2, 1, 0, 6, 10, 5, 4]


def test_seeds_of_neighbours_share_nothing():
    seeds = {mix_seed(seed, epoch, index) for seed in range(5) for epoch in range(5) for index in range(200)}
    assert len(seeds) == 5000
    bits = np.array([[seed >> bit & 1 for bit in range(64)] for seed in seeds])
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.05


def test_seed_depends_on_the_position_of_each_number():
    assert len({mix_seed(1, 0, 0), mix_seed(0, 1, 0), mix_seed(0, 0, 1), mix_seed(0, 0, 1, 0)}) == 4
