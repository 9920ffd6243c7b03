# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The application's commands on the SDK's PopTorch: `pytest --backend sdk tests/sdk`.

With IPUs this is an acceptance test of the machine. Numbers are compared with those of poptorch_host on the CPU, on a
model without dropout, so that the same samples give the same losses up to rounding.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset.prepare
from tests.backend import NAME, needs_core
from training import checkpoint

pytestmark = pytest.mark.skipif(NAME != "sdk", reason="needs the SDK's poptorch: pytest --backend sdk tests/sdk")

ROOT = Path(__file__).resolve().parents[2]
DEMO = ["--cfg", "SWIN_DEMO", "--epochs", "2", "--batch-size", "4", "--ga", "8"]
MODEL = ["MODEL.SWIN.EMBED_DIM", "16", "MODEL.SWIN.DEPTHS", "[2, 2]", "MODEL.SWIN.NUM_HEADS", "[1, 2]"]
MODEL += ["MODEL.DROP_PATH_RATE", "0.0", "TRAIN.WARMUP_EPOCHS", "1", "TRAIN.BASE_LR", "0.05", "LOG_INTERVAL", "1"]
ONE_IPU = ["IPU.LAYERS_PER_IPU", "[4]"]
FOLDED = ["IPU.LAYERS_PER_IPU", "[1, 1.5, 0.5, 1]", "IPU.MAPPING", "[0, 1, 0, 1]"]
IN_ROW = ["IPU.LAYERS_PER_IPU", "[1, 1.5, 1.5]", "IPU.MAPPING", "[0, 1, 2, 3]"]
TOLERANCE = 1e-3  # of losses in float32


def run(script, *argv, launcher=()):
    """What a command printed; it has to end well."""
    command = [*launcher, sys.executable, str(ROOT / script), *map(str, argv)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]
    return ended.stdout


def train(digits, output, *opts, device="ipu", flags=(), launcher=()):
    """The rows of metrics of a run: epoch, update, lr, loss, throughput, top1, top5."""
    data = ["--data-path", digits, "--output", output, "--device", device]
    run("train_swin.py", *DEMO, *data, *flags, "--opts", *MODEL, *opts, launcher=launcher)
    assert json.loads((output / "status.json").read_text())["exit_code"] == 0
    return rows(output)


