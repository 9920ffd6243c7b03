// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
/* Vectors of 16 float32 numbers, for processors with AVX-512.

   Arrays are float32 (`wide`) or bfloat16, and all arithmetic is float32. Threads are PyTorch's: its OpenMP library,
   which is loaded before this code, serves the pragmas. */

#ifndef VECTORS_H
#define VECTORS_H

#if !defined(__AVX512BW__) || !defined(__AVX512VL__) || !defined(__AVX512DQ__)
#error "the processor lacks AVX-512"
#endif

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>

#define INLINED static inline __attribute__((always_inline))
/* Calls an INLINED function whose last argument is `wide`, as a constant. */
#define BY_TYPE(function, ...) (wide ? function(__VA_ARGS__, 1) : function(__VA_ARGS__, 0))

#define SMALLEST -80.0f

enum { LANES = 16 };

/* The lanes of a vector that starts `left` elements before the end of an array. */
INLINED __mmask16 lanes(int64_t left) { return left >= LANES ? 0xffff : (1u << left) - 1; }

INLINED __m512 get(const void *array, int64_t at, __mmask16 mask, int wide)
{
    if (wide)
        return _mm512_maskz_loadu_ps(mask, (const float *)array + at);
    __m256i upper = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)array + at);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(upper), 16));
}

/* Rounds to the nearest bfloat16, to even in the middle. */
INLINED __m256i narrow(__m512 values)
{
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(values);
#else
    __m512i bits = _mm512_castps_si512(values),
            odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan =
        _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q); /* the sum could carry a NaN to infinity or zero */
    return _mm512_cvtepi32_epi16(
        _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000)), 16));
#endif
}

INLINED void set(void *array, int64_t at, __mmask16 mask, __m512 values, int wide)
{
    if (wide)
        _mm512_mask_storeu_ps((float *)array + at, mask, values);
    else
        _mm256_mask_storeu_epi16((uint16_t *)array + at, mask, narrow(values));
}

/* A vector of a row, plus the same part of a bias, if any. */
INLINED __m512 biased(const void *array, int64_t at, const float *bias, int64_t column, __mmask16 mask, int wide)
{
    __m512 values = get(array, at, mask, wide);
    return bias ? _mm512_add_ps(values, _mm512_maskz_loadu_ps(mask, bias + column)) : values;
}

INLINED void add_to(float *sums, __mmask16 mask, __m512 values)
{
    _mm512_mask_storeu_ps(sums, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, sums), values));
}

/* A polynomial by Horner's rule, highest power first. */
INLINED __m512 polynomial(__m512 x, const float *coefficients, int count)
{
    __m512 y = _mm512_set1_ps(coefficients[0]);
    for (int i = 1; i < count; i++)
        y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(coefficients[i]));
    return y;
}

/* e^x for x <= 0, NaN for NaN, 0 below SMALLEST: 2^n e^r with |r| <= ln(2) / 2, and a polynomial fitted to e^r by
   relative error. What is masked becomes 0 and not a denormal number, which processors multiply many times slower. */
INLINED __m512 exponential(__m512 x)
{
    static const float fitted[] = {
        1.383686972e-3f, 8.374816015e-3f, 4.166822515e-2f, 0.1666642017f, 0.4999999208f, 1.0f, 1.0f};
    __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(SMALLEST), _CMP_NLT_UQ); /* of NaN, too */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    return _mm512_maskz_scalef_ps(counts, polynomial(_mm512_fnmadd_ps(n, _mm512_set1_ps(0.693147181f), x), fitted, 7),
                                  n);
}

/* The part of [0, count) that the calling thread computes. */
INLINED void share(int64_t count, int64_t *first, int64_t *end)
{
    int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    *first = count * thread / threads;
    *end = count * (thread + 1) / threads;
}

#endif
