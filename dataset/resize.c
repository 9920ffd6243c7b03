// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Resizing with antialiasing. A `stride` is the distance of two rows in bytes.

#include <math.h>
#include <stdlib.h>

#include "pixels.h"

enum { PRECISION = 22 }; // fractional bits of a filter's coefficients

static double bilinear(double x) { return fabs(x) < 1 ? 1 - fabs(x) : 0; }

static double bicubic(double x) {  // a = -0.5
    x = fabs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

typedef struct {
    int most;          // maximum number of input pixels per output pixel
    int room;          // for the weights of an output pixel
    int *first, *used; // per output pixel: its first input pixel, and their number
    int32_t *weights;  // see put_weight
} Filter;

#if defined(__AVX512BW__) && defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

// Four bytes are multiplied by four signed bytes at once: weights, which are less than 1.2, are sums of signed bytes times 1, 256
// and 65536. The sums of products equal those of 32-bit integers. Instead of rows or pixels beyond the last, others are read with
// weights of zero.

enum { AT_ONCE = 4, SIGNED_BYTES = 3 };

static int room_for(int count) { return (count + AT_ONCE - 1) / AT_ONCE * SIGNED_BYTES; }

// Pixels that may be read after those of an output pixel.
static int beyond(const Filter *filter) { return filter->room / SIGNED_BYTES * AT_ONCE; }

static void put_weight(int32_t *weights, int place, int32_t weight) {
    int8_t *at = (int8_t *)(weights + place / AT_ONCE * SIGNED_BYTES) + place % AT_ONCE;
    for (int i = 0; i < SIGNED_BYTES; i++, at += AT_ONCE) {
        *at = (int8_t)weight;
        weight = (weight - *at) >> 8;
    }
}

typedef struct {
    __m512i low, middle, high;
} Sums;

static inline void add(Sums *sums, __m512i bytes, const int32_t *weights) {
    sums->low = _mm512_dpbusd_epi32(sums->low, bytes, _mm512_set1_epi32(weights[0]));
    sums->middle = _mm512_dpbusd_epi32(sums->middle, bytes, _mm512_set1_epi32(weights[1]));
    sums->high = _mm512_dpbusd_epi32(sums->high, bytes, _mm512_set1_epi32(weights[2]));
}

// Sixteen levels, not clipped.
static inline __m512i total(const Sums *sums) {
    const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(sums->middle, 8), _mm512_slli_epi32(sums->high, 16));
    const __m512i half = _mm512_set1_epi32(1 << (PRECISION - 1));
    return _mm512_srai_epi32(_mm512_add_epi32(_mm512_add_epi32(sums->low, upper), half), PRECISION);
}

static inline __mmask64 first_bytes(int count) { return count >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << count) - 1; }

// Four rows of pixels, side by side: (red, green, blue, 0) of each.
static void interleave(const uint8_t *const rows[4], int count, uint32_t *out) {
    uint8_t places[64]; // of pixels 0, 4, 8, 12, 1, 5 and so on in a row
    for (int i = 0; i < 64; i++) places[i] = (uint8_t)(CHANNELS * (i / 4 % 4 * 4 + i / 16) + i % 4);
    const __m512i order = _mm512_loadu_si512(places);
    for (int i = 0; i < count; i += 16, out += 64) {
        const int here = count - i < 16 ? count - i : 16;
        __m512i row[4], pair[4];
        for (int k = 0; k < 4; k++) {
            const __m512i bytes = _mm512_maskz_loadu_epi8(first_bytes(CHANNELS * here), rows[k] + CHANNELS * i);
            row[k] = _mm512_maskz_permutexvar_epi8(0x7777777777777777u, order, bytes);
        }
        for (int k = 0; k < 2; k++) {
            pair[2 * k] = _mm512_unpacklo_epi32(row[2 * k], row[2 * k + 1]);
            pair[2 * k + 1] = _mm512_unpackhi_epi32(row[2 * k], row[2 * k + 1]);
        }
        const __m512i all[4] = {
            _mm512_unpacklo_epi64(pair[0], pair[2]), _mm512_unpackhi_epi64(pair[0], pair[2]),
            _mm512_unpacklo_epi64(pair[1], pair[3]), _mm512_unpackhi_epi64(pair[1], pair[3])};
        const uint32_t halves = here == 16 ? ~0u : (1u << 2 * here) - 1; // of the pixels
        for (int k = 0; k < 4; k++) _mm512_mask_storeu_epi64(out + 16 * k, (__mmask8)(halves >> 8 * k), all[k]);
    }
}