def rows(output):
    if not (output / "metrics.csv").exists():
        return []
    with open(output / "metrics.csv", newline="") as stream:
        return [{key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(stream)]


def losses(found):
    return pytest.approx([row["loss"] for row in found], rel=TOLERANCE)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """160 scans to train on and 40 to validate on."""
    every, few = tmp_path_factory.mktemp("data") / "all", tmp_path_factory.mktemp("data") / "few"
    dataset.prepare.main(["digits", "--out", str(every)])
    for split, kept in (("train", 16), ("validation", 4)):
        for folder in sorted((every / split).iterdir()):
            (few / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:kept]:
                shutil.copy(image, few / split / folder.name)
    return few


@pytest.fixture(scope="module")
def on_host(digits, tmp_path_factory):
    """A run of poptorch_host: its output folder and metrics."""
    output = tmp_path_factory.mktemp("host")
    return output, train(digits, output, *ONE_IPU, device="cpu")


@pytest.fixture(scope="module")
def on_ipu(digits, tmp_path_factory):
    """The same run on one IPU, by the loader that an IPU gets by default."""
    output = tmp_path_factory.mktemp("ipu")
    return output, train(digits, output, *ONE_IPU)


def test_one_ipu_has_the_losses_of_the_host_with_the_default_loader(on_host, on_ipu):
    assert len(on_ipu[1]) == 2 and [row["loss"] for row in on_ipu[1]] == losses(on_host[1])
    assert {"last.pth", "best.pth", "metrics.csv", "log.txt", "report.html"} <= {
        path.name for path in on_ipu[0].iterdir()
    }


@pytest.mark.parametrize("loader, workers", [("sync", 0), ("sync", 2), ("async", 2), ("rebatched", 2)])
def test_every_loader_gives_the_same_samples(loader, workers, digits, on_ipu, tmp_path):
    found = train(digits, tmp_path, *ONE_IPU, "DATA.LOADER", loader, "DATA.NUM_WORKERS", workers)
    assert [row["loss"] for row in found] == losses(on_ipu[1])


@pytest.mark.parametrize("stages", [IN_ROW, FOLDED], ids=["in_row", "folded"])
def test_pipeline_has_the_losses_of_one_ipu(stages, digits, on_ipu, tmp_path):
    found = train(digits, tmp_path, *stages)
    assert [row["loss"] for row in found] == losses(on_ipu[1])
    assert [row["top1"] for row in found] == pytest.approx([row["top1"] for row in on_ipu[1]], abs=2.5)


@pytest.mark.parametrize("stages", [ONE_IPU, FOLDED], ids=["one_ipu", "folded"])
def test_validation_of_a_checkpoint_finds_the_accuracy_of_training(stages, digits, on_ipu):
    best = max(row["top1"] for row in on_ipu[1])
    given = ["--checkpoint", on_ipu[0] / "best.pth", "--data-path", digits, "--device", "ipu"]
    assert f"top-1: {best:.2f} %" in run("validate.py", *given, "--opts", *stages)


def test_mean_of_an_image_and_its_mirror_image_is_validated_as_on_the_host(digits, on_ipu):
    given = [*DEMO, "--eval", "--resume", on_ipu[0] / "best.pth", "--data-path", digits]
    found = [
        run("train_swin.py", *given, "--device", device, "--opts", *MODEL, *ONE_IPU, "TEST.FLIP", "True")
        for device in ("ipu", "cpu")
    ]
    said = [re.findall(r"validation: (.*)", text) for text in found]
    assert said[0] and said[0] == said[1]


def test_dry_run_trains_two_steps_and_leaves_nothing(digits, tmp_path):
    given = [*DEMO, "--dry-run", "--device", "ipu", "--data-path", digits, "--output", tmp_path / "out"]
    said = run("train_swin.py", *given, "--opts", *MODEL, *FOLDED)
    assert re.search(r"losses \d\.\d{4}, \d\.\d{4}\n", said) and not (tmp_path / "out").exists()


def test_prediction_names_the_classes_of_images(digits, on_ipu):
    images = sorted((digits / "validation" / "3").iterdir())
    said = run("predict.py", "--checkpoint", on_ipu[0] / "best.pth", "--device", "ipu", "--top", "3", *images)
    assert len(said.strip().splitlines()) == len(images) and f"{images[0]}: " in said


def test_features_and_places_that_the_model_looks_at_are_those_of_the_host(digits, on_ipu, tmp_path):
    images = digits / "validation" / "3"
    for device in ("cpu", "ipu"):
        flags = ["--features", tmp_path / f"{device}.npy", "--attention", tmp_path / device, "--device", device]
        run("predict.py", "--checkpoint", on_ipu[0] / "best.pth", *flags, images)
    np.testing.assert_allclose(np.load(tmp_path / "ipu.npy"), np.load(tmp_path / "cpu.npy"), atol=TOLERANCE)
    for drawn in sorted((tmp_path / "cpu").iterdir()):
        pictures = [np.asarray(Image.open(path)).astype(int) for path in (drawn, tmp_path / "ipu" / drawn.name)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 2


@pytest.mark.parametrize(
    "first, second", [("ipu", "ipu"), ("ipu", "cpu"), ("cpu", "ipu")], ids=["ipu", "ipu_to_host", "host_to_ipu"]
)
def test_run_stopped_inside_an_epoch_goes_on(first, second, digits, on_ipu, tmp_path):
    train(digits, tmp_path, *ONE_IPU, device=first, flags=["--training-steps", "3"])
    assert [row["loss"] for row in train(digits, tmp_path, *ONE_IPU, device=second)] == losses(on_ipu[1])
    moved = "random numbers differ from an unbroken run's" in (tmp_path / "log.txt").read_text()
    assert moved is (first != second)
    ended, unbroken = (checkpoint.load(folder / "last.pth") for folder in (tmp_path, on_ipu[0]))
    torch.testing.assert_close(ended["model"], unbroken["model"], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.PRECISION", "16.32"],
        ["MODEL.PRECISION", "16.16", "TRAIN.LOSS_SCALING", "128"],
        ["MODEL.PRECISION", "16.16", "TRAIN.LOSS_SCALING", "128", "IPU.PARTIALS", "half"],
        ["MODEL.PRECISION", "16.16", "TRAIN.AUTO_LOSS_SCALING", "True"],
    ],
    ids=["16.32", "16.16", "half_partials", "automatic_loss_scaling"],
)
def test_half_precision_learns_as_float_does(opts, digits, on_ipu, tmp_path):
    found = train(digits, tmp_path, *ONE_IPU, *opts)
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in on_ipu[1]], rel=0.1)


