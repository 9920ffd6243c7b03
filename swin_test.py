# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Acceptance tests of the application through its public entry points, on real scans in a small model."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import predict
import train_swin
import validate
from common.errors import EXIT_CHECKPOINT, EXIT_DATA, EXIT_NONFINITE, EXIT_PREEMPTED, EXIT_USAGE, Preempted, Refusal
from config import get_config
from tests.backend import DEVICE, host_only, poptorch
from tests.forked import Command
from tests.runs import ROOT, SMALL, assert_same_run, refused, run, train
from training import checkpoint, validation

pytest_plugins = ["tests.digits"]

# A host sees gradients that overflow; an IPU applies them, and the next loss shows it.
OVERFLOW = {"cpu": "the gradients are not finite", "ipu": "the loss is not finite"}[DEVICE]
AUTOCAST = pytest.param("mix", marks=host_only("IPUs have no torch.autocast, and MODEL.PRECISION mix is refused there"))


@pytest.fixture(scope="session")
def unbroken(digits, tmp_path_factory):
    output = tmp_path_factory.mktemp("unbroken")
    return output, train(digits, output)


# The main job.


def test_demonstration_learns_real_scans(all_digits, tmp_path):
    train_swin.main(
        [
            "--cfg",
            "SWIN_DEMO",
            "--device",
            DEVICE,
            "--epochs",
            "8",
            "--data-path",
            str(all_digits),
            "--output",
            str(tmp_path),
        ]
    )
    assert checkpoint.load(tmp_path / "best.pth")["progress"]["best_top1"] > 50  # ten classes: chance is 10


