// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Vectors for the pixel operations of the input pipeline, which work on RGB bytes with interleaved channels.
//
// Each operation gives Pillow's result bit for bit (tests/dataset/test_pixels.py), so it uses Pillow's arithmetic, precision and
// order, and the compiler must not contract a multiplication and an addition into one instruction.
// Every buffer is allocated by the caller, dataset/pixels.py, which checks sizes.

#pragma once

#if !defined(__AVX2__) || !defined(__FMA__)
#error "a processor without AVX2 and FMA would be slower with this code than with Pillow"
#endif

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t byte16 __attribute__((vector_size(16)));
typedef int32_t int4 __attribute__((vector_size(16)));
typedef int32_t int8 __attribute__((vector_size(32)));
typedef float float8 __attribute__((vector_size(32)));
typedef double double4 __attribute__((vector_size(32)));

enum { CHANNELS = 3, LEVELS = 256 };

#ifdef __clang__
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (byte16){__VA_ARGS__})
#endif

static inline uint8_t clip(int value) { return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value; }

static inline byte16 load(const void *in) {
    byte16 values;
    memcpy(&values, in, sizeof values);
    return values;
}

static inline void store(byte16 values, void *out) { memcpy(out, &values, sizeof values); }

// Eight bytes as integers.
static inline int8 widened(const void *in) { return (int8)_mm256_cvtepu8_epi32(_mm_loadl_epi64(in)); }

// Integers as bytes, clipped; the first is the lowest byte.
static inline uint64_t clipped(int8 values) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)values), _mm256_extracti128_si256((__m256i)values, 1));
    return (uint64_t)_mm_cvtsi128_si64(_mm_packus_epi16(words, words));
}

// Writes a pixel. Except for the `last` of a row, a fourth byte is written, to be overwritten by the next pixel.
static inline void store_pixel(uint32_t pixel, int last, uint8_t *out) {
    if (last) memcpy(out, &pixel, CHANNELS);
    else memcpy(out, &pixel, sizeof pixel);
}