// For each output pixel, `fours` times four input pixels are read.
static inline __attribute__((always_inline)) void resize_by(int fours, const uint32_t *in, const Filter *across, int count,
                                                            uint8_t *const out[4]) {
    uint8_t places[64]; // the same channel of the same row of four pixels
    for (int i = 0; i < 64; i++) places[i] = (uint8_t)(i % 4 * 16 + i / 4);
    const __m512i order = _mm512_loadu_si512(places);
    for (int i = 0; i < count; i++) {
        const int32_t *weights = across->weights + (size_t)i * across->room;
        const uint32_t *pixels = in + (size_t)4 * across->first[i];
        Sums sums = {0};
        for (int k = 0; k < fours; k++, pixels += 4 * AT_ONCE, weights += SIGNED_BYTES)
            add(&sums, _mm512_permutexvar_epi8(order, _mm512_loadu_si512(pixels)), weights);
        const __m128i bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(total(&sums), _mm512_setzero_si512()));
        const int last = i == count - 1;
        store_pixel((uint32_t)_mm_extract_epi32(bytes, 0), last, out[0] + CHANNELS * i);
        store_pixel((uint32_t)_mm_extract_epi32(bytes, 1), last, out[1] + CHANNELS * i);
        store_pixel((uint32_t)_mm_extract_epi32(bytes, 2), last, out[2] + CHANNELS * i);
        store_pixel((uint32_t)_mm_extract_epi32(bytes, 3), last, out[3] + CHANNELS * i);
    }
}

static void resize_four_rows(const uint32_t *in, const Filter *across, int count, uint8_t *const out[4]) {
    const int fours = room_for(across->most) / SIGNED_BYTES;
    if (fours == 1) resize_by(1, in, across, count, out);
    else if (fours == 2) resize_by(2, in, across, count, out);
    else if (fours == 3) resize_by(3, in, across, count, out);
    else resize_by(fours, in, across, count, out);
}

// One output row from `used` rows of `bytes` values that are `stride` apart.
static void resize_column(const uint8_t *rows, int64_t stride, int bytes, const int32_t *weights, int used, uint8_t *out) {
    for (int i = 0; i < bytes; i += 64) {
        const __mmask64 here = first_bytes(bytes - i);
        Sums sums[4] = {0};
        for (int y = 0; y < used; y += AT_ONCE) {
            __m512i row[4];
            for (int k = 0; k < 4; k++) row[k] = _mm512_maskz_loadu_epi8(here, rows + i + stride * (y + k < used ? y + k : used - 1));
            const __m512i lower[2] = {_mm512_unpacklo_epi8(row[0], row[1]), _mm512_unpacklo_epi8(row[2], row[3])};
            const __m512i upper[2] = {_mm512_unpackhi_epi8(row[0], row[1]), _mm512_unpackhi_epi8(row[2], row[3])};
            const int32_t *four = weights + y / AT_ONCE * SIGNED_BYTES;
            add(&sums[0], _mm512_unpacklo_epi16(lower[0], lower[1]), four);
            add(&sums[1], _mm512_unpackhi_epi16(lower[0], lower[1]), four);
            add(&sums[2], _mm512_unpacklo_epi16(upper[0], upper[1]), four);
            add(&sums[3], _mm512_unpackhi_epi16(upper[0], upper[1]), four);
        }
        const __m512i first = _mm512_packs_epi32(total(&sums[0]), total(&sums[1]));
        const __m512i second = _mm512_packs_epi32(total(&sums[2]), total(&sums[3]));
        _mm512_mask_storeu_epi8(out + i, here, _mm512_packus_epi16(first, second));
    }
}

#else

static int room_for(int count) { return count; }

static int beyond(const Filter *filter) { return (void)filter, 0; }

static void put_weight(int32_t *weights, int place, int32_t weight) { weights[place] = weight; }

