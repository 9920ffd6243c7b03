// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
/* What lies between the matrix products of a block, each in one pass, for processors with AVX-512; kernels.py describes
   the functions.

   Arrays are float32 (`wide`) or bfloat16, and all arithmetic is float32, 16 numbers at a time. Threads are PyTorch's:
   its OpenMP library, which is loaded before this one, serves the pragmas. */

#if !defined(__AVX512BW__) || !defined(__AVX512VL__) || !defined(__AVX512BF16__)
#error "the processor lacks AVX-512 with bfloat16"
#endif

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>

#define INLINED static inline __attribute__((always_inline)) /* so that `wide` is a constant in loops */

enum { LANES = 16, LONGEST = 1024 / LANES }; /* vectors of a row of scores */

/* The lanes of a vector that begins `left` elements before the end of an array. */
INLINED __mmask16 lanes(int64_t left) { return left >= LANES ? 0xffff : (1u << left) - 1; }

INLINED __m512 get(const void *array, int64_t at, __mmask16 mask, int wide)
{
    if (wide)
        return _mm512_maskz_loadu_ps(mask, (const float *)array + at);
    __m256i upper = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)array + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
}

INLINED void set(void *array, int64_t at, __mmask16 mask, __m512 values, int wide)
{
    if (wide)
        _mm512_mask_storeu_ps((float *)array + at, mask, values);
    else
        _mm256_mask_storeu_epi16((uint16_t *)array + at, mask, (__m256i)_mm512_cvtneps_pbh(values));
}

/* A polynomial by Horner's rule, highest power first. */
INLINED __m512 polynomial(__m512 x, const float *coefficients, int count)
{
    __m512 y = _mm512_set1_ps(coefficients[0]);
    for (int i = 1; i < count; i++)
        y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(coefficients[i]));
    return y;
}

/* e^x of x <= 0, NaN of NaN: 2^n e^r with |r| <= ln(2) / 2, and a polynomial fitted to e^r by relative error. */
INLINED __m512 exponential(__m512 x)
{
    static const float fitted[] = {1.383686972e-3f, 8.374816015e-3f, 4.166822515e-2f, 0.1666642017f,
                                   0.4999999208f,   1.0f,            1.0f};
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x); /* of NaN, it returns the second */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    return _mm512_scalef_ps(polynomial(_mm512_fnmadd_ps(n, _mm512_set1_ps(0.693147181f), x), fitted, 7), n);
}

/* The share of a normal distribution below x, and its density at x. The smaller share times e^(x^2 / 2) is a
   polynomial of t = 1 / (1 + 0.28 |x|), fitted by relative error. */
INLINED __m512 normal(__m512 x, __m512 *density)
{
    static const float fitted[] = {2.472001564e-2f, -9.359326943e-2f, 9.242831695e-2f, -6.449319161e-3f, 7.277506373e-2f,
                                   8.363078112e-2f, 0.1030846655f,    0.1116998028f,   0.1117038577f,    0.0f};
    __m512 one = _mm512_set1_ps(1.0f), half = _mm512_mul_ps(x, _mm512_set1_ps(-0.5f));
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_set1_ps(0.28f), _mm512_abs_ps(x), one));
    __m512 power = exponential(_mm512_mul_ps(half, x)), smaller = _mm512_mul_ps(polynomial(t, fitted, 10), power);
    *density = _mm512_mul_ps(power, _mm512_set1_ps(0.39894228f));
    return _mm512_mask_sub_ps(smaller, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), one, smaller);
}

/* The part of [0, count) that is the calling thread's. */
static void share(int64_t count, int64_t *first, int64_t *end)
{
    int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    *first = count * thread / threads;
    *end = count * (thread + 1) / threads;
}

