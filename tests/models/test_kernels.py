# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 the Swin IPU trainer authors
"""The compiled kernels have the numbers of float64 arithmetic, in any sizes and on any number of threads."""

import os
import subprocess
import sys
from typing import Callable, Iterator, Optional

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from common import compiled as compiled_code
from models import kernels
from models.windows import MASKED

compiled = pytest.mark.skipif(kernels.library() is None, reason="kernels.c is not compiled here")
DTYPES = (torch.float32, torch.bfloat16)


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


def rounding(dtype: torch.dtype) -> float:
    """The tolerance for results that are rounded to a dtype once."""
    return 2e-6 if dtype == torch.float32 else 2**-8


def assert_near(found: Tensor, exact: Tensor, tolerance: float) -> None:
    """Equal but for a tolerance, relative to each number or the largest one."""
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance * exact.abs().max().item())


def attention_of(qkv: Tensor, bias: Tensor, mask: Optional[Tensor], scale: float) -> Tensor:
    """In the dtype of the arguments, by the definition."""
    heads, tokens = bias.shape[:2]
    query, key, value = qkv.view(-1, tokens, 3, heads, qkv.shape[1] // (3 * heads)).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(2, 3) * scale + bias
    if mask is not None:
        scores = (scores.view(-1, len(mask), *bias.shape) + mask.unsqueeze(1)).view(scores.shape)
    return (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(len(qkv), -1)


def shifted(tokens: int) -> Tensor:
    """Masks of two windows, the second one of two regions."""
    apart = torch.arange(tokens) * 3 < tokens
    return torch.stack([torch.zeros(tokens, tokens), (apart.unsqueeze(0) != apart.unsqueeze(1)) * MASKED])


@pytest.mark.parametrize("by_compiler", [pytest.param(True, marks=compiled), False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "tokens, heads, size", [(1, 1, 4), (9, 2, 8), (16, 3, 20), (49, 3, 32), (64, 1, 48), (144, 2, 32)]
)
def test_attention_and_its_gradients_are_those_of_float64(
    tokens, heads, size, masked, dtype, by_compiler, threads, monkeypatch
):
    if not by_compiler:
        monkeypatch.setattr(kernels, "library", lambda: None)
    qkv, bias = drawn(4 * tokens, 3 * heads * size, dtype=dtype), drawn(heads, tokens, tokens)
    gradient, mask = drawn(4 * tokens, heads * size, dtype=dtype), shifted(tokens) if masked else None
    added = drawn(3 * heads * size) if masked else None
    exact_qkv, exact_bias = qkv.double(), bias.double().requires_grad_()
    exact_qkv = (exact_qkv if added is None else exact_qkv + added).requires_grad_()
    exact = attention_of(exact_qkv, exact_bias, None if mask is None else mask.double(), 0.3)
    exact.backward(gradient.double())
    tolerance = 2e-6 if dtype == torch.float32 else 2**-8 if by_compiler else 2**-5
    found = kernels.attention(qkv, added, bias, mask, 0.3)
    assert found.dtype == dtype
    assert_near(found, exact.detach(), tolerance)
    again, inner, total, bias_gradient = kernels.attention_back(gradient, qkv, added, bias, mask, 0.3)
    assert torch.equal(again, found)
    assert_near(inner, exact_qkv.grad, tolerance)
    assert_near(total, exact_qkv.grad.sum(0), max(tolerance, 1e-5) * 4)
    assert_near(bias_gradient, exact_bias.grad, 1e-5 if by_compiler or dtype == torch.float32 else tolerance)


@compiled
def test_masked_scores_leave_no_denormal_weights_that_processors_multiply_slowly():
    tokens = 16
    value = torch.zeros(2 * tokens, 3 * tokens)
    value[:, 2 * tokens :] = torch.eye(tokens).repeat(2, 1)  # what each token gets are its attention weights
    weights = kernels.attention(value, None, torch.zeros(1, tokens, tokens), shifted(tokens), 1.0)
    smallest = torch.finfo(torch.float32).tiny
    assert ((weights == 0) | (weights >= smallest)).all() and (weights == 0).any()
    spread = torch.linspace(0, -200, tokens).expand(1, tokens, tokens).contiguous()
    weights = kernels.attention(value, None, spread, None, 1.0)
    assert ((weights == 0) | (weights >= smallest)).all() and (weights == 0).any()


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, size", [(1, 1), (3, 15), (2, 16), (5, 17), (100, 100)])
def test_gelu_and_its_gradient_are_those_of_float64(rows, size, dtype, threads):
    hidden, gradient = drawn(rows, size, dtype=dtype, scale=3.0), drawn(rows, size, dtype=dtype)
    bias = None if rows == 3 else drawn(size)
    exact = (hidden.double() if bias is None else hidden.double() + bias).requires_grad_()
    functional.gelu(exact).backward(gradient.double())
    found, total, active = kernels.gelu_back(gradient.clone(), hidden, bias)
    assert_near(found, exact.grad, rounding(dtype))
    assert_near(total, exact.grad.sum(0), 1e-5)
    assert_near(active, functional.gelu(exact.detach()), rounding(dtype))
    assert torch.equal(active, kernels.gelu(hidden, bias))


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [None, torch.tensor([3, 0, 4])])
def test_rows_are_taken_summed_and_added_where_they_belong(rows, dtype, threads):
    x, values = drawn(5, 40, dtype=dtype), drawn(5 if rows is None else 3, 40, dtype=dtype)
    chosen = slice(None) if rows is None else rows
    taken, total = kernels.take(x, rows, 0.3)
    assert_near(taken, x[chosen].double() * 0.3, rounding(dtype))
    assert_near(total, (x[chosen].double() * 0.3).sum(0), 1e-6)
    out = torch.full_like(x, 7.0)
    expected = out.double()
    bias = None if rows is None else drawn(40)
    expected[chosen] = x[chosen].double() + 0.3 * (values.double() + (0 if bias is None else bias))
    kernels.add_rows(x, rows, values, bias, 0.3, out)
    assert_near(out, expected, rounding(dtype))


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_of_chosen_rows_is_that_of_their_copy(dtype):
    x, gradient, weight, rows = (
        drawn(9, 48, dtype=dtype),
        drawn(4, 48, dtype=dtype),
        drawn(48),
        torch.tensor([8, 2, 5, 0]),
    )
    chosen, whole = kernels.norm(x, weight, weight, 1e-5, rows), kernels.norm(x[rows], weight, weight, 1e-5)
    assert all(map(torch.equal, chosen, whole))
    found = kernels.norm_back(gradient.clone(), x, chosen[1:], weight, weight, rows)
    assert all(map(torch.equal, found, kernels.norm_back(gradient.clone(), x[rows], whole[1:], weight, weight)))


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
    assert_near(found, normed.detach(), rounding(dtype))
    normed.backward(gradient.double())
    for given, expected in zip(kernels.norm_back(gradient.clone(), x, statistics, weight, bias), exact):
        assert_near(given, expected.grad, rounding(dtype))


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
    qkv, bias, hidden = drawn(49, 3 * 8, dtype=dtype), drawn(1, 49, 49), drawn(2, 16, dtype=dtype)
    qkv[3, 20], hidden[0, 5] = value, value
    found = kernels.attention(qkv, None, bias, None, 1.0)
    expected = attention_of(qkv.double(), bias.double(), None, 1.0)
    assert torch.equal(found.isfinite(), expected.isfinite())
    normed = kernels.norm(hidden, torch.ones(16), torch.zeros(16), 1e-5)[0]
    assert normed.isnan()[0].any() and normed[1].isfinite().all()
    found, expected = kernels.gelu_back(torch.ones_like(hidden), hidden, None)[2], functional.gelu(hidden.double())
    assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.isinf(), expected.isinf())


@compiled
def test_processors_without_bfloat16_round_as_those_with_it(monkeypatch):
    x = drawn(300, 96, dtype=torch.bfloat16)
    x[0, :4] = torch.tensor([float("nan"), float("inf"), float("-inf"), 3e38])
    with_it = kernels.take(x, None, 1.7)[0]
    without = compiled_code.load(kernels.SOURCES, ["-mno-avx512bf16", *kernels.FLAGS], kernels.ARGUMENTS)
    monkeypatch.setattr(kernels, "library", lambda: without)
    torch.testing.assert_close(kernels.take(x, None, 1.7)[0], with_it, rtol=0, atol=0, equal_nan=True)


@compiled
def test_the_same_numbers_every_time(threads):
    x, gradient, weight = drawn(999, 96), drawn(999, 96), drawn(96)
    statistics = kernels.norm(x, weight, weight, 1e-5)[1:]
    first, second = (kernels.norm_back(gradient.clone(), x, statistics, weight, weight) for _ in range(2))
    assert all(map(torch.equal, first, second))


def calls() -> Iterator[Callable[[], object]]:
    """A call of each function, with parameters in float64, which kernels.c does not take."""
    x, weight = drawn(4, 16).double(), drawn(16).double()
    qkv, bias, mask = drawn(18, 24), drawn(1, 9, 9), shifted(9)
    yield lambda: kernels.attention(qkv, None, bias.double(), None, 1.0)
    yield lambda: kernels.attention_back(drawn(18, 8).double(), qkv.double(), None, bias.double(), mask.double(), 1.0)
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


@pytest.mark.parametrize("compiler", ["no-such-compiler", "cc -mno-avx512f"])
def test_without_compiler_or_vectors_pytorch_serves(compiler, tmp_path):
    assert library_of(CC=compiler, XDG_CACHE_HOME=str(tmp_path)) == "False"