@pytest.mark.parametrize(
    "opts",
    [
        ["DATA.INPUT_DTYPE", "uint8"],
        ["IPU.RECOMPUTATION", "False"],
        ["IPU.OPTIMIZER_STATE_OFF_CHIP", "True", "IPU.AVAILABLE_MEMORY_PROPORTION", "[0.3]"],
        ["IPU.POPART.OUTER_FRAGMENT", "False", "IPU.POPART.PATTERNS", "[]", "IPU.POPART.COPY_JUST_IN_TIME", "False"],
        ["IPU.POPART.OUTER_FRAGMENT_FOR", "cycles", "IPU.POPART.PATTERNS", "['-TiedGather']"],
        ["IPU.ENGINE.AUTOLOADER", "False", "IPU.ENGINE.INDEPENDENT_REPLICAS", "False"],
    ],
    ids=["uint8", "no_recomputation", "memory", "popart_off", "popart_other", "engine"],
)
def test_settings_change_how_it_is_computed_and_not_what(opts, digits, on_ipu, tmp_path):
    found = train(digits, tmp_path, *ONE_IPU, *opts)
    assert [row["loss"] for row in found] == losses(on_ipu[1])


UNCLIPPED = ["TRAIN.CLIP_GRAD", "0.0"]  # PopTorch clips with adam, adamw and sgd only
RECIPES = {
    "adam": ["TRAIN.OPTIMIZER.NAME", "adam", "TRAIN.FREEZE", "['patch_embed', 'layers.0']", "TRAIN.LAYER_DECAY", "0.7"],
    "lamb": ["TRAIN.OPTIMIZER.NAME", "lamb", "TRAIN.LOSS.NAME", "bce", "TRAIN.LOSS.POSITIVE_WEIGHT", "2.0", *UNCLIPPED],
    "rmsprop": [
        "TRAIN.OPTIMIZER.NAME",
        "rmsprop",
        "TRAIN.BASE_LR",
        "0.005",
        "TRAIN.CLASS_WEIGHTS",
        "balanced",
        *UNCLIPPED,
    ],
    "sgd": ["TRAIN.OPTIMIZER.NAME", "sgd", "TRAIN.LOSS.NAME", "bce", "TRAIN.LOSS.SUM_CLASSES", "True"],
    "adamw": ["TRAIN.EMA_DECAY", "0.5", "DATA.BALANCED_SAMPLING", "True", "TEST.FLIP", "True"],
}


@pytest.mark.parametrize("opts", RECIPES.values(), ids=RECIPES)
def test_recipes_train_as_on_the_host(opts, digits, tmp_path):
    found = [train(digits, tmp_path / device, *ONE_IPU, *opts, device=device) for device in ("ipu", "cpu")]
    assert [row["loss"] for row in found[0]] == losses(found[1])
    ended = [checkpoint.load(tmp_path / device / "last.pth") for device in ("ipu", "cpu")]
    torch.testing.assert_close(ended[0]["model"], ended[1]["model"], rtol=1e-2, atol=1e-3)
    assert ("ema" in ended[0]) == ("TRAIN.EMA_DECAY" in opts)