INLINED void softmax_row(const void *scores, const float *bias, void *out, int64_t at, int tokens, float scale, int wide)
{
    __m512 row[LONGEST], most = _mm512_set1_ps(-__builtin_inff()), total = _mm512_setzero_ps();
    for (int i = 0; i < tokens; i += LANES) {
        __mmask16 mask = lanes(tokens - i);
        __m512 added = _mm512_maskz_loadu_ps(mask, bias + i);
        row[i / LANES] = _mm512_fmadd_ps(get(scores, at + i, mask, wide), _mm512_set1_ps(scale), added);
        most = _mm512_mask_max_ps(most, mask, most, row[i / LANES]);
    }
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int i = 0; i < tokens; i += LANES) {
        row[i / LANES] = exponential(_mm512_sub_ps(row[i / LANES], most));
        total = _mm512_mask_add_ps(total, lanes(tokens - i), total, row[i / LANES]);
    }
    total = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
    for (int i = 0; i < tokens; i += LANES)
        set(out, at + i, lanes(tokens - i), _mm512_mul_ps(row[i / LANES], total), wide);
}

INLINED void softmax_back_row(void *gradient, const void *attention, float *sums, int64_t at, int tokens, float scale,
                              int wide)
{
    __m512 dot = _mm512_setzero_ps();
    for (int i = 0; i < tokens; i += LANES) {
        __mmask16 mask = lanes(tokens - i);
        dot = _mm512_fmadd_ps(get(gradient, at + i, mask, wide), get(attention, at + i, mask, wide), dot);
    }
    dot = _mm512_set1_ps(_mm512_reduce_add_ps(dot));
    for (int i = 0; i < tokens; i += LANES) {
        __mmask16 mask = lanes(tokens - i);
        __m512 found = _mm512_sub_ps(get(gradient, at + i, mask, wide), dot);
        found = _mm512_mul_ps(found, get(attention, at + i, mask, wide));
        _mm512_mask_storeu_ps(sums + i, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, sums + i), found));
        set(gradient, at + i, mask, _mm512_mul_ps(found, _mm512_set1_ps(scale)), wide);
    }
}

INLINED void gelu_back_lanes(void *gradient, const void *inputs, void *active, int64_t at, __mmask16 mask, int wide)
{
    __m512 x = get(inputs, at, mask, wide), density, below = normal(x, &density);
    __m512 slope = _mm512_fmadd_ps(x, density, below);
    set(active, at, mask, _mm512_mul_ps(x, below), wide);
    set(gradient, at, mask, _mm512_mul_ps(get(gradient, at, mask, wide), slope), wide);
}

INLINED void norm_row(const void *x, const float *weight, const float *bias, float eps, void *out, float *mean,
                      float *inverse, int64_t at, int size, int wide)
{
    __m512 total = _mm512_setzero_ps(), squares = _mm512_setzero_ps(), middle, scale;
    for (int i = 0; i < size; i += LANES)
        total = _mm512_add_ps(total, get(x, at + i, lanes(size - i), wide));
    *mean = _mm512_reduce_add_ps(total) / size;
    middle = _mm512_set1_ps(*mean);
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = lanes(size - i);
        __m512 away = _mm512_maskz_sub_ps(mask, get(x, at + i, mask, wide), middle);
        squares = _mm512_fmadd_ps(away, away, squares);
    }
    *inverse = 1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / size + eps);
    scale = _mm512_set1_ps(*inverse);
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = lanes(size - i);
        __m512 normed = _mm512_mul_ps(_mm512_sub_ps(get(x, at + i, mask, wide), middle), scale);
        __m512 factor = _mm512_maskz_loadu_ps(mask, weight + i), added = _mm512_maskz_loadu_ps(mask, bias + i);
        set(out, at + i, mask, _mm512_fmadd_ps(normed, factor, added), wide);
    }
}