// Four rows of pixels, side by side: (red, green, blue, any value) of each.
static void interleave(const uint8_t *const rows[4], int count, uint32_t *restrict out) {
    const uint8_t *restrict a = rows[0], *restrict b = rows[1], *restrict c = rows[2], *restrict d = rows[3];
    for (int i = 0; i < CHANNELS * (count - 1); i += CHANNELS, out += 4) {
        memcpy(out, a + i, 4);
        memcpy(out + 1, b + i, 4);
        memcpy(out + 2, c + i, 4);
        memcpy(out + 3, d + i, 4);
    }
    for (int row = 0; row < 4; row++) memcpy(out + row, rows[row] + CHANNELS * (count - 1), CHANNELS);
}

static void resize_four_rows(const uint32_t *restrict in, const Filter *across, int count, uint8_t *const out[4]) {
    for (int i = 0; i < count; i++) {
        const int32_t *weights = across->weights + (size_t)i * across->room;
        const uint32_t *pixels = in + (size_t)4 * across->first[i];
        int8 upper = (int8){0} + (1 << (PRECISION - 1)), lower = upper;
        for (int x = 0; x < across->used[i]; x++, pixels += 4) {
            upper += widened(pixels) * weights[x];
            lower += widened(pixels + 2) * weights[x];
        }
        const uint64_t first = clipped(upper >> PRECISION), second = clipped(lower >> PRECISION);
        const int last = i == count - 1;
        store_pixel((uint32_t)first, last, out[0] + CHANNELS * i);
        store_pixel((uint32_t)(first >> 32), last, out[1] + CHANNELS * i);
        store_pixel((uint32_t)second, last, out[2] + CHANNELS * i);
        store_pixel((uint32_t)(second >> 32), last, out[3] + CHANNELS * i);
    }
}

// `blocks` times eight values of an output row, from `used` rows.
static inline __attribute__((always_inline)) void resize_part(const uint8_t *rows, int64_t stride, const int32_t *weights,
                                                              int used, int blocks, uint8_t *out) {
    int8 sums[6];
    for (int i = 0; i < blocks; i++) sums[i] = (int8){0} + (1 << (PRECISION - 1));
    for (int y = 0; y < used; y++, rows += stride)
        for (int i = 0; i < blocks; i++) sums[i] += widened(rows + 8 * i) * weights[y];
    for (int i = 0; i < blocks; i++) {
        const uint64_t bytes = clipped(sums[i] >> PRECISION);
        memcpy(out + 8 * i, &bytes, sizeof bytes);
    }
}

// One output row from `used` rows of `bytes` values that are `stride` apart.
static void resize_column(const uint8_t *rows, int64_t stride, int bytes, const int32_t *weights, int used, uint8_t *out) {
    int i = 0;
    for (; i + 48 <= bytes; i += 48) resize_part(rows + i, stride, weights, used, 6, out + i);
    for (; i + 8 <= bytes; i += 8) resize_part(rows + i, stride, weights, used, 1, out + i);
    for (; i < bytes; i++) {
        int sum = 1 << (PRECISION - 1);
        for (int y = 0; y < used; y++) sum += rows[y * stride + i] * weights[y];
        out[i] = clip(sum >> PRECISION);
    }
}

#endif

static void release(Filter *filter) {
    free(filter->first);
    free(filter->used);
    free(filter->weights);
}

// The weights of `in` pixels for pixels start..start+count of `out`, last first if `reversed`. 0 if memory is short.
static int prepare(Filter *filter, int is_cubic, int in, int out, int start, int count, int reversed) {
    const double scale = (double)in / out, stretch = scale < 1 ? 1 : scale, reach = (is_cubic ? 2 : 1) * stretch;
    const int most = (int)ceil(reach) * 2 + 1;
    filter->most = 0;
    filter->room = room_for(most);
    filter->first = malloc(sizeof(int) * count);
    filter->used = malloc(sizeof(int) * count);
    filter->weights = calloc((size_t)count * filter->room, sizeof(int32_t));
    double *exact = malloc(sizeof(double) * most);
    if (!filter->first || !filter->used || !filter->weights || !exact) {
        release(filter);
        free(exact);
        return 0;
    }
    for (int i = 0; i < count; i++) {
        const int place = reversed ? count - 1 - i : i;
        const double centre = (start + i + 0.5) * scale, shrink = 1 / stretch;
        int first = (int)(centre - reach + 0.5), end = (int)(centre + reach + 0.5);
        if (first < 0) first = 0;
        if (end > in) end = in;
        double sum = 0;
        for (int x = first; x < end; x++) {
            const double at = (x - centre + 0.5) * shrink;
            sum += exact[x - first] = is_cubic ? bicubic(at) : bilinear(at);
        }
        int32_t *weights = filter->weights + (size_t)place * filter->room;
        for (int x = 0; x < end - first; x++) {
            const double weight = (sum != 0 ? exact[x] / sum : exact[x]) * (1 << PRECISION);
            put_weight(weights, x, (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5));
        }
        filter->first[place] = first;
        filter->used[place] = end - first;
        if (filter->most < end - first) filter->most = end - first;
    }
    free(exact);
    return 1;
}

