// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
/* Layer norm, GELU and moves of rows, each in one pass over its arrays; kernels.py describes the functions. */

#include "vectors.h"

/* The share of a normal distribution below x, and its density at x. The smaller share times e^(x^2 / 2) is a
   polynomial of t = 1 / (1 + 0.28 |x|), fitted by relative error. */
INLINED __m512 normal(__m512 x, __m512 *density)
{
    static const float fitted[] = {
        2.472001564e-2f, -9.359326943e-2f, 9.242831695e-2f, -6.449319161e-3f, 7.277506373e-2f,
        8.363078112e-2f, 0.1030846655f,    0.1116998028f,   0.1117038577f,    0.0f};
    __m512 one = _mm512_set1_ps(1.0f), half = _mm512_mul_ps(x, _mm512_set1_ps(-0.5f));
    __m512 away = _mm512_min_ps(_mm512_set1_ps(100.0f), _mm512_abs_ps(x)); /* finite; of NaN, it returns the second */
    __m512 above = _mm512_fmadd_ps(_mm512_set1_ps(0.28f), away, one), t = _mm512_rcp14_ps(above);
    t = _mm512_mul_ps(t, _mm512_fnmadd_ps(above, t, _mm512_set1_ps(2.0f))); /* in a third of the time of a division */
    __m512 power = exponential(_mm512_mul_ps(half, x)), smaller = _mm512_mul_ps(polynomial(t, fitted, 10), power);
    *density = _mm512_mul_ps(power, _mm512_set1_ps(0.39894228f));
    return _mm512_mask_sub_ps(smaller, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), one, smaller);
}

INLINED void gelu_row(const void *inputs, const float *bias, void *active, int64_t at, int size, int wide)
{
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = lanes(size - i);
        __m512 x = biased(inputs, at + i, bias, i, mask, wide), density;
        set(active, at + i, mask, _mm512_mul_ps(x, normal(x, &density)), wide);
    }
}

INLINED void gelu_back_row(void *gradient, const void *inputs, const float *bias, void *active, float *sums, int64_t at,
                           int size, int wide)
{
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = lanes(size - i);
        __m512 x = biased(inputs, at + i, bias, i, mask, wide), density, below = normal(x, &density);
        __m512 found = _mm512_mul_ps(get(gradient, at + i, mask, wide), _mm512_fmadd_ps(x, density, below));
        set(active, at + i, mask, _mm512_mul_ps(x, below), wide);
        set(gradient, at + i, mask, found, wide);
        add_to(sums + i, mask, found);
    }
}

INLINED void norm_row(const void *x, int64_t from, const float *weight, const float *bias, float eps, void *out,
                      float *mean, float *inverse, int64_t to, int size, int wide)
{
    __m512 total = _mm512_setzero_ps(), squares = _mm512_setzero_ps(), middle, scale;
    for (int i = 0; i < size; i += LANES)
        total = _mm512_add_ps(total, get(x, from + i, lanes(size - i), wide));
    *mean = _mm512_reduce_add_ps(total) / size;
    middle = _mm512_set1_ps(*mean);
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = lanes(size - i);
        __m512 away = _mm512_maskz_sub_ps(mask, get(x, from + i, mask, wide), middle);
        squares = _mm512_fmadd_ps(away, away, squares);
    }
    *inverse = 1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / size + eps);
    scale = _mm512_set1_ps(*inverse);
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = lanes(size - i);
        __m512 normed = _mm512_mul_ps(_mm512_sub_ps(get(x, from + i, mask, wide), middle), scale);
        __m512 factor = _mm512_maskz_loadu_ps(mask, weight + i), added = _mm512_maskz_loadu_ps(mask, bias + i);
        set(out, to + i, mask, _mm512_fmadd_ps(normed, factor, added), wide);
    }
}

