# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The compiled kernels have the numbers of float64 arithmetic, in any sizes and on any number of threads."""

import itertools
import os
import subprocess
import sys
from typing import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models import kernels

compiled = pytest.mark.skipif(kernels.library() is None, reason="kernels.c is not compiled here")
DTYPES = (torch.float32, torch.bfloat16)
TOKENS = (1, 9, 16, 49, 144)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Runs a test on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Random numbers, the same for the same shape."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale).to(dtype)


def assert_near(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Equal but for the rounding of the dtype."""
    tolerance = 2e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance * exact.abs().max().item())


def softmax_of(scores: Tensor, bias: Tensor, scale: float) -> Tensor:
    """In float64."""
    return torch.softmax(scores.double().view(-1, *bias.shape) * scale + bias.double(), -1).view(scores.shape)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens, windows", list(itertools.product(TOKENS, (1, 4))))
def test_softmax_and_its_gradients_are_those_of_float64(tokens, windows, dtype, threads):
    scores = drawn(3 * windows * 2, tokens, tokens, dtype=dtype, scale=4.0)
    bias, gradient = drawn(windows, 2, tokens, tokens), drawn(*scores.shape, dtype=dtype, scale=0.5)
    found = kernels.softmax(scores, bias, 0.3)
    assert found.dtype == dtype
    assert_near(found, softmax_of(scores, bias, 0.3), dtype)
    total = torch.ones_like(bias)
    given = kernels.softmax_back(gradient.clone(), found, total, 0.3)
    exact = torch.ops.aten._softmax_backward_data(gradient.double(), found.double(), -1, torch.float64)
    assert_near(given, exact * 0.3, dtype)
    assert_near(total - 1, exact.view(-1, *bias.shape).sum(0), torch.float32)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 15, 16, 17, 10_007])
def test_gelu_and_its_gradient_are_those_of_float64(count, dtype, threads):
    hidden, gradient = drawn(count, dtype=dtype, scale=3.0), drawn(count, dtype=dtype)
    exact = hidden.double().requires_grad_()
    functional.gelu(exact).backward(gradient.double())
    found, active = kernels.gelu_back(gradient.clone(), hidden)
    assert_near(found, exact.grad, dtype)
    assert_near(active, functional.gelu(exact.detach()), dtype)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, size", [(1, 8), (5, 96), (300, 100), (70, 768), (2, 1536)])
def test_layer_norm_and_its_gradients_are_those_of_float64(rows, size, dtype, threads):
    x, gradient, weight, bias = (
        drawn(rows, size, dtype=dtype) + 3,
        drawn(rows, size, dtype=dtype),
        drawn(size),
        drawn(size),
    )
    exact = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    normed = functional.layer_norm(exact[0], (size,), exact[1], exact[2], 1e-5)
    found, *statistics = kernels.norm(x, weight, bias, 1e-5)
    assert_near(found, normed.detach(), dtype)
    normed.backward(gradient.double())
    for given, expected in zip(kernels.norm_back(gradient.clone(), x, statistics, weight, bias), exact):
        assert_near(given, expected.grad, dtype)


@compiled
def test_sums_of_many_bfloat16_gradients_are_exact_to_float32(threads):
    x, gradient, one = drawn(5000, 64, dtype=torch.bfloat16), drawn(5000, 64, dtype=torch.bfloat16), torch.ones(64)
    statistics = kernels.norm(x, one, one, 1e-5)[1:]
    found = kernels.norm_back(gradient.clone(), x, statistics, one, one)[2]
    torch.testing.assert_close(found.double(), gradient.double().sum(0), rtol=1e-5, atol=1e-3)


@compiled
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_so(value, dtype):
    scores, bias, hidden = drawn(2, 49, 49, dtype=dtype), drawn(1, 2, 49, 49), drawn(32, dtype=dtype)
    scores[0, 3, 48], hidden[5] = value, value
    found, expected = kernels.softmax(scores, bias, 1.0), softmax_of(scores, bias, 1.0)
    assert torch.equal(found.isnan(), expected.isnan())
    normed = kernels.norm(hidden.view(2, 16), torch.ones(16), torch.zeros(16), 1e-5)[0]
    assert normed.isnan()[0].any() and normed[1].isfinite().all()
    found, expected = kernels.gelu_back(torch.ones_like(hidden), hidden)[1], functional.gelu(hidden.double())
    assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.isinf(), expected.isinf())


@compiled
def test_the_same_numbers_every_time(threads):
    x, gradient, weight = drawn(999, 96), drawn(999, 96), drawn(96)
    statistics = kernels.norm(x, weight, weight, 1e-5)[1:]
    first, second = (kernels.norm_back(gradient.clone(), x, statistics, weight, weight) for _ in range(2))
    assert all(map(torch.equal, first, second))


def calls() -> Iterator[Callable[[], object]]:
    """A call of each function, with parameters in float64, which kernels.c does not take."""
    x, weight = drawn(4, 16).double(), drawn(16).double()
    scores, bias = drawn(2, 9, 9).double(), drawn(1, 2, 9, 9).double()
    yield lambda: kernels.softmax(scores, bias, 1.0)
    yield lambda: kernels.softmax_back(scores.clone(), scores, bias.clone(), 1.0)
    yield lambda: kernels.norm(x, weight, weight, 1e-5)
    yield lambda: kernels.norm_back(x.clone(), x, kernels.norm(x, weight, weight, 1e-5)[1:], weight, weight)


def test_parameters_of_another_type_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(kernels, "library", lambda: pytest.fail("compiled code for float64"))
    for call in calls():
        call()


def library_of(**environment: str) -> str:
    code = "import torch; from models import kernels; print(kernels.library() is not None)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "cc -mno-avx512bf16"])
def test_without_compiler_or_vectors_pytorch_serves(compiler, tmp_path):
    assert library_of(CC=compiler, XDG_CACHE_HOME=str(tmp_path)) == "False"
