# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The example programs, run as a user runs them: in an interpreter of their own, from another folder."""

import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
STAND_IN = ("-m", "poptorch_host")
OF_TORCH = "ignore:TypedStorage is deprecated:UserWarning"  # what torch 2.0 says of its own way to load tensors

pytest.importorskip("sklearn", reason="the examples learn scikit-learn's digits")


def run(folder: Path, *command: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
    """Runs python with `command` in `folder`, where the repository's packages can be imported."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": OF_TORCH}
    result = subprocess.run(
        [sys.executable, *command], cwd=str(folder), env=environment, text=True, capture_output=True, timeout=120
    )
    assert result.returncode == code, result.stderr
    return result


def example(folder: Path, name: str, *arguments: str) -> str:
    """What the example prints on the stand-in, where it must have nothing to complain about."""
    result = run(folder, *STAND_IN, str(ROOT / "examples" / name), *arguments)
    assert all(line.startswith("Graph compilation: 100%") for line in result.stderr.splitlines()), result.stderr
    return result.stdout


def epochs(printed: str) -> List[str]:
    """The lines about epochs."""
    return [line for line in printed.splitlines() if line.startswith("epoch ")]


def test_examples_are_the_ones_tested_here():
    assert EXAMPLES == ["finetune_lamb.py", "inference_server.py", "mnist_like_classifier.py"]


def test_classifier_learns_the_digits_in_a_pipeline(tmp_path):
    printed = example(tmp_path, "mnist_like_classifier.py", "--epochs", "8")
    assert len(epochs(printed)) == 8
    [(accuracy, images)] = re.findall(r"^test accuracy: (\S+) of (\d+) images$", printed, re.MULTILINE)
    assert int(images) == 360
    assert float(accuracy) >= 0.93


class FineTuning(NamedTuple):
    """What was printed and saved by a run of four epochs, and by one that stopped after two and was resumed."""

    unbroken: str
    stopped: str
    resumed: str
    saved: Dict[str, Dict[str, Any]]


@pytest.fixture(scope="module")
def fine_tuning(tmp_path_factory) -> FineTuning:
    folder = tmp_path_factory.mktemp("fine_tuning")

    def train(checkpoint: str, *arguments: str) -> str:
        return example(folder, "finetune_lamb.py", "--epochs", "4", "--checkpoint", checkpoint, *arguments)

    unbroken, stopped = train("unbroken"), train("resumed", "--stop-after", "2")
    shutil.copy(str(folder / "resumed"), str(folder / "stopped"))
    resumed = train("resumed")
    saved = {name: torch.load(str(folder / name), weights_only=True) for name in ("unbroken", "stopped", "resumed")}
    return FineTuning(unbroken, stopped, resumed, saved)


@pytest.mark.xdist_group("fine_tuning")
class TestFineTuning:
    def test_learns_the_new_digits_in_half(self, fine_tuning):
        scores = [[float(number) for number in re.findall(r"\d+\.\d+", line)] for line in epochs(fine_tuning.unbroken)]
        assert len(scores) == 4
        (first_loss, first_accuracy), (last_loss, last_accuracy) = scores[0], scores[-1]
        assert first_accuracy < 0.8 < 0.97 < last_accuracy and last_loss < first_loss / 10

    def test_stopped_and_resumed_equals_unbroken(self, fine_tuning):
        assert fine_tuning.resumed.startswith("resuming after epoch 2\n")
        printed = [epochs(text) for text in (fine_tuning.stopped, fine_tuning.resumed, fine_tuning.unbroken)]
        assert printed[0] + printed[1] == printed[2] and len(printed[0]) == len(printed[1]) == 2
        one, other = fine_tuning.saved["unbroken"], fine_tuning.saved["resumed"]
        for part in ("epoch", "random", "scheduler"):
            assert one[part] == other[part]
        for ours, theirs in (
            (one["model"], other["model"]),
            (one["optimizer"]["ipu_state"], other["optimizer"]["ipu_state"]),
            (one["optimizer"]["ipu_param"], other["optimizer"]["ipu_param"]),
        ):
            assert list(ours) == list(theirs) != []
            assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []

    def test_changes_the_head_and_leaves_the_backbone_alone(self, fine_tuning):
        before, after = (fine_tuning.saved[name]["model"] for name in ("stopped", "resumed"))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {name for name in before if name.startswith("head.")} != set(before)
        assert {tensor.dtype for tensor in after.values()} == {torch.float16}


@pytest.mark.parametrize("requests", [1, 333])
def test_server_answers_every_request_once_and_in_order(tmp_path, requests):
    printed = example(tmp_path, "inference_server.py", "--requests", str(requests), "--answers", "answers.csv")
    with open(tmp_path / "answers.csv", newline="") as file:
        answers = [(int(number), int(digit), float(score)) for number, digit, score in csv.reader(file)]
    assert [number for number, _, _ in answers] == list(range(requests))
    from sklearn.datasets import load_digits

    right = sum(load_digits().target[number] == digit for number, digit, _ in answers)
    assert right >= 0.95 * requests
    assert f"answered {requests} requests, {right / requests:.1%} of them correctly" in printed
    latencies = re.findall(r"^latency .*: (\S+) to (\S+) ms, (\S+) ms on average$", printed, re.MULTILINE)
    assert len(latencies) == 4
    for least, most, mean in ([float(value) for value in line] for line in latencies):
        assert 0 <= least <= mean <= most


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_without_poptorch_is_told_that_it_is_missing(tmp_path, name):
    if importlib.util.find_spec("poptorch") is not None:
        pytest.skip("PopTorch is installed here")
    message = run(tmp_path, str(ROOT / "examples" / name), code=1).stderr.splitlines()[-1]
    assert message == "ModuleNotFoundError: No module named 'poptorch'"


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_knows_nothing_but_poptorch(name):
    text = (ROOT / "examples" / name).read_text(encoding="utf-8")
    imported = {
        (first or second).split(".")[0]
        for first, second in re.findall(r"^(?:import (\S+)|from (\S+) import .*)$", text, re.MULTILINE)
    }
    assert imported <= {"argparse", "csv", "os", "warnings", "typing", "poptorch", "torch", "sklearn"}
