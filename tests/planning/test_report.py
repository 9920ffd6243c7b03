# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The plan for people: its text, its picture, and the flags that ask for them."""

import os
import re
import sys
from pathlib import Path

import pytest

import accelerator
import train_swin
from common.command_line import run_command
from common.errors import Refusal
from config import get_config, named_configs
from planning import report
from planning.costs import configured_units
from planning.memory import configured_footprint
from planning.plan import make_plan


def test_report_of_a_named_configuration_has_its_numbers():
    text = report.text(get_config("SWIN_TINY"))
    for words in (
        "28,288,354 parameters",
        "4.49 GMACs",
        "897 MiB",
        "1,472 tiles x 624 KiB",
        "recomputation on",
        "replicated tensor sharding off",
        "micro-batch 4 x accumulation 64 x 4 replicas = 1,024 samples",
        "4 per replica x 4 replicas = 16",
        "3 / 64, for F = 4",
        "estimate",
        "assumption",
        "LAYERS_PER_IPU: [2, 3, 5, 2]",
        "31.25 TMAC/s",
        "1,000 classes assumed",
    ):
        assert words in text, words
    assert "warning" not in text and "reserved" not in text


def test_tables_have_a_row_for_each_ipu_with_the_plans_numbers():
    config = get_config("SWIN_BASE_22K_PRETRAIN")
    lines = report.text(config).splitlines()
    for ipu in make_plan(config).ipus:
        work, memory = (line for line in lines if re.match(rf"\s*{ipu.ipu} ", line))
        assert ipu.content in work and f"{ipu.parameters:,}" in work and f"{ipu.macs / 1e9:.3f}" in work
        sizes = [f"{size / 2**20:.1f}" for size in (*ipu.memory, ipu.memory.total)]
        assert memory.split()[:8] == [str(ipu.ipu), str(ipu.in_flight), *sizes] and memory.endswith("fits")


def test_configured_split_stands_beside_the_automatic_ones():
    text = report.text(get_config("SWIN_TINY"))
    rows = re.findall(r"^(as configured|auto, \w+ \w+(?: \w+)?) +(\d+) +([\d.]+) GMACs", text, re.MULTILINE)
    (_, ipus, slowest), (_, as_many, best), (_, fewest, _) = rows
    assert (ipus, as_many) == ("4", "4") and int(fewest) < 4
    assert float(best) < float(slowest)
    assert text.count("LAYERS_PER_IPU: [") == 3


@pytest.mark.parametrize("name", named_configs())
def test_report_is_readable_in_a_hundred_columns(name):
    for opts in ([], ["IPU.LAYERS_PER_IPU", "auto"]):
        text = report.text(get_config(name, opts))
        assert max(map(len, text.splitlines())) <= 100
        assert "warning" not in text


def test_numbers_in_the_readme_and_the_configurations_are_the_plans():
    root = Path(report.__file__).parents[1]
    hand, auto = (make_plan(get_config("SWIN_BASE", opts)) for opts in ([], ["IPU.LAYERS_PER_IPU", "auto"]))
    said = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    layers = ", ".join(f"{count:g}" for count in auto.layers)
    assert f"`[{layers}]`, with {auto.slowest / 1e9:.2f} instead of {hand.slowest / 1e9:.2f} GMACs" in said
    config = get_config("SWIN_BASE_22K_PRETRAIN")
    head, footprint = configured_units(config)[-1], configured_footprint(config)
    size = head.parameters * (footprint.weight + footprint.gradient + footprint.optimizer) / 2**20
    assert f"# The head and its optimizer state take {size:.0f} MiB" in (root / "configs/configs.yaml").read_text()


def test_head_in_a_stage_of_its_own_is_told_with_its_mapping():
    text = report.text(get_config("SWIN_TINY", ["IPU.MAPPING", "[0, 1, 2, 3, 0]"]))
    assert "LAYERS_PER_IPU: [2, 3, 5, 2], MAPPING: [0, 1, 2, 3, 0]" in text
    assert "embedding, 0.0-0.1, merging; norm, head" in text


