# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The golden records: this host agrees with them, and a device that computes something else would not."""

import json
import re
import shutil

import pytest
import torch

import accelerator
from common.command_line import run_command
from common.errors import EXIT_DATA, EXIT_USAGE, Refusal
from models.build import build_pipeline
from planning.placement import pipeline_stages
from tests import golden
from tests.forked import Command

PATHS = sorted(golden.RECORDS.glob("*.safetensors"))


@pytest.fixture(autouse=True)
def host():
    accelerator.select("cpu")


def checked(folder, capsys):
    """Exit code of a check, and its verdicts by record and kind."""
    code = run_command(lambda: golden.main(["check", "--folder", str(folder), "--device", "cpu"]))
    lines = re.findall(r"^(\S+ \w+): largest difference .*: (ok|DIFFERENT)$", capsys.readouterr().out, re.MULTILINE)
    return code, dict(lines)


def rewritten(tmp_path, name, change):
    """A folder of one record of the repository, after `change` of what was read."""
    golden.write(tmp_path / f"{name}.safetensors", change(golden.read(golden.RECORDS / f"{name}.safetensors")))
    return tmp_path


def test_this_host_agrees_with_the_records_of_the_repository(capsys):
    code, verdicts = checked(golden.RECORDS, capsys)
    assert code == 0
    assert verdicts == {f"swin_{precision} {kind}": "ok" for precision in golden.TOLERANCE for kind in golden.KINDS}


def test_command_ends_with_0_and_names_the_largest_differences():
    with Command("-m", "tests.golden", "check", "--device", "cpu") as command:
        assert (command.wait(), command.errors) == (0, "")
        assert re.search(
            r"^swin_32\.32 gradients: largest difference \d\.\d\de[-+]\d\d of 0\.0001 allowed, in [\w.]+: ok$",
            command.output,
            re.MULTILINE,
        )


def test_records_are_small_and_say_where_they_come_from():
    assert len(PATHS) == 2 and sum(path.stat().st_size for path in PATHS) < 300 * 1024
    for path in PATHS:
        metadata = golden.read(path).metadata
        assert metadata["device"] == "cpu" and metadata["torch"] and metadata["seed"] == "7"
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", metadata["commit"])


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_records_cover_two_stages_and_every_kind_of_layer(path):
    given = golden.read(path)
    assert len(pipeline_stages(given.config)) == 2
    for part in (
        "patch_embed.norm",
        "blocks.1.attn.relative_position_bias_table",
        "layers.0.downsample.reduction",
        "mlp.fc2",
        "norm.weight",
        "head",
    ):
        assert any(part in name for name in given.weights)
    assert any(
        buffer is not None for name, buffer in build_pipeline(given.config).named_buffers() if "attn_mask" in name
    )  # a shifted window
    for name, gradient in given.results["gradients"].items():
        assert gradient.shape == given.weights[name].shape and gradient.abs().max() > 0


@pytest.mark.parametrize("targets", ["classes", "probabilities"])
def test_gradients_are_those_of_autograd(targets):
    """By plain PyTorch on all images at once: no executor, no accumulation, no weight update."""
    given = golden.new_record("32.32")
    if targets == "probabilities":
        given.inputs["targets"] = golden.new_record("16.16").inputs["targets"]
    results = golden.run(given)
    model = build_pipeline(given.config)
    model.load_state_dict(given.weights)
    logits, loss = model(given.inputs["images"], given.inputs["targets"])
    loss.backward()
    plain = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert golden.largest_difference(results["gradients"], plain)[0] < 1e-5
    assert golden.largest_difference(results["logits"], {"logits": logits.detach()})[0] < 1e-5
    assert results["loss"]["loss"].item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("name, share", [("swin_32.32", 1.01), ("swin_16.16", 1.5)])
@pytest.mark.parametrize(
    "weight",
    ["patch_embed.proj.weight", "layers.0.blocks.1.attn.qkv.weight", "layers.1.blocks.1.mlp.fc2.weight", "head.weight"],
)
def test_perturbed_weight_is_found(tmp_path, capsys, name, share, weight):
    def perturb(given):
        given.weights[weight] *= share
        return given

    code, verdicts = checked(rewritten(tmp_path, name, perturb), capsys)
    assert code == golden.EXIT_DIFFERENT and verdicts[f"{name} gradients"] == "DIFFERENT"


