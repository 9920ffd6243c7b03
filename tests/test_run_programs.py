# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""tools/run_programs.py: the list is well formed, and what became of a program is told as it was."""

import io
import json
import os
import runpy
import subprocess
import sys
import types
import wave

import numpy as np
import pytest
import torch
from poptorch_host import custom_ops

from tools import program_data
from tools.program_data.graphs import cliques, neighbors
from tools.program_data.hub import noise
from tools.program_data.models import exercise, place
from tools.run_programs import LATE, LISTING, REFUSED, RUNS, STOPS, Program, main, read_listing, run

PROGRAMS = {
    "good.py": "import os, sys\nassert sys.argv[1:] == ['--steps', '2'] and 'shim' in os.environ['PYTHONPATH']",
    "stops.py": "raise KeyError('weights')",
    "refused.py": "raise RuntimeError('poptorch_host: device code')",
    "long.py": "import time\nprint('Epoch 1, loss 0.5', flush=True)\ntime.sleep(60)",
    "slow.py": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
}


@pytest.fixture
def checkout(tmp_path):
    for name, text in PROGRAMS.items():
        path = tmp_path / "theirs" / "app" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "theirs"


def outcome(checkout, work, **fields):
    program = Program("a program", "theirs/app", **fields)
    return run(program, {"theirs": checkout}, sys.executable, work)


def test_list_is_well_formed():
    listing = read_listing()
    makers = {arguments.split()[0] for program in listing.programs for arguments in program.data}
    assert listing.programs and makers <= set(program_data.MAKERS)
    assert all(program.folder.split("/")[0] in ("examples", "poptorch", "optimum") for program in listing.programs)


@pytest.mark.parametrize(
    "wrong, error",
    [("{name: a, folder: f, command: c, speed: 1}", TypeError), ("{name: a, folder: f, command: c}", ValueError)],
)
def test_a_wrong_list_is_an_error(wrong, error, tmp_path):
    path = tmp_path / "programs.yml"
    path.write_text(f"environments: {{main: []}}\nprograms: [{{name: a, folder: f, command: c}}, {wrong}]\n")
    with pytest.raises(error):
        read_listing(path)


def test_programs_run_refuse_and_stop_in_copies_of_their_folders(checkout, tmp_path):
    assert outcome(checkout, tmp_path / "work", command="good.py --steps 2").outcome == RUNS
    stopped = outcome(checkout, tmp_path / "work", command="stops.py", refusal="device code")
    assert (stopped.outcome, stopped.line) == (STOPS, "KeyError: 'weights'")
    assert outcome(checkout, tmp_path / "work", command="refused.py", refusal="device code").outcome == REFUSED
    assert outcome(checkout, tmp_path / "work", command="good.py --steps 2", before=["stops.py"]).outcome == STOPS
    assert outcome(checkout, tmp_path / "work", command="slow.py", limit=1).outcome == LATE
    assert outcome(checkout, tmp_path / "work", command="long.py", until=r"loss \d").outcome == RUNS
    assert sorted(path.name for path in (checkout / "app").iterdir()) == sorted(PROGRAMS)


def test_data_are_made_in_the_copy(checkout, tmp_path):
    made = dict(data=["text words.txt 3"], command="good.py --steps 2")
    assert outcome(checkout, tmp_path / "work", **made).outcome == RUNS
    assert len((tmp_path / "work" / "a-program" / "words.txt").read_text().splitlines()) == 3


def test_table_holds_what_ran_in_this_and_earlier_calls(checkout, tmp_path, monkeypatch, capsys):
    listing = tmp_path / "programs.yml"
    entries = "".join(f"\n- {{name: {name}, folder: theirs/app, command: {name}.py}}" for name in ("stops", "refused"))
    listing.write_text("environments: {main: [torch==2.0.1]}\nprograms:" + entries)
    monkeypatch.setattr("tools.run_programs.read_listing", lambda: read_listing(listing))
    common = ["--checkout", f"theirs={checkout}", "--work", str(tmp_path / "work"), "--table", str(tmp_path / "t.md")]
    main([*common, "--only", "stops"])
    assert "Not run yet: refused." in (tmp_path / "t.md").read_text()
    main([*common, "--only", "refused"])
    text = (tmp_path / "t.md").read_text()
    assert "Of 2 programs 0 run, " in text and " 2 stop, " in text and "`stops.py`" in text and "'weights'" in text
    assert "Not run yet" not in text
    main(["--requirements", "main"])
    assert capsys.readouterr().out.splitlines()[-1] == "torch==2.0.1"


def test_the_tool_runs_from_anywhere(tmp_path):
    script = LISTING.with_name("run_programs.py")
    command = [sys.executable, str(script), "--requirements", "main"]
    assert "torch==" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout


def with_site(home, code):
    """Runs code as a program that has the stand-in for downloads."""
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": str(LISTING.with_name("program_site"))}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_torchvision_takes_generated_cifar10_and_still_finds_a_damaged_file(tmp_path):
    folder = tmp_path / ".torch" / "datasets"
    program_data.MAKERS["cifar10"](str(folder), "10", "4")
    damaged = folder / "cifar-10-batches-py" / "test_batch"
    code = f"""
import pathlib
from torchvision.datasets import CIFAR10
images = CIFAR10({str(folder)!r})
print(len(images), images[9][0].size)
pathlib.Path({str(damaged)!r}).write_bytes(b"damaged")
CIFAR10({str(folder)!r})
"""
    done = with_site(tmp_path, code)
    assert done.stdout == "10 (32, 32)\n" and "not found or corrupted" in done.stderr


def test_downloads_are_read_from_the_folder_of_the_program(tmp_path):
    program_data.MAKERS["write"](str(tmp_path / "downloads" / "a.example" / "films" / "index.html"), "v_1.avi")
    fetch = "import urllib.request\nprint(urllib.request.urlopen('https://a.example/films/').read().decode())"
    assert with_site(tmp_path, fetch).stdout == "v_1.avi\n\n"
    assert "No such file" in with_site(tmp_path, fetch.replace("films", "others")).stderr


def test_generated_graphs_are_undirected_without_self_loops_and_isolated_nodes():
    source, target = neighbors(np.random.default_rng(0), 50)
    edges = set(zip(source.tolist(), target.tolist()))
    assert edges == {(b, a) for a, b in edges} and all(a != b for a, b in edges)
    assert set(source.tolist()) == set(range(50))


def test_cliques_link_all_nodes_of_a_group():
    assert cliques(5, 3).T.tolist() == [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1], [3, 4], [4, 3]]


def test_generated_answers_are_in_their_texts(tmp_path):
    program_data.MAKERS["squad"](str(tmp_path), "20", "2")
    for line in (tmp_path / "train.json").read_text().splitlines():
        example = json.loads(line)
        [text], [start] = example["answers"]["text"], example["answers"]["answer_start"]
        assert example["context"][start : start + len(text)] == text


def test_a_graph_that_is_too_small_for_its_parts_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="500 validation"):
        program_data.MAKERS["planetoid"](str(tmp_path), "Cora", "700", "8", "7")


@pytest.mark.parametrize(
    "name, predictions, references, expected",
    [
        ("accuracy", [1, 0], [1, 1], {"accuracy": 0.5}),
        ("rouge", ["a", "b"], ["a", "a"], {"exact": 0.5}),
        ("sacrebleu", ["a", "b"], [["a"], ["a"]], {"score": 50}),
        ("seqeval", [["O", "B"]], [["O", "O"]], {"overall_accuracy": 0.5}),
        ("wer", ["a", "b"], ["a", "a"], 0.5),
        ("xnli", [1, 2], [1, 1], {"accuracy": 0.5}),
        ("squad", [{"id": 7, "prediction_text": "a"}], [{"id": 7, "answers": {"text": ["a"]}}], {"exact_match": 100}),
    ],
)
def test_generated_metrics_compute(name, predictions, references, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    program_data.MAKERS["metric"]("datasets", name)
    [script] = tmp_path.glob(f".cache/huggingface/modules/datasets_modules/metrics/{name}/*/{name}.py")
    library = types.SimpleNamespace(Metric=object, MetricInfo=dict, Features=dict, Sequence=list, Value=str)
    monkeypatch.setitem(sys.modules, "datasets", library)
    names = {}
    exec(compile(script.read_text(), str(script), "exec"), names)
    assert names["Generated"]()._compute(predictions, references) == expected


def test_generated_sound_is_a_second_of_noise():
    with wave.open(io.BytesIO(noise(np.random.default_rng(0), 16000))) as sound:
        samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16)
    assert (sound.getframerate(), sound.getnchannels(), len(samples)) == (16000, 1, 16000)
    assert samples.std() > 10000


def test_questions_and_answers_are_read_from_a_program(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import torch\nquestions = ['who?']\ncontexts = ['it is me']\nassert found[0] == 'me'\n")
    assert exercise(str(program)) == (["who?"], ["it is me"], ["me"])
    assert place([5, 1, 2, 5, 1], [5, 1]) == (3, 4)


def test_boxes_of_a_class_that_overlap_are_suppressed(monkeypatch):
    monkeypatch.setattr(custom_ops, "_implementations", {})
    suppress = runpy.run_path(str(LISTING.with_name("program_operations.py")))["suppress"]
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]]])
    scores = torch.tensor([[[0.9, 0.0], [0.8, 0.7], [0.0, 0.6]]])  # box 1 gives way to box 0 for class 0 only
    attributes = {"threshold": 0.5, "scoreThreshold": 0.1, "numDetections": 4}
    indices, kept, corners, classes, number = suppress([scores, boxes], attributes)
    assert indices.tolist() == [[0, 1, 2, -1]] and number.tolist() == [3]
    assert classes.tolist() == [[0, 1, 1, 2**31 - 1]]
    assert torch.allclose(kept, torch.tensor([[0.9, 0.7, 0.6, 0.0]]))
    assert torch.equal(corners[0, :3], boxes[0]) and not corners[0, 3].any()