def test_averaged_weights_are_validated_and_averaged_when_the_weights_come_to_the_host(digits, tmp_path):
    found = train(digits, tmp_path, *ONE_IPU, "TRAIN.EMA_DECAY", "0.5", "TRAIN.CHECKPOINT_STEPS", "2")
    assert all(row["ema_top1"] >= 0 for row in found)
    log = (tmp_path / "log.txt").read_text()
    assert "averaged (EMA) on the host after every 2 updates and epoch, when an IPU copies its weights" in log


def test_updates_in_one_call_share_its_learning_rate_as_on_the_host(digits, on_ipu, tmp_path):
    opts = [*ONE_IPU, "IPU.DEVICE_ITERATIONS", "5"]
    found = train(digits, tmp_path / "ipu", *opts)
    assert [row["loss"] for row in found] == losses(train(digits, tmp_path / "host", *opts, device="cpu"))
    assert [row["lr"] for row in found] != [row["lr"] for row in on_ipu[1]]


def test_replicas_that_share_optimizer_state_have_the_losses_of_one(digits, on_ipu, tmp_path):
    shared = ["IPU.REPLICAS", "2", "TRAIN.ACCUMULATION_STEPS", "4", "IPU.REPLICATED_TENSOR_SHARDING", "True"]
    found = train(digits, tmp_path, *ONE_IPU, *shared, flags=["--ga", "4"])
    assert [row["loss"] for row in found] == losses(on_ipu[1])


@pytest.mark.parametrize(
    "epochs",
    [
        pytest.param(1, id="first_epoch"),  # of a small learning rate
        pytest.param(2, id="both_epochs", marks=needs_core("it sums the gradients of the instances")),
    ],
)
@pytest.mark.skipif(shutil.which("poprun") is None, reason="needs poprun, which comes with the Poplar SDK")
def test_two_instances_have_the_losses_of_one(epochs, digits, on_ipu, tmp_path):
    launcher = ["poprun", "--num-instances", "2", "--num-replicas", "2", "--ipus-per-replica", "1"]
    flags = ["--ga", "4", "--training-steps", str(5 * epochs)]
    found = train(digits, tmp_path, *ONE_IPU, "IPU.REPLICAS", "2", flags=flags, launcher=launcher)
    assert [row["loss"] for row in found] == losses(on_ipu[1][:epochs])


def test_other_sources_of_images_train(digits, on_ipu, tmp_path):
    for packed, flags in (("zip", ["--zip"]), ("shards", [])):
        dataset.prepare.prepare(packed, tmp_path / packed, digits)
        found = train(tmp_path / packed, tmp_path / f"of_{packed}", *ONE_IPU, flags=flags)
        assert [row["loss"] for row in found] == losses(on_ipu[1])
    for source in ("host", "device"):
        flags = ["--synthetic", source, "--training-steps", "2", "--output", tmp_path / source, "--device", "ipu"]
        run("train_swin.py", *DEMO, *flags, "--opts", *MODEL, *ONE_IPU)
        assert json.loads((tmp_path / source / "status.json").read_text())["exit_code"] == 0


def test_programs_compile_without_data(tmp_path):
    said = run("train_swin.py", *DEMO, "--compile-only", "--device", "ipu", "--opts", *MODEL, *FOLDED)
    assert said.strip().endswith("both programs of swin_demo_patch2_window4_16 compile; nothing was trained or written")


@needs_core("it writes executables and profiles")
def test_executables_and_profiles_are_where_the_configuration_says(digits, on_ipu, tmp_path):
    assert any(path.is_file() for path in (on_ipu[0] / "executables").rglob("*"))
    train(digits, tmp_path / "out", *ONE_IPU, "IPU.ENGINE.PROFILE_FOLDER", tmp_path / "profile")
    assert any(path.is_file() for path in (tmp_path / "profile").rglob("*"))


def test_cache_of_executables_is_a_folder_that_one_can_name_or_leave_out(digits, on_ipu, tmp_path):
    for cache in (str(tmp_path / "cache"), ""):
        train(digits, tmp_path / "out", *ONE_IPU, "IPU.EXECUTABLE_CACHE", cache, flags=["--training-steps", "2"])
    assert not (tmp_path / "out" / "executables").exists() and os.listdir(tmp_path / "out")