/* `sums` are those of the weight, then of the bias. */
INLINED void norm_back_row(void *gradient, const void *x, int64_t from, const float *weight, float mean, float inverse,
                           float *sums, int64_t at, int size, int wide)
{
    __m512 middle = _mm512_set1_ps(mean), scale = _mm512_set1_ps(inverse);
    __m512 total = _mm512_setzero_ps(), dot = _mm512_setzero_ps();
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = lanes(size - i);
        __m512 g = get(gradient, at + i, mask, wide),
               weighted = _mm512_mul_ps(g, _mm512_maskz_loadu_ps(mask, weight + i));
        __m512 normed = _mm512_mul_ps(_mm512_sub_ps(get(x, from + i, mask, wide), middle), scale);
        total = _mm512_add_ps(total, weighted);
        dot = _mm512_fmadd_ps(weighted, normed, dot);
        add_to(sums + i, mask, _mm512_mul_ps(g, normed));
        add_to(sums + size + i, mask, g);
    }
    total = _mm512_set1_ps(_mm512_reduce_add_ps(total) / size);
    dot = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / size);
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = lanes(size - i);
        __m512 normed = _mm512_mul_ps(_mm512_sub_ps(get(x, from + i, mask, wide), middle), scale);
        __m512 found = _mm512_mul_ps(get(gradient, at + i, mask, wide), _mm512_maskz_loadu_ps(mask, weight + i));
        found = _mm512_fnmadd_ps(normed, dot, _mm512_sub_ps(found, total));
        set(gradient, at + i, mask, _mm512_mul_ps(found, scale), wide);
    }
}

void gelu(const void *inputs, const float *bias, void *active, int64_t count, int size, int wide)
{
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++)
        BY_TYPE(gelu_row, inputs, bias, active, i * size, size);
}

/* Here and below, each thread has sums of its own, so that the order of additions is the same every time. */
void gelu_back(void *gradient, const void *inputs, const float *bias, void *active, float *sums, int64_t count,
               int size, int wide)
{
#pragma omp parallel
    {
        int64_t first, end;
        float *own = sums + size * omp_get_thread_num();
        share(count, &first, &end);
        for (int64_t i = first; i < end; i++)
            BY_TYPE(gelu_back_row, gradient, inputs, bias, active, own, i * size, size);
    }
}

void norm(const void *x, const int64_t *rows, const float *weight, const float *bias, float eps, void *out, float *mean,
          float *inverse, int64_t count, int size, int wide)
{
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++) {
        int64_t from = (rows ? rows[i] : i) * size;
        BY_TYPE(norm_row, x, from, weight, bias, eps, out, mean + i, inverse + i, i * size, size);
    }
}

void norm_back(void *gradient, const void *x, const int64_t *rows, const float *weight, const float *mean,
               const float *inverse, float *sums, int64_t count, int size, int wide)
{
#pragma omp parallel
    {
        int64_t first, end;
        float *own = sums + 2 * size * omp_get_thread_num();
        share(count, &first, &end);
        for (int64_t i = first; i < end; i++) {
            int64_t from = (rows ? rows[i] : i) * size;
            BY_TYPE(norm_back_row, gradient, x, from, weight, mean[i], inverse[i], own, i * size, size);
        }
    }
}

INLINED void take_row(const void *x, int64_t from, void *out, float *sums, int64_t to, int size, float scale, int wide)
{
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = lanes(size - i);
        __m512 values = _mm512_mul_ps(get(x, from + i, mask, wide), _mm512_set1_ps(scale));
        set(out, to + i, mask, values, wide);
        add_to(sums + i, mask, values);
    }
}

void take(const void *x, const int64_t *rows, void *out, float *sums, int64_t count, int size, float scale, int wide)
{
#pragma omp parallel
    {
        int64_t first, end;
        float *own = sums + size * omp_get_thread_num();
        share(count, &first, &end);
        for (int64_t i = first; i < end; i++) {
            int64_t from = (rows ? rows[i] : i) * size;
            BY_TYPE(take_row, x, from, out, own, i * size, size, scale);
        }
    }
}

INLINED void add_row(const void *x, const void *values, int64_t from, const float *bias, void *out, int64_t at,
                     int size, float scale, int wide)
{
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = lanes(size - i);
        __m512 added = biased(values, from + i, bias, i, mask, wide);
        set(out, at + i, mask, _mm512_fmadd_ps(added, _mm512_set1_ps(scale), get(x, at + i, mask, wide)), wide);
    }
}

void add_rows(const void *x, const int64_t *rows, const void *values, const float *bias, void *out, int64_t count,
              int size, float scale, int wide)
{
#pragma omp parallel for
    for (int64_t i = 0; i < count; i++) {
        int64_t to = (rows ? rows[i] : i) * size;
        BY_TYPE(add_row, x, values, i * size, bias, out, to, size, scale);
    }
}
