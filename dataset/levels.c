// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Pixel levels: lookup tables, histograms, blends, and conversion to planes.

#include <math.h>

#include "pixels.h"

enum { BLOCK = 16 }; // pixels whose channels are separated at once

static inline void take_apart(const uint8_t *in, byte16 out[CHANNELS]) {
    const byte16 a = load(in), b = load(in + 16), c = load(in + 32);
    out[0] = SHUFFLED(SHUFFLED(a, b, 0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0, 0, 0, 0, 0), c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 20, 23, 26, 29);
    out[1] = SHUFFLED(SHUFFLED(a, b, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 0, 0, 0, 0, 0), c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 18, 21, 24, 27, 30);
    out[2] = SHUFFLED(SHUFFLED(a, b, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0, 0, 0, 0, 0, 0), c, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 19, 22, 25, 28, 31);
}

static inline void put_together(const byte16 in[CHANNELS], uint8_t *out) {
    store(SHUFFLED(SHUFFLED(in[0], in[1], 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5), in[2], 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15), out + 0);
    store(SHUFFLED(SHUFFLED(in[0], in[1], 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26), in[2], 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15), out + 16);
    store(SHUFFLED(SHUFFLED(in[0], in[1], 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0), in[2], 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31), out + 32);
}

void histogram(const uint8_t *in, int64_t pixels, int32_t *counts) {
    memset(counts, 0, sizeof(int32_t) * CHANNELS * LEVELS);
    for (int64_t i = 0; i < pixels; i++, in += CHANNELS)
        for (int c = 0; c < CHANNELS; c++) counts[c * LEVELS + in[c]]++;
}

void look_up(const uint8_t *restrict in, int64_t pixels, const uint8_t *restrict table, uint8_t *restrict out) {
    for (int64_t i = 0; i < pixels; i++, in += CHANNELS, out += CHANNELS) {
        out[0] = table[in[0]];
        out[1] = table[LEVELS + in[1]];
        out[2] = table[2 * LEVELS + in[2]];
    }
}

static inline int grey(const uint8_t *in) { return (in[0] * 19595 + in[1] * 38470 + in[2] * 7471 + 0x8000) >> 16; }

static inline int8 greys(int8 red, int8 green, int8 blue) { return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16; }

// Grey levels of eight pixels, the first or the second `half` of a block.
static inline int8 greys_of(const byte16 block[CHANNELS], int half) {
    int8 channels[CHANNELS];
    for (int c = 0; c < CHANNELS; c++) channels[c] = widened((const uint8_t *)(block + c) + 8 * half);
    return greys(channels[0], channels[1], channels[2]);
}

void sum_of_greys(const uint8_t *in, int64_t pixels, int64_t *out) {
    int64_t sum = 0, i = 0;
    for (; i + BLOCK <= pixels; i += BLOCK, in += CHANNELS * BLOCK) {
        byte16 block[CHANNELS];
        take_apart(in, block);
        const int8 both = greys_of(block, 0) + greys_of(block, 1);
        for (int lane = 0; lane < 8; lane++) sum += both[lane];
    }
    for (; i < pixels; i++, in += CHANNELS) sum += grey(in);
    *out = sum;
}

static inline uint8_t blend(int from, int to, float share) {
    const float value = (float)from + share * (float)(to - from);
    return value <= 0 ? 0 : value >= 255 ? 255 : (uint8_t)value;
}

static inline uint64_t blended(int8 from, int8 to, float share) {
    const float8 value = __builtin_convertvector(from, float8) + share * __builtin_convertvector(to - from, float8);
    return clipped(__builtin_convertvector(value, int8));
}

// From the grey picture (share 0) to the picture (share 1) and beyond.
void saturate(const uint8_t *in, int64_t pixels, float share, uint8_t *out) {
    int64_t i = 0;
    for (; i + BLOCK <= pixels; i += BLOCK, in += CHANNELS * BLOCK, out += CHANNELS * BLOCK) {
        byte16 block[CHANNELS], result[CHANNELS];
        take_apart(in, block);
        for (int half = 0; half < 2; half++) {
            const int8 level = greys_of(block, half);
            for (int c = 0; c < CHANNELS; c++) {
                const uint64_t bytes = blended(level, widened((const uint8_t *)(block + c) + 8 * half), share);
                memcpy((uint8_t *)(result + c) + 8 * half, &bytes, sizeof bytes);
            }
        }
        put_together(result, out);
    }
    for (; i < pixels; i++, in += CHANNELS, out += CHANNELS)
        for (int c = 0; c < CHANNELS; c++) out[c] = blend(grey(in), in[c], share);
}

// The weighted mean of 3x3 values, rounded to nearest; 5042 / 2^16 divides by 13 exactly for values this small.
#define SMOOTH(at, above, here, below)                                                                           \
    (((at(above - 3) + at(above) + at(above + 3) + at(here - 3) + 5 * at(here) + at(here + 3) + at(below - 3) + at(below) + \
       at(below + 3) + 6) * 5042) >> 16)
#define ONE(place) (*(place))