@pytest.mark.parametrize(
    "kind, name", [("logits", "logits"), ("loss", "loss"), ("gradients", "layers.1.blocks.0.norm1.bias")]
)
def test_difference_is_told_with_its_kind_and_tensor(tmp_path, capsys, kind, name):
    def change(given):
        given.results[kind][name].view(-1)[0] += 0.002 * given.results[kind][name].abs().max()
        return given

    folder = rewritten(tmp_path, "swin_32.32", change)
    assert run_command(lambda: golden.main(["check", "--folder", str(folder), "--device", "cpu"])) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.endswith("DIFFERENT")]
    assert re.match(rf"swin_32\.32 {kind}: largest difference (2.0\d|1.99)e-03 of 0.0001 allowed, in {name}: ", line)


def test_results_that_are_not_finite_missing_or_of_another_shape_are_different():
    wanted = {"a": torch.ones(2), "b": torch.zeros(2)}
    assert golden.largest_difference({"a": torch.ones(2), "b": torch.zeros(2)}, wanted)[0] == 0
    for broken in ({"a": torch.tensor([1.0, float("nan")])}, {"a": torch.ones(3)}, {}):
        assert golden.largest_difference({"b": torch.zeros(2), **broken}, wanted) == (float("inf"), "a")


def test_small_tensors_are_measured_by_their_own_size_down_to_a_hundredth():
    wanted = {"large": torch.tensor([10.0]), "small": torch.tensor([0.5]), "tiny": torch.tensor([0.0])}
    found = {**wanted, "small": torch.tensor([0.55])}
    assert golden.largest_difference(found, wanted) == (pytest.approx(0.1), "small")
    assert golden.largest_difference({**wanted, "tiny": torch.tensor([0.01])}, wanted) == (pytest.approx(0.1), "tiny")


def test_new_records_agree_with_those_of_the_repository(tmp_path, capsys):
    golden.main(["record", "--folder", str(tmp_path / "new")])
    for path in PATHS:
        old, new = golden.read(path), golden.read(tmp_path / "new" / path.name)
        assert old.inputs.keys() == new.inputs.keys() and old.weights.keys() == new.weights.keys()
        assert json.loads(old.metadata["opts"]) == json.loads(new.metadata["opts"])
        for kind in golden.KINDS:
            tolerance = golden.TOLERANCE[new.config.MODEL.PRECISION]
            assert golden.largest_difference(new.results[kind], old.results[kind])[0] < tolerance
    assert checked(tmp_path / "new", capsys)[0] == 0


def test_records_are_not_replaced_unless_forced(tmp_path):
    shutil.copy(str(PATHS[0]), str(tmp_path))
    before = PATHS[0].read_bytes()
    with pytest.raises(Refusal, match="--force") as caught:
        golden.main(["record", "--folder", str(tmp_path)])
    assert caught.value.code == EXIT_USAGE
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
    (tmp_path / PATHS[0].name).write_bytes(b"old")
    golden.main(["record", "--folder", str(tmp_path), "--force"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in PATHS]
    assert golden.read(tmp_path / PATHS[0].name).weights


def test_folder_without_records_and_files_that_are_none_are_refused(tmp_path):
    def refused(said):
        with pytest.raises(Refusal, match=said) as caught:
            golden.main(["check", "--folder", str(tmp_path), "--device", "cpu"])
        assert caught.value.code == EXIT_DATA and "\n" not in str(caught.value)

    refused("no golden records")
    (tmp_path / "a.safetensors").write_bytes(b"no safetensors")
    refused("a.safetensors cannot be read")
    golden.save_file({"a": torch.ones(1)}, str(tmp_path / "a.safetensors"))
    refused("a.safetensors is no golden record: its metadata lacks .*cfg")


def test_ipus_that_are_not_here_are_refused(monkeypatch):
    monkeypatch.setattr(accelerator, "_sdk", lambda: None)
    with pytest.raises(Refusal, match="Poplar SDK") as caught:
        golden.main(["check", "--device", "ipu"])
    assert caught.value.code == EXIT_USAGE
