# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""Weights of several processes are compared bit by bit."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import accelerator
from common.errors import EXIT_RESOURCE, Refusal
from training.agreement import bit_sums, check_agreement

INTEGERS = {torch.float32: (torch.int32, 32), torch.float16: (torch.int16, 16)}


def run_of(model: nn.Module, processes: int = 2, stages: int = 1) -> SimpleNamespace:
    return SimpleNamespace(model=model, launch=SimpleNamespace(processes=processes, stages=stages))


@pytest.fixture(autouse=True)
def on_a_cpu():
    accelerator.select("cpu")


@pytest.mark.parametrize("dtype", list(INTEGERS))
def test_every_bit_of_a_weight_counts_and_the_weight_is_named(dtype):
    integers, bits = INTEGERS[dtype]
    run = run_of(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(dtype))
    before = bit_sums(run)
    check_agreement(run, SimpleNamespace(update=7), [before, before])
    for bit in range(bits):
        values = run.model[0].bias.data.view(integers)
        values[1] ^= -(1 << bit) if bit == bits - 1 else 1 << bit
        with pytest.raises(Refusal, match=r"process 1 .* at update 7 \(0.bias and 0 more\)") as refused:
            check_agreement(run, SimpleNamespace(update=7), [before, bit_sums(run)])
        assert refused.value.code == EXIT_RESOURCE
        values[1] ^= -(1 << bit) if bit == bits - 1 else 1 << bit
    assert bit_sums(run) == before


@pytest.mark.parametrize("processes, stages", [(1, 1), (2, 2)])
def test_nothing_is_compared_where_weights_belong_to_one_process(processes, stages):
    run = run_of(nn.Linear(3, 2), processes, stages)
    assert bit_sums(run) == []
    check_agreement(run, SimpleNamespace(update=7), [[], []])