// From the picture smoothed by a 3x3 filter (share 0) to the picture (share 1) and beyond. Edges are unchanged.
void sharpen(const uint8_t *in, int width, int height, float share, uint8_t *restrict out) {
    const int bytes = CHANNELS * width, end = bytes - CHANNELS;
    memcpy(out, in, (size_t)bytes * height);
    for (int y = 1; y < height - 1; y++) {
        const uint8_t *above = in + (size_t)(y - 1) * bytes, *here = above + bytes, *below = here + bytes;
        uint8_t *row = out + (size_t)y * bytes;
        int i = CHANNELS;
        for (; i + 8 <= end; i += 8) {
            const uint64_t eight = blended(SMOOTH(widened, (above + i), (here + i), (below + i)), widened(here + i), share);
            memcpy(row + i, &eight, sizeof eight);
        }
        for (; i < end; i++) row[i] = blend(SMOOTH(ONE, (above + i), (here + i), (below + i)), here[i], share);
    }
}

// Planes of values looked up in a table: out[c][i] = table[c][in[i][c]].

#define PLANES(name, type)                                                                              \
    void name(const uint8_t *restrict in, int64_t pixels, const type *restrict table, type *restrict out) { \
        for (int64_t i = 0; i < pixels; i++, in += CHANNELS) {                                            \
            out[i] = table[in[0]];                                                                        \
            out[pixels + i] = table[LEVELS + in[1]];                                                      \
            out[2 * pixels + i] = table[2 * LEVELS + in[2]];                                              \
        }                                                                                                 \
    }

PLANES(mapped_planes_of_bytes, uint8_t)
PLANES(mapped_planes_of_floats, float)

// The same without a table: out[c][i] = in[i][c].
void planes_of_bytes(const uint8_t *in, int64_t pixels, uint8_t *out) {
    int64_t i = 0;
    for (; i + BLOCK <= pixels; i += BLOCK, in += CHANNELS * BLOCK) {
        byte16 block[CHANNELS];
        take_apart(in, block);
        for (int c = 0; c < CHANNELS; c++) store(block[c], out + pixels * c + i);
    }
    for (; i < pixels; i++, in += CHANNELS)
        for (int c = 0; c < CHANNELS; c++) out[pixels * c + i] = in[c];
}

// out[c][i] = in[i][c] * scale[c] + shift[c], rounded twice.
void planes_of_floats(const uint8_t *in, int64_t pixels, const float *scale, const float *shift, float *out) {
    int64_t i = 0;
    for (; i + BLOCK <= pixels; i += BLOCK, in += CHANNELS * BLOCK) {
        byte16 block[CHANNELS];
        take_apart(in, block);
        for (int c = 0; c < CHANNELS; c++)
            for (int half = 0; half < 2; half++) {
                const int8 levels = widened((const uint8_t *)(block + c) + 8 * half);
                const float8 values = __builtin_convertvector(levels, float8) * scale[c] + shift[c];
                memcpy(out + pixels * c + i + 8 * half, &values, sizeof values);
            }
    }
    for (; i < pixels; i++, in += CHANNELS)
        for (int c = 0; c < CHANNELS; c++) out[pixels * c + i] = in[c] * scale[c] + shift[c];
}

// Swaps `bytes` bytes of each of `rows` rows, `stride` bytes apart, in each of `planes` planes, `plane` bytes apart.
void exchange(uint8_t *restrict one, uint8_t *restrict other, int64_t planes, int64_t plane, int64_t rows, int64_t stride,
              int64_t bytes) {
    for (int64_t p = 0; p < planes; p++)
        for (int64_t y = 0; y < rows; y++) {
            uint8_t *restrict a = one + p * plane + y * stride, *restrict b = other + p * plane + y * stride;
            for (int64_t i = 0; i < bytes; i++) {
                const uint8_t kept = a[i];
                a[i] = b[i];
                b[i] = kept;
            }
        }
}

// Rounds normalised values (rows, columns) to levels, halves to even, in rows `stride` bytes apart.
void to_levels(const float *restrict in, int64_t rows, int64_t columns, float std, float mean, uint8_t *restrict out,
               int64_t stride) {
    for (int64_t y = 0; y < rows; y++, in += columns, out += stride)
        for (int64_t x = 0; x < columns; x++) {
            const float level = rintf((in[x] * std + mean) * 255);
            out[x] = (uint8_t)(level < 0 ? 0 : level > 255 ? 255 : level);
        }
}

// Mixes two pictures in place: each becomes `share` of itself plus `rest` of the other. Bytes are rounded to nearest, halves to
// even, by adding 2^23, above which floats have no fraction.

static inline float as_it_is(float value) { return value; }

static inline float to_level(float value) { return value + 8388608.0f - 8388608.0f; }

#define MIX(name, type, rounded)                                                                       \
    void name(type *restrict one, type *restrict other, int64_t count, float share, float rest) {         \
        for (int64_t i = 0; i < count; i++) {                                                              \
            const float a = one[i], b = other[i];                                                          \
            one[i] = (type)rounded(a * share + b * rest);                                                  \
            other[i] = (type)rounded(b * share + a * rest);                                                \
        }                                                                                                  \
    }

MIX(mix_bytes, uint8_t, to_level)
MIX(mix_floats, float, as_it_is)