def test_training_leaves_its_files(unbroken):
    output, state = unbroken
    assert {"last.pth", "previous.pth", "best.pth", "log.txt", "metrics.csv", "status.json"} <= {
        path.name for path in output.iterdir()
    }
    rows = list(csv.DictReader((output / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert len(state["progress"]["epochs"]) == 4
    assert json.loads((output / "status.json").read_text())["state"] == "done"


def test_log_says_what_the_result_depends_on(unbroken):
    log = (unbroken[0] / "log.txt").read_text()
    name = {"cpu": "CPU, poptorch_host", "ipu": "IPU, PopTorch"}[DEVICE]
    assert f"device: {name} {poptorch.__version__}, PyTorch {torch.__version__}, timm " in log
    assert "GMACs per image" in log and "TRAIN.WARMUP_EPOCHS 1" in log
    assert "configuration: SWIN_DEMO with " in log and "MODEL.SWIN.PATCH_SIZE" not in log  # as the named one has it
    assert get_config(str(unbroken[0] / "config.yaml")).TRAIN.WARMUP_EPOCHS == 1


def test_log_has_the_lines_that_benchmarks_read(unbroken):
    output, _ = unbroken
    log = (output / "log.txt").read_text()
    assert re.search(r"throughput: [\d.]+ samples/sec", log)
    assert re.search(r"loss: \d+\.\d{4}", log)


def test_validation_command_counts_every_image_and_agrees_with_training(digits, unbroken, capsys):
    output, state = unbroken
    best = max(row["top1"] for row in state["progress"]["epochs"])
    validate.main(["--data-path", str(digits), "--checkpoint", str(output / "best.pth"), "--device", DEVICE])
    said = re.search(r"top-1: ([\d.]+) % top-5: ([\d.]+) % images: (\d+)", capsys.readouterr().out)
    assert (float(said[1]), int(said[3])) == (pytest.approx(best, abs=0.005), 37)


def test_accuracies_of_the_classes_add_up_to_that_of_all(digits, unbroken, capsys):
    validate.main(
        ["--data-path", str(digits), "--checkpoint", str(unbroken[0] / "best.pth"), "--device", DEVICE, "--per-class"]
    )
    out = capsys.readouterr().out
    classes = re.findall(r"class (\d): top-1: ([\d.]+) % images: (\d+)", out)
    assert [name for name, _, _ in classes] == [str(label) for label in range(10)]
    assert [int(images) for _, _, images in classes] == [3] * 3 + [4] * 7
    right = sum(round(float(share) * int(images) / 100) for _, share, images in classes)
    assert f"validation: top-1: {100 * right / 37:.2f} %" in out


def test_prediction_tells_the_classes_that_validation_counts(digits, unbroken, capsys):
    best, folder = str(unbroken[0] / "best.pth"), digits / "validation"
    predict.main(
        [
            "--checkpoint",
            best,
            "--device",
            DEVICE,
            "--top",
            "3",
            str(folder / "0"),
            str(folder),
            str(next((folder / "7").iterdir())),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 37 + 1 and lines[:3] == lines[3:6]
    told = [re.fullmatch(r"\S+/(\d)/\d+\.png: (\d) ([\d.]+)%; \d ([\d.]+)%; \d [\d.]+%", line) for line in lines]
    assert all(float(line[3]) >= float(line[4]) > 0 for line in told)
    best_top1 = max(row["top1"] for row in unbroken[1]["progress"]["epochs"])
    assert sum(line[1] == line[2] for line in told[3:-1]) == round(best_top1 * 37 / 100)


def test_prediction_goes_on_after_what_is_no_image(digits, unbroken, tmp_path):
    digit = next((digits / "validation" / "7").iterdir())
    (tmp_path / "text.png").write_text("no picture")
    shutil.copy(digit, tmp_path / "good.png")
    weights = ["--checkpoint", str(unbroken[0] / "best.pth"), "--device", DEVICE]
    done = run("predict.py", *weights, "./text.png", "good.png", "./", cwd=tmp_path)
    assert done.returncode == EXIT_DATA and "2 of 4 files cannot be read as images" in done.stderr
    predicted = [line.split(":")[0] for line in done.stdout.splitlines() if "%" in line]
    assert predicted == ["good.png", "./good.png"] and "./text.png is not a JPEG" in done.stderr


def test_prediction_refuses_what_is_no_image(digits, unbroken, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    for name, said in (("text.png", "1 of 1 files"), ("empty", "has no images"), ("none", "is not a file or folder")):
        with pytest.raises(Refusal, match=said) as caught:
            predict.main(["--checkpoint", str(unbroken[0] / "best.pth"), "--device", DEVICE, str(tmp_path / name)])
        assert caught.value.code == EXIT_DATA


@pytest.mark.parametrize("batch, replicas", [("1", "1"), ("7", "3"), ("64", "2")])
def test_accuracy_does_not_depend_on_batch_and_replicas(digits, unbroken, capsys, batch, replicas):
    output, state = unbroken
    best = max(row["top1"] for row in state["progress"]["epochs"])
    validate.main(
        [
            "--data-path",
            str(digits),
            "--checkpoint",
            str(output / "best.pth"),
            "--device",
            DEVICE,
            "--batch-size",
            batch,
            "--replicas",
            replicas,
        ]
    )
    assert f"top-1: {best:.2f} %" in capsys.readouterr().out


def test_validation_runs_on_generated_images(unbroken, capsys):
    validate.main(["--checkpoint", str(unbroken[0] / "best.pth"), "--synthetic", "--device", DEVICE])
    assert "images: 512" in capsys.readouterr().out.strip().splitlines()[-1]


def test_epochs_are_validated_at_intervals_and_the_last_one_always(digits, tmp_path):
    state = train(digits, tmp_path, "--opts", "TEST.INTERVAL", "3")
    assert [row["top1"] is not None for row in state["progress"]["epochs"]] == [False, False, True, True]


def test_best_checkpoint_is_of_the_first_epoch_with_the_best_accuracy(digits, tmp_path, monkeypatch):
    evaluate, right = validation.evaluate_images, iter([5, 9, 7, 9])

    def planned(*args):
        outcomes, correct = evaluate(*args), next(right)
        predicted = (outcomes.labels[:, None] + [[1]]) % 10
        predicted[:correct] = outcomes.labels[:correct, None]
        return outcomes._replace(predicted=predicted)

    monkeypatch.setattr(validation, "evaluate_images", planned)
    last = train(digits, tmp_path)["progress"]
    best = checkpoint.load(tmp_path / "best.pth")["progress"]
    assert (best["epoch"], last["epoch"]) == (2, 4)
    assert best["best_top1"] == last["best_top1"] == pytest.approx(100 * 9 / 37)


def test_evaluation_flag_of_training_validates_a_checkpoint(digits, unbroken, capsys):
    output, _ = unbroken
    train_swin.main([*SMALL, "--eval", "--resume", str(output / "best.pth"), "--data-path", str(digits)])
    assert "images: 37" in capsys.readouterr().out


# Going on where a run stopped.


@pytest.mark.parametrize("steps", [3, 5, 12])
def test_run_stopped_inside_or_between_epochs_ends_as_the_unbroken_one(digits, unbroken, tmp_path, steps):
    train(digits, tmp_path, "--training-steps", str(steps))
    assert_same_run(train(digits, tmp_path), unbroken[1])


def test_resumed_run_has_the_weight_decay_and_betas_that_it_is_given_now(digits, tmp_path):
    train(digits, tmp_path, "--training-steps", "3")
    now = ["--opts", "TRAIN.WEIGHT_DECAY", "0.25", "TRAIN.OPTIMIZER.BETAS", "[0.8, 0.9]"]
    optimizer = train(digits, tmp_path, "--training-steps", "4", *now)["optimizer"]
    assert [group["weight_decay"] for group in optimizer["param_groups"]] == [0.25, 0.0]
    assert {tuple(group["betas"]) for group in optimizer["param_groups"]} == {(0.8, 0.9)}
    decays = {float(value) for name, value in optimizer["ipu_param"].items() if name.startswith("weightDecay")}
    assert sorted(decays) == [0.0, 0.25]


def test_resumed_run_may_read_with_other_workers(digits, unbroken, tmp_path):
    train(digits, tmp_path, "--training-steps", "7", "--num-workers", "2")
    assert_same_run(train(digits, tmp_path), unbroken[1])


def test_killed_run_goes_on_and_ends_as_the_unbroken_one(digits, unbroken, tmp_path):
    """SIGKILL at moments spread over a run that saves after every second update; then the same command again."""
    paths = ["--data-path", digits, "--output", tmp_path]
    command = ["train_swin.py", *SMALL, "TRAIN.CHECKPOINT_STEPS", "2", *paths]
    for delay in (0.0, 0.15, 0.4):
        with Command(*command) as started:
            started.wait_for("throughput")
            time.sleep(delay)
            started.send(signal.SIGKILL)
            assert started.wait() == -signal.SIGKILL
    with Command(*command) as finished:
        assert finished.wait() == 0, finished.errors
    assert_same_run(checkpoint.load(tmp_path / "last.pth"), unbroken[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_the_run_saves_exits_75_and_goes_on(digits, unbroken, tmp_path, number):
    command = [sys.executable, str(ROOT / "train_swin.py"), *SMALL, "--data-path", str(digits)]
    command += ["--output", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "throughput" in line:
            break
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == EXIT_PREEMPTED, errors
    said = [line for line in errors.splitlines() if DEVICE == "cpu" or line.startswith("train_swin.py")]
    assert len(said) == 1 and number.name in said[0] and "Traceback" not in errors  # the SDK has lines of its own
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["exit_code"] == EXIT_PREEMPTED
    assert f"run the same command to resume from update {status['last_update']}, which is saved" in said[0]
    assert_same_run(train(digits, tmp_path), unbroken[1])


def test_run_from_a_named_checkpoint_goes_on_from_its_own_once_that_is_further(digits, unbroken, tmp_path, capsys):
    train(digits, tmp_path / "first", "--training-steps", "3")
    named = ["--resume", str(tmp_path / "first" / "last.pth")]
    train(digits, tmp_path / "second", *named, "--training-steps", "7")
    assert_same_run(train(digits, tmp_path / "second", *named), unbroken[1])
    shown = capsys.readouterr().out
    assert "resuming from" in (tmp_path / "second" / "log.txt").read_text()
    begins = re.findall(r"resuming from (\S+): epoch \d, update (\d+)", shown)
    assert begins == [(str(tmp_path / "first" / "last.pth"), "3"), (str(tmp_path / "second" / "last.pth"), "7")]


def test_named_checkpoint_is_taken_where_the_run_is_not_to_resume_by_itself(digits, tmp_path, capsys):
    train(digits, tmp_path, "--training-steps", "7", "--opts", "TRAIN.CHECKPOINT_STEPS", "2")
    assert checkpoint.load(tmp_path / "previous.pth")["progress"]["update"] == 6
    train(
        digits,
        tmp_path,
        "--resume",
        str(tmp_path / "previous.pth"),
        "--training-steps",
        "7",
        "--opts",
        "TRAIN.AUTO_RESUME",
        "False",
    )
    assert "resuming from" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "previous.pth")["progress"]["update"] == 7


def test_data_set_that_grew_inside_an_epoch_is_refused_and_between_two_it_is_not(digits, tmp_path):
    grown = tmp_path / "grown"
    shutil.copytree(digits, grown)
    image = next((grown / "train" / "0").iterdir())
    shutil.copy(image, image.with_name("another.png"))
    for steps, code in (("3", EXIT_CHECKPOINT), ("5", None)):
        train(digits, tmp_path / steps, "--training-steps", steps)
        more = ["--data-path", str(grown), "--output", str(tmp_path / steps), "--training-steps", "6"]
        if code is None:
            train_swin.main([*SMALL, *more])
        else:
            refused(code, "had 160 training images", *more)


def test_stop_during_validation_loses_no_update(digits, unbroken, tmp_path, monkeypatch):
    evaluate, calls = validation.evaluate_images, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise Preempted("stopped")
        return evaluate(*args)

    monkeypatch.setattr(validation, "evaluate_images", interrupted)
    with pytest.raises(Preempted):
        train(digits, tmp_path)
    assert checkpoint.load(tmp_path / "last.pth")["progress"]["update"] == 10
    assert_same_run(train(digits, tmp_path), unbroken[1])


def test_finished_run_changes_nothing(digits, unbroken):
    output, _ = unbroken

    def contents():
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in output.iterdir()}

    before = contents()
    train(digits, output)
    assert contents() == before


def test_damaged_newest_checkpoint_is_skipped_and_the_run_still_ends_as_the_unbroken_one(digits, unbroken, tmp_path):
    train(digits, tmp_path, "--training-steps", "12")
    data = bytearray((tmp_path / "last.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "last.pth").write_bytes(data)
    assert_same_run(train(digits, tmp_path), unbroken[1])


def test_weights_start_another_run(digits, unbroken, tmp_path, capsys):
    output, _ = unbroken
    train(digits, tmp_path, "--pretrained-model", str(output / "best.pth"), "--training-steps", "1")
    first = re.search(r"loss: ([\d.]+)", (output / "log.txt").read_text())
    assert first and checkpoint.load(tmp_path / "last.pth")["progress"]["update"] == 1


# Precision and devices.


@pytest.mark.parametrize("precision", ["16.16", "16.32", AUTOCAST])
def test_every_precision_learns(digits, tmp_path, precision):
    state = train(digits, tmp_path, "--precision", precision)
    losses = [row["loss"] for row in state["progress"]["epochs"]]
    assert losses[-1] < losses[0]
    assert state["model"]["head.weight"].dtype == (torch.float16 if precision == "16.16" else torch.float32)


def test_compile_only_needs_no_data_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_swin.main([*SMALL, "--compile-only"])
    assert "compiled in" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_throughput_is_logged_in_the_form_that_benchmarks_read(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    train_swin.main([*SMALL, "--throughput"])
    assert re.search(r"throughput: [\d.]+ samples/sec", capsys.readouterr().out)


# Bad input: one clear line, the right exit code, nothing lost.


def test_bad_data_is_refused(digits, tmp_path):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "empty" / "validation").mkdir()
    output = ["--output", str(tmp_path / "out")]
    refused(EXIT_DATA, "missing", "--data-path", str(tmp_path / "missing"), *output)
    refused(EXIT_DATA, "empty", "--data-path", str(tmp_path / "empty"), *output)
    refused(EXIT_USAGE, "micro-batch 1000", "--data-path", str(digits), "--batch-size", "1000", *output)


def test_bad_weights_are_refused(digits, unbroken, tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    data = ["--data-path", str(digits), "--output", str(tmp_path / "out")]
    refused(EXIT_DATA, "broken.pth", "--pretrained-model", str(tmp_path / "broken.pth"), *data)
    nowhere = ["--data-path", str(tmp_path / "nowhere"), *data[2:]]
    refused(EXIT_DATA, "none.pth", "--pretrained-model", "none.pth", *nowhere)  # told before the data is looked at
    refused(EXIT_CHECKPOINT, "broken.pth", "--resume", str(tmp_path / "broken.pth"), *data)
    wide = ["--opts", "MODEL.SWIN.EMBED_DIM", "32"]
    best = str(unbroken[0] / "best.pth")
    refused(EXIT_DATA, "patch_embed.proj.weight is 16x3x2x2, not 32x3x2x2", "--pretrained-model", best, *data, *wide)
    refused(EXIT_CHECKPOINT, "EMBED_DIM", "--resume", best, *data, *wide)
    refused(EXIT_USAGE, "--eval", "--eval", *data)
    refused(EXIT_USAGE, "one file", "--eval", "--resume", best, "--pretrained-model", best, *data)


def test_devices_that_are_not_here_are_refused(digits, tmp_path):
    data = ["--data-path", str(digits), "--output", str(tmp_path / "out")]
    if not torch.cuda.is_available():
        refused(EXIT_USAGE, "CUDA", *data, "--device", "gpu")
    try:
        import poptorch  # noqa: F401
    except ImportError:
        refused(EXIT_USAGE, "Poplar SDK", *data, "--device", "ipu")


def test_output_that_cannot_be_written_is_refused(digits, tmp_path):
    (tmp_path / "file").write_text("")
    refused(EXIT_USAGE, "--output", "--data-path", str(digits), "--output", str(tmp_path / "file"))
    refused(EXIT_USAGE, "--output", "--data-path", str(digits))


def test_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoints(digits, tmp_path):
    before = train(digits, tmp_path, "--training-steps", "5", "--precision", "half")
    refused(
        EXIT_NONFINITE,
        OVERFLOW,
        "--data-path",
        str(digits),
        "--output",
        str(tmp_path),
        "--precision",
        "half",
        "--opts",
        "TRAIN.LOSS_SCALING",
        str(2.0**30),
    )
    assert_same_run(checkpoint.load(tmp_path / "last.pth"), before)


def test_loss_of_images_that_the_device_makes_up_stops_nothing():
    overflowing = ["--training-steps", "2", "--precision", "half", "--opts", "TRAIN.LOSS_SCALING", str(2.0**30)]
    refused(EXIT_NONFINITE, OVERFLOW, "--synthetic", "host", *overflowing)
    train_swin.main([*SMALL, "--synthetic", "device", *overflowing])


@pytest.mark.parametrize(
    "script, argv, code",
    [
        ("train_swin.py", ["--cfg", "SWIN_TINNY"], EXIT_USAGE),
        ("train_swin.py", ["--cfg", "SWIN_DEMO", "--epochs", "0"], EXIT_USAGE),
        ("validate.py", ["--checkpoint", "none.pth"], EXIT_CHECKPOINT),
    ],
)
def test_command_ends_with_one_line_and_its_exit_code(script, argv, code, tmp_path):
    ended = run(script, *argv, cwd=tmp_path)
    assert ended.returncode == code
    assert len(ended.stderr.strip().splitlines()) == 1 and ended.stderr.startswith(script)