def test_ipus_without_a_stage_are_not_filled_by_the_automatic_split():
    opts = ["IPU.LAYERS_PER_IPU", "[6, 6]", "IPU.MAPPING", "[0, 3]", "TRAIN.ACCUMULATION_STEPS", "3"]
    text = report.text(get_config("SWIN_TINY", opts))  # four stages would need seven micro-batches
    assert re.findall(r"^(?:as|auto, as) \w+(?: IPUs)? +(\d+)", text, re.MULTILINE) == ["4", "2"]


def test_ipus_that_are_too_small_are_warned_of():
    tight = report.text(get_config("SWIN_BASE_22K_PRETRAIN", ["IPU.LAYERS_PER_IPU", "[2, 2, 3, 3, 5, 5, 2, 2]"]))
    assert re.search(r"warning: IPU 7 of a replica is tight: \d+ of 897 MiB", tight)
    assert "no split" not in tight
    opts = ["DATA.BATCH_SIZE", "128", "IPU.LAYERS_PER_IPU", "auto", "IPU.IPUS_PER_REPLICA", "0"]
    heavy = report.text(get_config("SWIN_TINY", opts))
    assert "warning: IPU 0 of a replica does not fit: 5,177 of 897 MiB" in heavy
    assert "no split into 1, 2, 4, 8, 16 IPUs fits" in heavy
    assert max(map(len, heavy.splitlines())) <= 100


@pytest.mark.parametrize(
    "opts, advice",
    [
        (
            ["DATA.BATCH_SIZE", "300"],
            "lower DATA.BATCH_SIZE and raise the accumulation, or use --precision 16.16, or use --rts, "
            "or turn IPU.OPTIMIZER_STATE_OFF_CHIP on",
        ),
        (
            ["DATA.BATCH_SIZE", "300", "MODEL.PRECISION", "16.16", "IPU.REPLICAS", "1"],
            "lower DATA.BATCH_SIZE and raise the accumulation, or turn IPU.OPTIMIZER_STATE_OFF_CHIP on",
        ),
        (
            [
                "DATA.BATCH_SIZE",
                "1",
                "MODEL.PRECISION",
                "16.16",
                "IPU.REPLICATED_TENSOR_SHARDING",
                "True",
                "IPU.RECOMPUTATION",
                "False",
                "DATA.IMG_SIZE",
                "2240",
            ],
            "turn IPU.OPTIMIZER_STATE_OFF_CHIP on, or turn IPU.RECOMPUTATION on",
        ),
        (
            [
                "DATA.BATCH_SIZE",
                "1",
                "MODEL.PRECISION",
                "16.16",
                "IPU.REPLICAS",
                "1",
                "IPU.OPTIMIZER_STATE_OFF_CHIP",
                "True",
                "DATA.IMG_SIZE",
                "4480",
            ],
            "use a smaller model",
        ),
    ],
)
def test_advice_leaves_out_what_is_done_already(opts, advice):
    text = " ".join(report.text(get_config("SWIN_TINY", opts)).split())
    assert text.endswith(f"(at least 2F-1 for F stages): {advice}")


def test_precision_that_ipus_lack_is_warned_of():
    text = report.text(get_config("SWIN_TINY", ["MODEL.PRECISION", "mix"]))
    assert text.endswith("warning: MODEL.PRECISION mix runs on hosts only; IPUs support 16.16, 16.32 and 32.32")


def test_split_that_fits_is_not_warned_of_where_auto_finds_none():
    opts = ["IPU.LAYERS_PER_IPU", "[11, 10, 3]", "DATA.BATCH_SIZE", "1", "TRAIN.ACCUMULATION_STEPS", "5"]
    text = report.text(get_config("SWIN_BASE", opts))  # auto may take 1 or 2 IPUs, for 4 accumulation is too short
    assert re.search("auto, fewest IPUs +1 .* does not fit", text) and "warning" not in text