/* `sums` are those of the weight, then of the bias. */
INLINED void norm_back_row(void *gradient, const void *x, const float *weight, float mean, float inverse, float *sums,
                           int64_t at, int size, int wide)
{
    __m512 middle = _mm512_set1_ps(mean), scale = _mm512_set1_ps(inverse);
    __m512 total = _mm512_setzero_ps(), dot = _mm512_setzero_ps();
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = lanes(size - i);
        __m512 g = get(gradient, at + i, mask, wide), weighted = _mm512_mul_ps(g, _mm512_maskz_loadu_ps(mask, weight + i));
        __m512 normed = _mm512_mul_ps(_mm512_sub_ps(get(x, at + i, mask, wide), middle), scale);
        total = _mm512_add_ps(total, weighted);
        dot = _mm512_fmadd_ps(weighted, normed, dot);
        _mm512_mask_storeu_ps(sums + i, mask, _mm512_fmadd_ps(g, normed, _mm512_maskz_loadu_ps(mask, sums + i)));
        _mm512_mask_storeu_ps(sums + size + i, mask, _mm512_add_ps(g, _mm512_maskz_loadu_ps(mask, sums + size + i)));
    }
    total = _mm512_set1_ps(_mm512_reduce_add_ps(total) / size);
    dot = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / size);
    for (int i = 0; i < size; i += LANES) {
        __mmask16 mask = lanes(size - i);
        __m512 normed = _mm512_mul_ps(_mm512_sub_ps(get(x, at + i, mask, wide), middle), scale);
        __m512 found = _mm512_mul_ps(get(gradient, at + i, mask, wide), _mm512_maskz_loadu_ps(mask, weight + i));
        found = _mm512_fnmadd_ps(normed, dot, _mm512_sub_ps(found, total));
        set(gradient, at + i, mask, _mm512_mul_ps(found, scale), wide);
    }
}

/* Rows of the bias are divided among the threads, so that no two add to the same sums. */
void softmax(const void *scores, const float *bias, void *out, int64_t rows, int64_t period, int tokens, float scale,
             int wide)
{
#pragma omp parallel
    {
        int64_t first, end;
        share(period, &first, &end);
        for (int64_t base = 0; base < rows; base += period)
            for (int64_t row = first; row < end; row++) {
                const float *added = bias + row * tokens;
                if (wide)
                    softmax_row(scores, added, out, (base + row) * tokens, tokens, scale, 1);
                else
                    softmax_row(scores, added, out, (base + row) * tokens, tokens, scale, 0);
            }
    }
}

void softmax_back(void *gradient, const void *attention, float *sums, int64_t rows, int64_t period, int tokens,
                  float scale, int wide)
{
#pragma omp parallel
    {
        int64_t first, end;
        share(period, &first, &end);
        for (int64_t base = 0; base < rows; base += period)
            for (int64_t row = first; row < end; row++) {
                float *added = sums + row * tokens;
                if (wide)
                    softmax_back_row(gradient, attention, added, (base + row) * tokens, tokens, scale, 1);
                else
                    softmax_back_row(gradient, attention, added, (base + row) * tokens, tokens, scale, 0);
            }
    }
}

void gelu_back(void *gradient, const void *inputs, void *active, int64_t count, int wide)
{
#pragma omp parallel for
    for (int64_t at = 0; at < count; at += LANES)
        if (wide)
            gelu_back_lanes(gradient, inputs, active, at, lanes(count - at), 1);
        else
            gelu_back_lanes(gradient, inputs, active, at, lanes(count - at), 0);
}

void norm(const void *x, const float *weight, const float *bias, float eps, void *out, float *mean, float *inverse,
          int64_t rows, int size, int wide)
{
#pragma omp parallel for
    for (int64_t row = 0; row < rows; row++)
        if (wide)
            norm_row(x, weight, bias, eps, out, mean + row, inverse + row, row * size, size, 1);
        else
            norm_row(x, weight, bias, eps, out, mean + row, inverse + row, row * size, size, 0);
}

/* Each thread has sums of its own, so that the order of additions is the same every time. */
void norm_back(void *gradient, const void *x, const float *weight, const float *mean, const float *inverse, float *sums,
               int64_t rows, int size, int wide)
{
#pragma omp parallel
    {
        int64_t first, end;
        float *own = sums + 2 * size * omp_get_thread_num();
        share(rows, &first, &end);
        for (int64_t row = first; row < end; row++)
            if (wide)
                norm_back_row(gradient, x, weight, mean[row], inverse[row], own, row * size, size, 1);
            else
                norm_back_row(gradient, x, weight, mean[row], inverse[row], own, row * size, size, 0);
    }
}
