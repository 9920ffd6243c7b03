// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Pixel operations of the input pipeline, on RGB bytes with interleaved channels. Each gives Pillow's result bit for bit
// (tests/dataset/test_pixels.py): the arithmetic, its precision and its order are therefore Pillow's, and the compiler
// must not contract a multiplication and an addition into one instruction.
//
// Every buffer is allocated by the caller, dataset/pixels.py, which checks sizes. A `stride` is the distance of two rows in bytes.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int32_t int4 __attribute__((vector_size(16)));
typedef int32_t int8 __attribute__((vector_size(32)));
typedef uint8_t byte16 __attribute__((vector_size(16)));
typedef double double4 __attribute__((vector_size(32)));

enum { CHANNELS = 3, LEVELS = 256, PRECISION = 22 };  // PRECISION: bits after the point of a filter's coefficients

static uint8_t clip(int value) { return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value; }

// The lowest bytes of four values, next to each other.
static inline uint32_t packed(int4 values) {
#if defined(__clang__) || __GNUC__ >= 12
    const byte16 bytes = __builtin_shufflevector((byte16)values, (byte16)values, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
#else
    const byte16 bytes = __builtin_shuffle((byte16)values, (byte16){0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12});
#endif
    uint32_t result;
    memcpy(&result, &bytes, sizeof result);
    return result;
}

// Writes a pixel, clipped. But for the `last` of a buffer, a fourth byte is written, which the next pixel overwrites.
static inline void store(int4 values, int last, uint8_t *out) {
    values &= values > 0;
    values |= values > 255;  // all bits, of which the lowest eight are kept
    const uint32_t pixel = packed(values);
    memcpy(out, &pixel, last ? CHANNELS : sizeof pixel);
}

// Resizing with antialiasing

static double bilinear(double x) { return fabs(x) < 1 ? 1 - fabs(x) : 0; }

static double bicubic(double x) {  // a = -0.5
    x = fabs(x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

typedef struct {
    int count;         // coefficients reserved for each output pixel
    int *first, *used; // of each output pixel: its first input pixel and how many it is made of
    int32_t *weights;
} Filter;

static void release(Filter *filter) {
    free(filter->first);
    free(filter->used);
    free(filter->weights);
}

// The weights with which `in` pixels make pixels start..start+count of `out`. 0 if memory is short.
static int prepare(Filter *filter, int is_cubic, int in, int out, int start, int count) {
    const double scale = (double)in / out, stretch = scale < 1 ? 1 : scale, reach = (is_cubic ? 2 : 1) * stretch;
    filter->count = (int)ceil(reach) * 2 + 1;
    filter->first = malloc(sizeof(int) * count);
    filter->used = malloc(sizeof(int) * count);
    filter->weights = calloc((size_t)count * filter->count, sizeof(int32_t));
    double *exact = malloc(sizeof(double) * filter->count);
    if (!filter->first || !filter->used || !filter->weights || !exact) {
        release(filter);
        free(exact);
        return 0;
    }
    for (int i = 0; i < count; i++) {
        const double centre = (start + i + 0.5) * scale, shrink = 1 / stretch;
        int first = (int)(centre - reach + 0.5), end = (int)(centre + reach + 0.5);
        if (first < 0) first = 0;
        if (end > in) end = in;
        double sum = 0;
        for (int x = first; x < end; x++) {
            const double at = (x - centre + 0.5) * shrink;
            sum += exact[x - first] = is_cubic ? bicubic(at) : bilinear(at);
        }
        for (int x = 0; x < end - first; x++) {
            const double weight = (sum != 0 ? exact[x] / sum : exact[x]) * (1 << PRECISION);
            filter->weights[(size_t)i * filter->count + x] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
        filter->first[i] = first;
        filter->used[i] = end - first;
    }
    free(exact);
    return 1;
}

// Two rows of pixels, side by side in vectors of eight.
static void interleave(const uint8_t *restrict above, const uint8_t *restrict below, int count, int8 *restrict out) {
    for (int i = 0; i < count; i++, above += CHANNELS, below += CHANNELS)
        out[i] = (int8){above[0], above[1], above[2], 0, below[0], below[1], below[2], 0};
}

static void resize_two_rows(const int8 *restrict in, const Filter *across, int count, uint8_t *above, uint8_t *below) {
    for (int i = 0; i < count; i++) {
        const int32_t *weights = across->weights + (size_t)i * across->count;
        const int8 *pixels = in + across->first[i];
        int8 sum = {0};
        for (int x = 0; x < across->used[i]; x++) sum += pixels[x] * weights[x];
        sum = (sum + (1 << (PRECISION - 1))) >> PRECISION;
        const int last = i == count - 1;
        int4 both[2];
        memcpy(both, &sum, sizeof sum);
        store(both[0], last, above + CHANNELS * i);
        store(both[1], last, below + CHANNELS * i);
    }
}

// One output row from `used` rows of `bytes` values that are `stride` apart.
static void resize_column(const uint8_t *rows, int64_t stride, int bytes, const int32_t *weights, int used,
                          int32_t *restrict sums, uint8_t *restrict out) {
    for (int i = 0; i < bytes; i++) sums[i] = 1 << (PRECISION - 1);
    for (int y = 0; y < used; y++, rows += stride)
        for (int i = 0; i < bytes; i++) sums[i] += rows[i] * weights[y];
    for (int i = 0; i < bytes; i++) out[i] = clip(sums[i] >> PRECISION);
}

// Rows of `in` made narrower or wider: `count` rows to (count, width).
static void resize_rows(const uint8_t *in, int64_t stride, int in_width, int count, const Filter *across, int width,
                        int8 *pair, uint8_t *out) {
    for (int y = 0; y < count; y += 2) {
        const int64_t second = y + 1 < count; // an odd last row is its own neighbour
        interleave(in + y * stride, in + (y + second) * stride, in_width, pair);
        uint8_t *above = out + (size_t)CHANNELS * width * y;
        resize_two_rows(pair, across, width, above, above + second * CHANNELS * width);
    }
}

// Rows first.. of a picture -> (height, width) made of them.
static void resize_columns(const uint8_t *in, int64_t stride, int width, int first, const Filter *down, int height,
                           int32_t *sums, uint8_t *out) {
    for (int y = 0; y < height; y++, out += CHANNELS * width)
        resize_column(in + (down->first[y] - first) * stride, stride, CHANNELS * width,
                      down->weights + (size_t)y * down->count, down->used[y], sums, out);
}

// Columns left..left+width and rows top..top+height of what in (in_height, in_width) becomes when it is resized to
// (out_height, out_width). Each of the two passes rounds, so that their order matters. 0 if memory is short.
int resize(const uint8_t *in, int64_t stride, int in_width, int in_height, int out_width, int out_height, int left,
           int top, int width, int height, int is_cubic, int columns_first, uint8_t *out) {
    Filter across, down;
    if (!prepare(&across, is_cubic, in_width, out_width, left, width)) return 0;
    if (!prepare(&down, is_cubic, in_height, out_height, top, height)) return release(&across), 0;
    const int first = down.first[0], rows = down.first[height - 1] + down.used[height - 1] - first;
    const int wide = columns_first ? in_width : width;
    uint8_t *between = malloc((size_t)CHANNELS * wide * (columns_first ? height : rows));
    int32_t *sums = malloc(sizeof(int32_t) * CHANNELS * wide);
    int8 *pair = aligned_alloc(sizeof(int8), sizeof(int8) * in_width);
    const int enough = between && sums && pair;
    if (enough && columns_first) {
        resize_columns(in, stride, in_width, 0, &down, height, sums, between);
        resize_rows(between, (int64_t)CHANNELS * in_width, in_width, height, &across, width, pair, out);
    } else if (enough) {
        resize_rows(in + first * stride, stride, in_width, rows, &across, width, pair, between);
        resize_columns(between, (int64_t)CHANNELS * width, width, first, &down, height, sums, out);
    }
    free(between);
    free(sums);
    free(pair);
    release(&across);
    release(&down);
    return enough;
}

void mirror(const uint8_t *in, int width, int height, uint8_t *out) {
    for (int y = 0; y < height; y++, in += CHANNELS * width, out += CHANNELS * width)
        for (int x = 0; x < width; x++) memcpy(out + CHANNELS * x, in + CHANNELS * (width - 1 - x), CHANNELS);
}

// Affine transforms

static inline double4 cubic(double4 a, double4 b, double4 c, double4 d, double at) {
    const double4 first = c - a, second = 2 * (a - b) + c - d, third = b - a + d - c;
    return b + at * (first + at * (second + at * third));
}

static int bounded(int value, int size) { return value < 0 ? 0 : value < size ? value : size - 1; }

// The value between four pixels (bicubic) or between the middle two of them (bilinear).
static inline double4 between(const double4 *a, const double4 *b, const double4 *c, const double4 *d, double at, int is_cubic) {
    if (at == 0) return *b;
    return is_cubic ? cubic(*a, *b, *c, *d, at) : *b + (*c - *b) * at;
}

// The picture with a vector to each pixel, so that a pixel is loaded at once. NULL if memory is short.
static double4 *widened(const uint8_t *in, int64_t pixels) {
    double4 *out = aligned_alloc(sizeof(double4), sizeof(double4) * pixels);
    for (int64_t i = 0; out && i < pixels; i++, in += CHANNELS) out[i] = (double4){in[0], in[1], in[2], 0};
    return out;
}

// out(x, y) = in(a x + b y + c, d x + e y + f) for matrix (a, b, c, d, e, f), pixel centres at halves, interpolated
// bicubically (a = -1) or bilinearly; `fill` where that is outside. 0 if memory is short.
int affine(const uint8_t *in, int width, int height, const double *matrix, int is_cubic, const uint8_t *fill, uint8_t *out) {
    double4 *wide = widened(in, (int64_t)width * height);
    if (!wide) return 0;
    for (int row = 0; row < height; row++) {
        for (int column = 0; column < width; column++, out += CHANNELS) {
            double x = matrix[0] * (column + 0.5) + matrix[1] * (row + 0.5) + matrix[2];
            double y = matrix[3] * (column + 0.5) + matrix[4] * (row + 0.5) + matrix[5];
            if (!(x >= 0 && x < width && y >= 0 && y < height)) {
                memcpy(out, fill, CHANNELS);
                continue;
            }
            x -= 0.5;
            y -= 0.5;
            const int left = x < 0 ? -1 : (int)x, top = y < 0 ? -1 : (int)y;
            const double across = x - left, down = y - top;
            const int a = bounded(left - 1, width), b = bounded(left, width);
            const int c = bounded(left + 1, width), d = bounded(left + 2, width);
            const double4 *line = wide + (int64_t)width * bounded(top, height);
            double4 value = between(line + a, line + b, line + c, line + d, across, is_cubic);
            if (down != 0) { // else the other lines have no weight
                const double4 *next = wide + (int64_t)width * bounded(top + 1, height);
                const double4 below = between(next + a, next + b, next + c, next + d, across, is_cubic);
                if (is_cubic) {
                    const double4 *before = wide + (int64_t)width * bounded(top - 1, height);
                    const double4 *after = wide + (int64_t)width * bounded(top + 2, height);
                    value = cubic(between(before + a, before + b, before + c, before + d, across, 1), value, below,
                                  between(after + a, after + b, after + c, after + d, across, 1), down);
                } else
                    value += (below - value) * down;
            }
            store(__builtin_convertvector(value, int4), column == width - 1, out); // rounded towards zero
        }
    }
    free(wide);
    return 1;
}

// Levels

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

static int grey(const uint8_t *in) { return (in[0] * 19595 + in[1] * 38470 + in[2] * 7471 + 0x8000) >> 16; }

void sum_of_greys(const uint8_t *in, int64_t pixels, int64_t *out) {
    int64_t sum = 0;
    for (int64_t i = 0; i < pixels; i++) sum += grey(in + CHANNELS * i);
    *out = sum;
}

static uint8_t blend(int from, int to, float share) {
    const float value = (float)from + share * (float)(to - from);
    return value <= 0 ? 0 : value >= 255 ? 255 : (uint8_t)value;
}

// From the grey picture (share 0) to the picture (share 1) and beyond.
void saturate(const uint8_t *restrict in, int64_t pixels, float share, uint8_t *restrict out) {
    for (int64_t i = 0; i < pixels; i++, in += CHANNELS, out += CHANNELS) {
        const int level = grey(in);
        for (int c = 0; c < CHANNELS; c++) out[c] = blend(level, in[c], share);
    }
}

// From the picture smoothed by a 3x3 filter (share 0) to the picture (share 1) and beyond. Edges stay.
void sharpen(const uint8_t *in, int width, int height, float share, uint8_t *restrict out) {
    const int bytes = CHANNELS * width;
    memcpy(out, in, (size_t)bytes * height);
    for (int y = 1; y < height - 1; y++) {
        const uint8_t *above = in + (size_t)(y - 1) * bytes, *here = above + bytes, *below = here + bytes;
        uint8_t *row = out + (size_t)y * bytes;
        for (int i = CHANNELS; i < bytes - CHANNELS; i++) {
            const int around = above[i - 3] + above[i] + above[i + 3] + here[i - 3] + here[i + 3] + below[i - 3] + below[i] + below[i + 3];
            const int smooth = (2 * (around + 5 * here[i]) + 13) / 26; // rounded to nearest
            row[i] = blend(smooth, here[i], share);
        }
    }
}

// Planes of values that a table has for the levels: out[c][i] = table[c][in[i][c]]

#define PLANES(name, type)                                                                              \
    void name(const uint8_t *restrict in, int64_t pixels, const type *restrict table, type *restrict out) { \
        for (int64_t i = 0; i < pixels; i++, in += CHANNELS) {                                            \
            out[i] = table[in[0]];                                                                        \
            out[pixels + i] = table[LEVELS + in[1]];                                                      \
            out[2 * pixels + i] = table[2 * LEVELS + in[2]];                                              \
        }                                                                                                 \
    }

PLANES(planes_of_bytes, uint8_t)
PLANES(planes_of_floats, float)

// Two pictures mixed in place: each becomes `share` of itself and `rest` of the other. Bytes are rounded to nearest, halves to
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

// JPEGs in tiles (dataset/jpeg_tiles.py)

enum { MARKER = 0xFF, RESTART = 0xD0, END_OF_IMAGE = 0xD9 };

// Whether bytes first..size are exactly `count` tiles: all end with a restart marker, numbered from 0 to 7 and again, but the
// last, which ends with the image and the data. Their markers' `places` are written.
int find_tiles(const uint8_t *data, int64_t first, int64_t size, int64_t count, int64_t *places) {
    int64_t found = 0;
    const uint8_t *at = data + first, *last = data + size - 1;
    for (; at < last && (at = memchr(at, MARKER, last - at)); at++) {
        if (at[1] == 0) continue; // a value of 255
        const uint8_t expected = found == count - 1 ? END_OF_IMAGE : RESTART + (found & 7);
        if (found == count || at[1] != expected) return 0;
        places[found++] = at - data;
    }
    return found == count && places[count - 1] == size - 2;
}

// Copies the tiles of rows top..bottom and columns left..right, numbers their markers anew, and returns how many bytes they are.
// `marks` has the places of the markers of all tiles, `wide` in a row; the first tile begins at `first`.
int64_t copy_tiles(const uint8_t *data, const int64_t *marks, int64_t first, int64_t wide, int64_t top, int64_t bottom,
                   int64_t left, int64_t right, uint8_t *out) {
    uint8_t *at = out;
    int64_t number = 0;
    for (int64_t row = top; row < bottom; row++) {
        const int64_t *ends = marks + row * wide, start = row || left ? ends[left - 1] + 2 : first;
        const int64_t bytes = ends[right - 1] + 2 - start;
        memcpy(at, data + start, bytes);
        for (int64_t i = left; i < right; i++) at[ends[i] - start + 1] = RESTART + (number++ & 7);
        at += bytes;
    }
    at[-1] = END_OF_IMAGE;
    return at - out;
}
