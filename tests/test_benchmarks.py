# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What the benchmarks say of a machine, and what they count, without timing anything."""

import json
import warnings

import pytest
import torch

from benchmarks import gpu
from benchmarks.train_step import Products, take_turns
from config import get_config


def test_gpu_benchmark_without_a_gpu_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main(["--json", str(tmp_path / "gpu.json")])
    assert "no GPU" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_gpu_benchmark_on_a_cpu_has_a_row_for_each_contender_and_where_it_was_run(tmp_path, monkeypatch):
    class Timm(torch.nn.Linear):
        def forward(self, images):
            return super().forward(images.mean((2, 3)))

    def tiny(cfg, dtype, batch, compiled=False):
        small = ["MODEL.SWIN.EMBED_DIM", "8", "MODEL.SWIN.DEPTHS", "[1]", "MODEL.SWIN.NUM_HEADS", "[1]"]
        sizes = ["DATA.IMG_SIZE", "224", "MODEL.SWIN.PATCH_SIZE", "16", "MODEL.SWIN.WINDOW_SIZE", "7"]
        shape = ["DATA.BATCH_SIZE", str(batch), "IPU.REPLICAS", "1", "IPU.LAYERS_PER_IPU", "[1]"]
        return get_config("SWIN_DEMO", [*small, *sizes, *shape, "MODEL.NUM_CLASSES", "1000"])

    monkeypatch.setattr(gpu, "configured", tiny)
    monkeypatch.setattr(gpu, "peers", lambda cfg, only: {"timm": Timm(3, 1000)})
    monkeypatch.setattr(torch, "compile", lambda model: model)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    file = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--batch", "2", "--rounds", "2", "--steps", "1", "--json", str(file)])
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    found = json.loads(file.read_text())
    assert found["device"] == "cpu" and found["versions"]["torch"] == torch.__version__
    assert len(found["results"]) == 6
    for row in found["results"].values():
        assert list(row["rows"]) == [
            "ours",
            "ours, bytes",
            "ours, compiled",
            "timm",
            "timm, channels last",
            "timm, compiled",
        ]
        assert row["rows"]["ours"]["over_ours"] == {"median": 1.0, "range": [1.0, 1.0]}
        assert all(values["images_per_second"] > 0 for values in row["rows"].values())


def test_bound_counts_the_products_of_a_step_and_nothing_else():
    layer = torch.nn.Linear(3, 4)
    with Products() as products:
        layer(torch.randn(5, 3, requires_grad=True)).relu().sum().backward()
    found = {
        (func.overloadpacket.__name__, *(shape for shape, _, _ in forms)): n
        for (func, forms), n in products.counts.items()
    }
    assert found == {
        ("addmm", (4,), (5, 3), (3, 4)): 1,
        ("mm", (5, 4), (4, 3)): 1,
        ("mm", (4, 5), (5, 3)): 1,
    }


def test_contenders_take_turns_in_changing_order():
    seen = []
    take_turns({name: lambda name=name: seen.append(name) for name in "abc"}, rounds=2)
    assert "".join(seen) == "abcbcacab"


def test_waits_of_a_gpu_are_those_that_pytorch_warns_of(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def begin():
        for text in (
            "called a synchronizing CUDA operation",
            "something else",
            "called a synchronizing CUDA operation",
        ):
            warnings.warn(text, stacklevel=1)

    assert gpu.waits(begin, "cuda") == 2 and modes == ["warn", "default"]


def test_step_that_reads_late_reads_the_one_before():
    events = []

    def begin():
        number = len(events)
        events.append(f"begins {number}")
        return lambda: events.append(f"read {number}")

    step = gpu.late(begin)
    step()
    step()
    assert events == ["begins 0", "begins 1", "read 0"]