// Resizes `count` rows of `in` horizontally, to (count, width).
static void resize_rows(const uint8_t *in, int64_t stride, int in_width, int count, const Filter *across, int width,
                        uint32_t *four, uint8_t *out) {
    for (int y = 0; y < count; y += 4) {
        const uint8_t *from[4];
        uint8_t *to[4];
        for (int row = 0; row < 4; row++) { // beyond the last row, the last row
            const int64_t at = y + row < count ? y + row : count - 1;
            from[row] = in + at * stride;
            to[row] = out + at * CHANNELS * width;
        }
        interleave(from, in_width, four);
        resize_four_rows(four, across, width, to);
    }
}

// Resizes rows of a picture vertically, to (height, width).
static void resize_columns(const uint8_t *in, int64_t stride, int width, const Filter *down, int height, uint8_t *out) {
    for (int y = 0; y < height; y++, out += CHANNELS * width)
        resize_column(in + down->first[y] * stride, stride, CHANNELS * width, down->weights + (size_t)y * down->room,
                      down->used[y], out);
}

// Makes a filter's positions relative to the first one used; returns that one, and the number of positions used.
static int narrow(Filter *filter, int count, int *used) {
    int first = filter->first[0], end = 0;
    for (int i = 0; i < count; i++) {
        if (filter->first[i] < first) first = filter->first[i];
        if (filter->first[i] + filter->used[i] > end) end = filter->first[i] + filter->used[i];
    }
    for (int i = 0; i < count; i++) filter->first[i] -= first;
    *used = end - first;
    return first;
}

// Columns left..left+width and rows top..top+height of a picture (in_height, in_width) resized to (out_height, out_width),
// flipped horizontally if `mirrored`. `in` has the columns x..x+wide and the rows y..y+high of the picture. Both passes round, so
// their order matters. 0 if memory is short, or if `in` has too little of the picture.
int resize(const uint8_t *in, int64_t stride, int x, int y, int wide, int high, int in_width, int in_height, int out_width,
           int out_height, int left, int top, int width, int height, int is_cubic, int columns_first, int mirrored,
           uint8_t *out) {
    Filter across, down;
    if (!prepare(&across, is_cubic, in_width, out_width, left, width, mirrored)) return 0;
    if (!prepare(&down, is_cubic, in_height, out_height, top, height, 0)) return release(&across), 0;
    int columns, rows; // that are needed
    const int column = narrow(&across, width, &columns) - x, row = narrow(&down, height, &rows) - y;
    if (column < 0 || row < 0 || column + columns > wide || row + rows > high) return release(&across), release(&down), 0;
    in += CHANNELS * column + stride * row;
    uint8_t *between = malloc((size_t)CHANNELS * (columns_first ? (size_t)columns * height : (size_t)width * rows));
    uint32_t *four = calloc(4 * ((size_t)columns + beyond(&across)), sizeof(uint32_t));
    const int enough = between && four;
    if (enough && columns_first) {
        resize_columns(in, stride, columns, &down, height, between);
        resize_rows(between, (int64_t)CHANNELS * columns, columns, height, &across, width, four, out);
    } else if (enough) {
        resize_rows(in, stride, columns, rows, &across, width, four, between);
        resize_columns(between, (int64_t)CHANNELS * width, width, &down, height, out);
    }
    free(between);
    free(four);
    release(&across);
    release(&down);
    return enough;
}