def test_ipus_that_are_reserved_beyond_those_used_are_told():
    opts = ["IPU.LAYERS_PER_IPU", "[4, 4, 4]"]
    assert "3 per replica x 4 replicas = 12, of 16 reserved" in report.text(get_config("SWIN_TINY", opts))
    assert "reserved" not in report.text(get_config("SWIN_TINY", [*opts, "IPU.ROUND_UP_IPUS", "False"]))


@pytest.fixture
def undisturbed(monkeypatch, tmp_path):
    """A folder to be in; choosing a device fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(accelerator, "select", lambda *_: pytest.fail("a plan needs no device"))
    return tmp_path


def test_plan_flag_prints_the_report_and_needs_nothing(undisturbed, capsys):
    assert run_command(lambda: train_swin.main(["--cfg", "SWIN_TINY_FP16", "--plan", "--batch-size", "2"])) == 0
    said = capsys.readouterr().out
    config = get_config("SWIN_TINY_FP16", ["DATA.BATCH_SIZE", "2"])
    assert said == report.text(config) + "\n" and "micro-batch 2 " in said
    assert os.listdir(undisturbed) == []


@pytest.mark.parametrize("name", ["SWIN_DEMO", "SWIN_BASE_22K_PRETRAIN"])
def test_plan_is_drawn_as_png_with_a_bar_for_each_ipu(undisturbed, name, capsys, monkeypatch):
    figure_module = pytest.importorskip("matplotlib.figure")
    drawn = []
    plain = figure_module.Figure.savefig
    monkeypatch.setattr(
        figure_module.Figure,
        "savefig",
        lambda self, *args, **kwargs: (drawn.append(self), plain(self, *args, **kwargs)),
    )
    train_swin.main(["--cfg", name, "--plan-output", "plan.png"])
    assert (undisturbed / "plan.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "balance" in capsys.readouterr().out
    plan = make_plan(get_config(name))
    work, memory = drawn[0].axes
    assert [bar.get_height() for bar in work.patches] == pytest.approx(
        [100 * ipu.macs / plan.macs for ipu in plan.ipus]
    )
    tops = [0.0] * len(plan.ipus)
    for index, bar in enumerate(memory.patches):
        tops[index % len(tops)] = max(tops[index % len(tops)], bar.get_y() + bar.get_height())
    assert tops == pytest.approx([ipu.memory.total / 2**20 for ipu in plan.ipus])
    assert "897: all of a Mk2 IPU" in [text.get_text() for text in memory.get_legend().get_texts()]


def test_missing_matplotlib_is_one_clear_line_after_the_report(undisturbed, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    assert run_command(lambda: train_swin.main(["--cfg", "SWIN_DEMO", "--plan-output", "plan.png"])) == 2
    said = capsys.readouterr()
    assert "balance" in said.out
    assert said.err.count("\n") == 1 and "matplotlib, which is not installed: pip install matplotlib" in said.err


@pytest.mark.parametrize("path, said", [("plan.svg", "must end in .png"), ("absent/plan.png", "cannot be written")])
def test_picture_that_cannot_be_written_is_refused(undisturbed, path, said):
    pytest.importorskip("matplotlib")
    with pytest.raises(Refusal, match=said):
        train_swin.main(["--cfg", "SWIN_DEMO", "--plan", "--plan-output", path])


def test_labels_of_work_are_not_on_the_line_of_the_mean(undisturbed, monkeypatch):
    figure_module = pytest.importorskip("matplotlib.figure")
    drawn, plain = [], figure_module.Figure.savefig
    monkeypatch.setattr(
        figure_module.Figure,
        "savefig",
        lambda self, *args, **kwargs: drawn.append(self) or plain(self, *args, **kwargs),
    )
    train_swin.main(["--cfg", "SWIN_BASE", "--plan-output", "plan.png"])
    figure, work = drawn[0], drawn[0].axes[0]
    mean = work.transData.transform((0, work.lines[0].get_ydata()[0]))[1]
    renderer = figure.canvas.get_renderer()
    boxes = [label.get_window_extent(renderer) for label in work.texts]
    assert len(boxes) == 8 and not [box for box in boxes if box.y0 <= mean <= box.y1]
    assert not figure.texts and len(work.get_title().splitlines()) == 2
