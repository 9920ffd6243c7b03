# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""What the benchmarks say of a machine, and what they count, without timing anything."""

import torch

from benchmarks import gpu
from benchmarks.train_step import Products, take_turns


def test_gpu_benchmark_without_a_gpu_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main(["--json", str(tmp_path / "gpu.json")])
    assert "no GPU" in capsys.readouterr().out and not list(tmp_path.iterdir())


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
