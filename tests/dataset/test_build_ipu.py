# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Combined batches: their order, independence of workers, processes, modes and restarts, and what a failure says."""

import errno
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import unittest.mock
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import numpy as np
import pytest
import torch

import accelerator
from common import deadlines, memory
from common.errors import EXIT_DATA, EXIT_RESOURCE, EXIT_USAGE, Refusal
from dataset import build_ipu, samples, workers
from dataset.build_ipu import build_dataset, build_loader, example_batch
from dataset.generated import GeneratedImages
from dataset.samplers import PADDING, EvaluationSampler, Layout, epoch_order
from dataset.samples import PADDED, UNREADABLE
from dataset.workers import affordable_workers, batches, begin_worker, clear_failures
from tests.backend import DEVICE
from tests.data_sets import small_config, write_folders

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"AUG__MIXUP": 0.0, "AUG__CUTMIX": 0.0}
Batch = Tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def device() -> Iterator[None]:
    accelerator.select(DEVICE)
    yield
    accelerator._selected = None


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    counts = {"train": {"a": 14, "b": 13}, "validation": {"a": 5, "b": 4}}
    return write_folders(tmp_path_factory.mktemp("images"), counts)


def options_of(
    iterations: int = 1, accumulation: int = 1, replicas: int = 1, process: int = 0, processes: int = 1
) -> Any:
    options = accelerator.poptorch().Options()
    options.deviceIterations(iterations)
    options.replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    options.Distributed.configureProcessId(process, processes)
    return options


def read(config: Any, options: Any, training: bool = True, epochs: int = 1, **start: int) -> List[Batch]:
    """All batches of some epochs."""
    loader = build_loader(config, options, build_dataset(config, training), training, **start)
    assert isinstance(loader, accelerator.poptorch().DataLoader)
    try:
        return [(images.clone(), targets.clone()) for _ in range(epochs) for images, targets in batches(loader)]
    finally:
        loader.terminate()


def executed(program: str, *args: str) -> "subprocess.CompletedProcess[str]":
    """A program, after it has run in an interpreter of its own."""
    command = [sys.executable, "-c", program, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=str(ROOT))


def same(first: List[Batch], second: List[Batch]) -> bool:
    """Bit-equality of all tensors."""
    return len(first) == len(second) and all(
        torch.equal(ours, theirs) for one, other in zip(first, second) for ours, theirs in zip(one, other)
    )


