# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Fused window attention: the numbers and gradients of the plain one, and the choice between them."""

import pytest
import torch

import accelerator
from config import get_config
from models import build, fused_attention
from models.fused_attention import FusedWindowAttention
from models.swin_transformer import BlockStyle, WindowAttention
from planning.geometry import layer_shapes
from tests.runs import train
from training import building

pytest_plugins = ["tests.digits"]
STYLE = BlockStyle(4.0, True, None, 0.0, 0.0, torch.nn.LayerNorm)


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("window, shifted", [(4, True), (4, False), ((2, 4), True), (8, False)])
def test_results_and_gradients_are_those_of_plain_attention(window, shifted, scale):
    shape = layer_shapes(16, 2, 12, [2], [3], window)[0]
    style = STYLE._replace(qk_scale=scale)
    torch.manual_seed(0)
    plain = WindowAttention(shape, shape.shift if shifted else (0, 0), style)
    fused = FusedWindowAttention(shape, shape.shift if shifted else (0, 0), style)
    torch.nn.init.normal_(plain.relative_position_bias_table)
    fused.load_state_dict(plain.state_dict())
    inputs = torch.randn(3, *shape.grid, shape.channels)
    found = []
    for attention in (plain, fused):
        x = inputs.clone().requires_grad_()
        y = attention(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        found.append([y.detach(), x.grad, *(parameter.grad for parameter in attention.parameters())])
    for left, right in zip(*found):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("faster", [True, False])
def test_gpu_takes_the_attention_that_a_measurement_finds_faster(faster, monkeypatch, caplog):
    """The times are made up; random numbers go on as if nothing had been measured."""
    monkeypatch.setattr(accelerator, "_selected", accelerator.select("cpu")._replace(device="gpu"))
    seconds = {WindowAttention: 2.0, FusedWindowAttention: 1.0 if faster else 3.0}
    measured, step = [], fused_attention._step

    def noting(kind, *args):
        measured.append(kind)
        return step(kind, *args)

    monkeypatch.setattr(fused_attention, "_step", noting)
    monkeypatch.setattr(fused_attention, "_seconds", lambda step, device: step() or seconds[measured[-1]])
    arguments = build._attention_of(get_config("SWIN_DEMO", ["DATA.BATCH_SIZE", "2"]))
    monkeypatch.setattr(build, "_attention_of", lambda config: (*arguments[:-1], "cpu"))
    state = torch.get_rng_state()
    with caplog.at_level("INFO"):
        fused = build.choose_attention(get_config("SWIN_DEMO"))
    assert build.fastest(get_config("SWIN_DEMO"), fused) is (
        build.FusedSwinClassifier if faster else build.SwinClassifier
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert f"attention: {'fused' if faster else 'plain'}; forward and backward take" in caplog.text


@pytest.mark.parametrize("saved", [True, False])
def test_choice_that_a_run_has_saved_is_taken_without_a_measurement(saved, monkeypatch, caplog):
    monkeypatch.setattr(accelerator, "_selected", accelerator.select("cpu")._replace(device="gpu"))
    monkeypatch.setattr(build, "fused_is_faster", lambda *_: pytest.fail("measured"))
    with caplog.at_level("INFO"):
        assert build.choose_attention(get_config("SWIN_DEMO"), saved) is saved
    assert f"attention: {'fused' if saved else 'plain'}, as chosen when the run started" in caplog.text


@pytest.mark.parametrize("saved", [True, False, None])
def test_nothing_is_chosen_on_a_cpu_and_for_models_without_fused_attention(saved, monkeypatch):
    monkeypatch.setattr(accelerator, "_selected", accelerator.select("cpu"))
    assert build.choose_attention(get_config("SWIN_DEMO"), saved) is None
    monkeypatch.setattr(accelerator, "_selected", accelerator.select("cpu")._replace(device="gpu"))
    for opts in (["MODEL.DROP_RATE", "0.1"], ["MODEL.PRECISION", "16.32"], ["TRAIN.COMPILE", "True"]):
        assert build.choose_attention(get_config("SWIN_DEMO", opts), saved) is None


def test_resumed_run_keeps_the_choice_of_its_checkpoint(digits, tmp_path, monkeypatch):
    """The measurement of the second start would end the other way."""
    for measured, updates in ((True, 2), (False, 4)):
        monkeypatch.setattr(
            building, "choose_attention", lambda config, saved, measured=measured: measured if saved is None else saved
        )
        state = train(digits, tmp_path, "--training-steps", str(updates))
        assert (state["progress"]["update"], state["fused_attention"]) == (updates, True)