class TestTraining:
    def test_rows_are_in_the_order_in_which_the_device_takes_them(self, root):
        config = small_config(root, **PLAIN)
        [(images, labels)] = read(config, options_of(iterations=2, accumulation=3, replicas=2))
        dataset, order = build_dataset(config, True), epoch_order(27, config.SEED, 0)
        assert images.shape == (24, 3, 32, 32) and labels.dtype == torch.int64
        for row in range(24):  # alone in its run, a process takes whole steps of the epoch's order as they are
            image, label = dataset.sample(0, int(order[row]))
            assert torch.equal(images[row], image) and labels[row] == label

    def test_mixup_gives_soft_targets_that_sum_to_one(self, root):
        batch = read(small_config(root), options_of(accumulation=4))
        assert len(batch) == 3
        for _, targets in batch:
            assert targets.shape == (8, 2) and torch.allclose(targets.sum(dim=1), torch.ones(8), atol=1e-6)

    @pytest.mark.parametrize("count", [1, 2])
    def test_workers_change_nothing(self, root, count):
        alone = read(small_config(root), options_of(accumulation=4), epochs=2)
        helped = read(small_config(root, DATA__NUM_WORKERS=count), options_of(accumulation=4), epochs=2)
        assert len(alone) == 6 and same(alone, helped)

    @pytest.mark.parametrize("mode, count", [("async", 0), ("async", 2), ("rebatched", 0), ("rebatched", 2)])
    def test_asynchronous_loaders_change_nothing(self, root, mode, count):
        expected = read(small_config(root), options_of(accumulation=4), epochs=2)
        config = small_config(root, DATA__LOADER=mode, DATA__NUM_WORKERS=count)
        assert same(read(config, options_of(accumulation=4), epochs=2), expected)

    @pytest.mark.parametrize("micro_batch, replicas, accumulation", [(2, 2, 3), (1, 2, 2), (3, 2, 2)])
    def test_two_processes_read_together_what_one_reads(self, root, micro_batch, replicas, accumulation):
        config = small_config(root, DATA__BATCH_SIZE=micro_batch)
        together = read(config, options_of(1, accumulation, replicas), epochs=2)
        parts = [
            read(config, options_of(1, accumulation, replicas // 2, process, processes=2), epochs=2)
            for process in range(2)
        ]
        for batch, *mine in zip(together, *parts):
            for whole, *halves in zip(batch, *mine):
                shape = (accumulation, replicas // 2, micro_batch, *whole.shape[1:])
                assert torch.equal(torch.cat([half.view(shape) for half in halves], dim=1).view(whole.shape), whole)

    @pytest.mark.parametrize("count", [0, 2])
    @pytest.mark.parametrize("epoch, step", [(0, 1), (0, 2), (1, 0), (1, 2)])
    def test_restart_inside_an_epoch_goes_on_bit_for_bit(self, root, count, epoch, step):
        config = small_config(root, DATA__NUM_WORKERS=count)
        unbroken = read(config, options_of(accumulation=4), epochs=3)
        rest = read(config, options_of(accumulation=4), epochs=3 - epoch, start_epoch=epoch, start_step=step)
        assert same(rest, unbroken[3 * epoch + step :])

    @pytest.mark.parametrize("mode", ["sync", "rebatched"])
    def test_length_is_the_steps_of_a_whole_epoch(self, root, mode):
        config, options = small_config(root, DATA__LOADER=mode), options_of(accumulation=2, process=1, processes=2)
        loader = build_loader(config, options, build_dataset(config, True), True, start_step=2)
        assert len(loader) == 27 // (2 * 2 * 2) == 3
        loader.terminate()

    @pytest.mark.parametrize("mode", ["sync", "async"])
    def test_global_generators_are_left_as_they_were(self, root, mode):
        def states():
            return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

        options = options_of(accumulation=4)
        before = states()
        read(small_config(root, DATA__LOADER=mode), options)
        assert states() == before

    @pytest.mark.parametrize(
        "precision, dtype, kind",
        [("32.32", "float", torch.float32), ("16.16", "float", torch.float16), ("16.16", "uint8", torch.uint8)],
    )
    def test_images_have_the_dtype_of_the_input(self, root, precision, dtype, kind):
        config = small_config(root, MODEL__PRECISION=precision, DATA__INPUT_DTYPE=dtype)
        images, targets = read(config, options_of())[0]
        assert images.dtype == kind and targets.dtype == torch.float32

    def test_data_set_smaller_than_a_step_is_refused(self, root):
        with pytest.raises(Refusal) as caught:
            read(small_config(root), options_of(accumulation=14))
        assert caught.value.code == EXIT_USAGE and "27" in str(caught.value) and "28" in str(caught.value)

    def test_odd_batches_that_mixup_cannot_pair_are_refused_and_fine_without_it(self, root):
        with pytest.raises(Refusal):
            read(small_config(root, DATA__BATCH_SIZE=3), options_of(accumulation=3))
        assert len(read(small_config(root, DATA__BATCH_SIZE=3, **PLAIN), options_of(accumulation=3))) == 3


class TestEvaluation:
    @pytest.mark.parametrize("images", [1, 7, 9])
    @pytest.mark.parametrize("micro_batch, iterations, processes", [(1, 1, 1), (2, 3, 1), (4, 1, 2), (5, 2, 3)])
    def test_every_image_counts_once(self, tmp_path, images, micro_batch, iterations, processes):
        write_folders(tmp_path, {"validation": {"a": images}})
        config = small_config(tmp_path, TEST__BATCH_SIZE=micro_batch)
        dataset, seen = build_dataset(config, False), []
        for process in range(processes):
            parts = read(config, options_of(iterations, process=process, processes=processes), training=False)
            assert all(len(labels) == micro_batch * iterations for _, labels in parts)
            for image, label in ((image, label) for batch, labels in parts for image, label in zip(batch, labels)):
                if label == PADDED:
                    assert not image.any()
                else:
                    seen.append(image)
        assert len(seen) == len(dataset) == images
        assert all(any(torch.equal(image, dataset[index][0]) for image in seen) for index in range(images))

    def test_every_evaluation_is_the_same(self, root):
        first, second = np.array_split(np.arange(6), 2)
        parts = read(small_config(root, TEST__BATCH_SIZE=4), options_of(), training=False, epochs=2)
        assert len(parts) == 6 and same([parts[row] for row in first], [parts[row] for row in second])

    def test_unreadable_image_keeps_its_row(self, tmp_path):
        write_folders(tmp_path, {"validation": {"a": 5}})
        (tmp_path / "validation" / "a" / "002.jpg").write_bytes(b"no picture")
        [(_, labels)] = read(small_config(tmp_path, TEST__BATCH_SIZE=6), options_of(), training=False)
        assert labels.tolist() == [0, 0, UNREADABLE, 0, 0, PADDED]

    def test_batch_size_of_training_serves_unless_another_is_given(self, root):
        assert len(read(small_config(root), options_of(), training=False)[0][1]) == 2
        assert len(read(small_config(root, TEST__BATCH_SIZE=3), options_of(), training=False)[0][1]) == 3

    def test_sampler_pads_with_the_position_that_loaders_know(self):
        assert [index for _, index in EvaluationSampler(1, Layout(1, 1, 1, 1, 0, 2))] == [0, PADDING]


class TestGenerated:
    def test_images_need_no_files_and_never_change(self):
        config = small_config("", DATA__DATASET="generated", MODEL__NUM_CLASSES=7)
        first, second = (build_dataset(config, True) for _ in range(2))
        assert torch.equal(first[3][0], second[3][0]) and not torch.equal(first[3][0], first[4][0])
        assert first[3][0].shape == (3, 32, 32) and len(first.classes) == 7 and first[3][1] < 7
        assert first[3][0].mean().abs() < 0.5 and 0.8 < first[3][0].std() < 1.6

    def test_an_epoch_fills_whole_steps_of_any_layout(self):
        config = small_config(
            "", DATA__DATASET="generated", TRAIN__ACCUMULATION_STEPS=4, IPU__REPLICAS=3, IPU__DEVICE_ITERATIONS=2
        )
        loader = build_loader(config, options_of(2, 4, 3), build_dataset(config, True), True)
        assert len(loader) == 100 and next(iter(loader))[1].shape == (48, 1000)

    def test_images_end(self):
        with pytest.raises(IndexError):
            GeneratedImages(2, 10, (3, 4, 4), torch.uint8, [0.5] * 3, [0.5] * 3, 0)[2]

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("keys", [{}, PLAIN, {"DATA__INPUT_DTYPE": "uint8"}, {"MODEL__PRECISION": "16.16"}])
    def test_example_batch_looks_like_the_loaders(self, root, training, keys):
        config = small_config(root, **keys)
        options = options_of(accumulation=3, replicas=2) if training else options_of(3, replicas=2)
        example = example_batch(config, options, classes=2, training=training)
        for given, expected in zip(example, read(config, options, training)[0]):
            assert given.shape == expected.shape and given.dtype == expected.dtype


class TestFailures:
    @pytest.mark.parametrize("loader", ["sync", "async"])
    @pytest.mark.parametrize("count", [0, 2])
    def test_bad_data_is_one_line_with_path_and_exit_code(self, tmp_path, count, loader):
        write_folders(tmp_path, {"train": {"a": 8}})
        path = tmp_path / "train" / "a" / "001.jpg"
        path.write_bytes(b"no picture")
        config = small_config(tmp_path, DATA__NUM_WORKERS=count, DATA__BAD_IMAGES="fail", DATA__LOADER=loader)
        with pytest.raises(Refusal) as caught:
            read(config, options_of())
        assert caught.value.code == EXIT_DATA and str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("count", [0, 2])
    @pytest.mark.parametrize(
        "error",
        [MemoryError(), OSError(errno.EMFILE, "Too many open files"), RuntimeError("DefaultCPUAllocator: no memory")],
    )
    def test_machine_without_memory_or_descriptors_makes_no_image_a_bad_one(self, root, monkeypatch, count, error):
        monkeypatch.setattr(samples, "open_picture", unittest.mock.Mock(side_effect=error))
        config = small_config(root, DATA__NUM_WORKERS=count, DATA__LOADER="sync")
        with pytest.raises(Refusal, match="no memory or descriptors are left to read .*jpg") as caught:
            read(config, options_of())
        assert caught.value.code == EXIT_RESOURCE and "\n" not in str(caught.value)

    def loader_with_workers(self, root):
        config = small_config(root, DATA__NUM_WORKERS=2, DATA__LOADER="sync", **PLAIN)
        loader = build_loader(config, options_of(), build_dataset(config, True), True)
        iterator = batches(loader)
        next(iterator)
        return iterator, loader._iterator._workers

    def test_killed_worker_is_named_with_its_signal(self, root):
        iterator, processes = self.loader_with_workers(root)
        os.kill(processes[1].pid, signal.SIGKILL)
        with pytest.raises(Refusal) as caught:
            list(iterator)
        assert caught.value.code == EXIT_RESOURCE and str(processes[1].pid) in str(caught.value)

    def test_worker_killed_while_a_batch_is_used_is_named_when_the_next_one_is_wanted(self, root):
        iterator, processes = self.loader_with_workers(root)
        processes[1].kill()
        processes[1].join()  # a training step, which must not fail with the news
        with pytest.raises(Refusal, match=f"worker {processes[1].pid} was killed by signal SIGKILL") as caught:
            next(iterator)
        assert caught.value.code == EXIT_RESOURCE and not any(process.is_alive() for process in processes)

    def test_connection_that_breaks_before_its_worker_is_dead_names_the_worker(self, root):
        iterator, processes = self.loader_with_workers(root)
        threading.Timer(0.5, processes[1].kill).start()
        with pytest.raises(Refusal, match=f"worker {processes[1].pid} was killed"), clear_failures(lambda: processes):
            raise ConnectionResetError("Connection reset by peer")
        iterator.close()

    def test_worker_that_pytorch_calls_gone_is_told_with_its_signal(self, root):
        iterator, processes = self.loader_with_workers(root)
        processes[1].kill()
        processes[1].join()
        with pytest.raises(Refusal, match="by signal SIGKILL") as caught, clear_failures(lambda: processes):
            raise RuntimeError(f"DataLoader worker (pid(s) {processes[1].pid}) exited unexpectedly")
        assert str(processes[1].pid) in str(caught.value)
        iterator.close()

    def test_hung_worker_is_named_and_ended_within_the_deadline(self, root, monkeypatch):
        monkeypatch.setattr(deadlines, "BATCH", 1)
        monkeypatch.setattr(deadlines, "HAND_OVER", 1)
        iterator, processes = self.loader_with_workers(root)
        for process in processes:
            os.kill(process.pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(Refusal) as caught:
            list(iterator)
        assert caught.value.code == EXIT_RESOURCE and f"{processes[0].pid} (stopped)" in str(caught.value)
        for process in processes:
            process.join(10)
        assert not any(process.is_alive() for process in processes) and time.monotonic() - start < 30

    def test_hung_reader_of_an_asynchronous_loader_is_named_and_ended(self, root, monkeypatch):
        monkeypatch.setattr(deadlines, "BATCH", 1)
        monkeypatch.setattr(deadlines, "HAND_OVER", 0)
        config = small_config(root, DATA__LOADER="async")
        loader = build_loader(config, options_of(), build_dataset(config, True), True)
        [reader] = loader.readers
        os.kill(reader.pid, signal.SIGSTOP)
        with pytest.raises(Refusal) as caught:
            list(batches(loader))
        assert caught.value.code == EXIT_RESOURCE and f"{reader.pid} (stopped)" in str(caught.value)
        assert not reader.is_alive()

    def test_workers_end_with_the_process_that_asked_for_them(self):
        def live(writer):
            begin_worker(0)
            writer.send("alive")
            time.sleep(60)

        def ask(writer):
            context.Process(target=live, args=(writer,)).start()
            time.sleep(60)

        context = multiprocessing.get_context("fork")
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=ask, args=(writer,))
        process.start()
        writer.close()
        assert reader.recv() == "alive"
        process.kill()
        process.join()
        assert reader.poll(10)  # the pipe closes with the last process that has it
        with pytest.raises(EOFError):
            reader.recv()

    def test_process_that_reads_ahead_outlives_the_signals_that_stop_a_run(self, root):
        config = small_config(root, DATA__LOADER="async")
        loader = build_loader(config, options_of(), build_dataset(config, True), True)
        [reader], read = loader.readers, batches(loader)
        next(read)
        for name in ("TERM", "INT", "USR1"):
            subprocess.run(["sh", "-c", f"kill -{name} {reader.pid}"], check=True)
        assert len(list(read)) == len(loader) - 1 and reader.is_alive()

    @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
    def test_workers_outlive_the_signals_however_they_were_started(self, root, method):
        config = small_config(root, DATA__NUM_WORKERS=2, DATA__LOADER="sync", **PLAIN)
        loader = build_loader(config, options_of(), build_dataset(config, True), True)
        loader.multiprocessing_context = method
        read = batches(loader)
        next(read)
        for process in loader._iterator._workers:
            for name in ("TERM", "INT", "USR1"):
                subprocess.run(["sh", "-c", f"kill -{name} {process.pid}"], check=True)
        assert len(list(read)) == len(loader) - 1
        assert all(process.is_alive() for process in loader._iterator._workers)

    def test_workers_outlive_the_signals_that_stop_a_run(self):
        def live():
            begin_worker(0)
            ready.set()
            time.sleep(60)

        context = multiprocessing.get_context("fork")
        ready = context.Event()
        process = context.Process(target=live)
        process.start()
        ready.wait()
        for name in ("TERM", "INT", "USR1"):  # by another process, as a job scheduler would
            subprocess.run(["sh", "-c", f"kill -{name} {process.pid}"], check=True)
        process.join(0.3)
        assert process.is_alive()
        process.terminate()
        process.join(10)
        assert process.exitcode == 0

    @pytest.mark.parametrize(
        "text",
        [
            "unable to write to file </torch_1_2_3>: No space left on device (28)",
            "DataLoader worker (pid 5) is killed by signal: Bus error. It is possible that",
        ],
    )
    def test_full_shared_memory_gives_advice(self, text):
        refusal = workers._explain(f"RuntimeError: {text}", "")
        assert refusal.code == EXIT_RESOURCE and "/dev/shm" in str(refusal) and "--shm-size" in str(refusal)

    def test_faults_that_are_not_the_loaders_keep_their_traceback(self):
        def faulty():
            yield 1
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        with pytest.raises(RuntimeError, match="mat1"):
            list(batches(faulty()))


class TestMemory:
    @pytest.mark.parametrize(
        "room, expected",
        [(900, (4, 2)), (899, (4, 1)), (500, (4, 1)), (499, (3, 1)), (200, (1, 1)), (199, (0, 1)), (99, (0, 1))],
    )
    def test_prefetching_is_given_up_first_then_workers(self, monkeypatch, room, expected):
        monkeypatch.setattr(workers, "free_shared_memory", lambda: room)
        assert affordable_workers(4, 100) == expected

    @pytest.mark.parametrize("images, started", [(1, 1), (8, 2), (9, 3), (100, 5)])
    def test_workers_that_would_have_nothing_to_do_are_not_started(self, root, images, started):
        config = small_config(root, DATA__NUM_WORKERS=5)
        data = build_dataset(config, training=False)
        assert build_ipu._worker_arguments(config, data, images, 4)["num_workers"] == started

    @pytest.mark.parametrize("limit, count", [(30, 0), (52, 2), (71, 3), (72, 4), (resource.RLIM_INFINITY, 4)])
    def test_workers_without_descriptors_are_given_up_and_told(self, monkeypatch, caplog, limit, count):
        monkeypatch.setattr(workers, "free_shared_memory", lambda: 10**9)
        monkeypatch.setattr(resource, "getrlimit", lambda what: (limit, limit))
        assert affordable_workers(4, 100)[0] == count
        assert ("ulimit -n" in caplog.text) == (count < 4)

    @pytest.mark.parametrize("loader", ["sync", "async"])
    def test_few_descriptors_are_enough_for_an_epoch(self, root, loader):
        program = (
            "import resource, sys, accelerator; resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30)); "
            "from tests.data_sets import small_config; from tests.dataset.test_build_ipu import options_of, read; "
            "accelerator.select('cpu'); "
            "read(small_config(sys.argv[1], DATA__NUM_WORKERS=4, DATA__LOADER=sys.argv[2]), options_of())"
        )
        done = executed(program, str(root), loader)
        assert done.returncode == 0 and done.stderr.count("\n") == 1, done.stderr

    def test_no_workers_wanted_are_none(self):
        assert affordable_workers(0, 10**15)[0] == 0

    def test_loader_without_room_works_in_the_main_process(self, root, monkeypatch):
        expected = read(small_config(root), options_of())
        monkeypatch.setattr(workers, "free_shared_memory", lambda: 0)
        assert same(read(small_config(root, DATA__NUM_WORKERS=2), options_of()), expected)

    def test_room_is_bounded_by_shared_memory_and_by_memory(self, monkeypatch):
        monkeypatch.setattr(memory, "available_memory", lambda: 1000)
        assert memory.free_shared_memory() == 500
        monkeypatch.setattr(memory, "available_memory", lambda: None)
        status = os.statvfs("/dev/shm")
        assert 0 < memory.free_shared_memory() <= status.f_blocks * status.f_frsize
        monkeypatch.setattr(memory, "SHARED_MEMORY", "/absent")
        assert memory.free_shared_memory() == sys.maxsize


def test_importing_the_data_package_does_nothing():
    code = (
        "import threading, torch; threads = torch.get_num_threads(); import dataset.build_ipu, dataset.prepare; "
        "assert torch.get_num_threads() == threads and threading.active_count() == 1"
    )
    done = executed(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
