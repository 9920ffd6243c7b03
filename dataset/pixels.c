// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Mirroring and affine transforms.

#include <stdlib.h>

#include "pixels.h"

void mirror(const uint8_t *in, int width, int height, uint8_t *out) {
    for (int y = 0; y < height; y++, in += CHANNELS * width, out += CHANNELS * width)
        for (int x = 0; x < width; x++) memcpy(out + CHANNELS * x, in + CHANNELS * (width - 1 - x), CHANNELS);
}

enum { BORDER = 2 }; // copies of the edge around a picture, read by interpolation

// (red, green, blue, 0) of each pixel: (height + 2 BORDER, stride); `first` is the first pixel of the picture.
typedef struct {
    int64_t stride;
    uint32_t *all, *first;
} Framed;

static void frame_row(const uint8_t *in, int width, uint32_t *out) {
    const byte16 zero = {0};
    int i = 0;
    for (; CHANNELS * i + 16 <= CHANNELS * width; i += 4)
        store(SHUFFLED(load(in + CHANNELS * i), zero, 0, 1, 2, 16, 3, 4, 5, 16, 6, 7, 8, 16, 9, 10, 11, 16), out + i);
    for (; i < width; i++) {
        out[i] = 0;
        memcpy(out + i, in + CHANNELS * i, CHANNELS);
    }
    for (int x = 1; x <= BORDER; x++) {
        out[-x] = out[0];
        out[width - 1 + x] = out[width - 1];
    }
}

// 0 if memory is short.
static int frame(Framed *framed, const uint8_t *in, int width, int height) {
    const int64_t stride = framed->stride = width + 2 * BORDER;
    if (stride * (height + 2 * BORDER) > INT32_MAX) return 0;
    const size_t bytes = sizeof(uint32_t) * stride;
    framed->all = malloc(bytes * (height + 2 * BORDER));
    if (!framed->all) return 0;
    framed->first = framed->all + BORDER * stride + BORDER;
    for (int y = 0; y < height; y++) frame_row(in + (int64_t)CHANNELS * width * y, width, framed->first + stride * y);
    uint32_t *top = framed->all + stride * BORDER, *bottom = top + stride * (height - 1);
    for (int y = 1; y <= BORDER; y++) {
        memcpy(top - stride * y, top, bytes);
        memcpy(bottom + stride * y, bottom, bytes);
    }
    return 1;
}

static inline double4 cubic(const double4 *at, double share) {
    const double4 first = at[2] - at[0], second = 2 * (at[0] - at[1]) + at[2] - at[3], third = at[1] - at[0] + at[3] - at[2];
    return at[1] + share * (first + share * (second + share * third));
}

// Between four values (bicubic) or the middle two of them (bilinear).
static inline double4 between(const double4 *at, double share, int is_cubic) {
    if (share == 0) return at[1];
    return is_cubic ? cubic(at, share) : at[1] + (at[2] - at[1]) * share;
}

static int all_equal(const uint32_t *corner, int64_t stride) {
    const byte16 pixel = (byte16)((int4){0} + (int32_t)*corner);
    byte16 difference = {0};
    for (int y = 0; y < 4; y++) difference |= load(corner + stride * y) ^ pixel;
    uint64_t halves[2];
    memcpy(halves, &difference, sizeof halves);
    return !(halves[0] | halves[1]);
}

// The value between the 4x4 pixels from `corner` on, with Pillow's arithmetic and precision.
static __attribute__((noinline)) uint32_t exact(const uint32_t *corner, int64_t stride, double across, double down, int is_cubic) {
    if (all_equal(corner, stride)) return *corner;
    double4 lines[4];
    for (int y = 0; y < 4; y++) {
        const uint8_t *line = (const uint8_t *)(corner + stride * y);
        double4 pixels[4];
        for (int x = 0; x < 4; x++, line += 4) pixels[x] = (double4){line[0], line[1], line[2], 0};
        lines[y] = between(pixels, across, is_cubic);
    }
    const double4 value = between(lines, down, is_cubic);
    uint8_t bytes[4] = {0};
    for (int c = 0; c < CHANNELS; c++) bytes[c] = value[c] <= 0 ? 0 : value[c] >= 255 ? 255 : (uint8_t)value[c]; // towards zero
    uint32_t pixel;
    memcpy(&pixel, bytes, sizeof pixel);
    return pixel;
}

// The positions in a picture for one row of the result.
typedef struct {
    int first, end;      // the columns inside the picture
    double *x, *y;       // from the pixels before them
    int32_t *corner;     // of the 4x4 pixels around them: index into Framed.first
    float *weights[4];   // of the four lines
} Places;

// 0 if memory is short.
static int reserve(Places *places, int width) {
    places->x = malloc((2 * sizeof(double) + sizeof(int32_t) + 4 * sizeof(float)) * width);
    if (!places->x) return 0;
    places->y = places->x + width;
    places->corner = (int32_t *)(places->y + width);
    for (int i = 0; i < 4; i++) places->weights[i] = (float *)(places->corner + width) + (size_t)width * i;
    return 1;
}

// The weights of pixels -1, 0, 1 and 2 at a position between 0 and 1: coefficients of its powers 0 to 3.
static const float KERNELS[2][4][4] = {
    {{0, 0, 0, 0}, {1, -1, 0, 0}, {0, 1, 0, 0}, {0, 0, 0, 0}},   // bilinear
    {{0, -1, 2, -1}, {1, 0, -2, 1}, {0, 1, 1, -1}, {0, 0, -1, 1}}, // bicubic, a = -1
};

// The floor of a value of at least -1.
static inline double before(double value) {
    const double whole = (int)value;
    return whole - (whole > value ? 1 : 0);
}

// Computes the positions for a row of the result.
static void locate(Places *places, const double *matrix, int row, int width, int height, double stride, int is_cubic) {
    double *restrict x = places->x, *restrict y = places->y;
    for (int i = 0; i < width; i++) {
        x[i] = matrix[0] * (i + 0.5) + matrix[1] * (row + 0.5) + matrix[2];
        y[i] = matrix[3] * (i + 0.5) + matrix[4] * (row + 0.5) + matrix[5];
    }
#define INSIDE(i) (x[i] >= 0 && x[i] < width && y[i] >= 0 && y[i] < height)
    int first = 0, end = width; // x and y are monotonic in i: everything between two positions inside is inside
    while (first < end && !INSIDE(first)) first++;
    while (first < end && !INSIDE(end - 1)) end--;
    places->first = first;
    places->end = end;
    int32_t *restrict corner = places->corner;
    for (int i = first; i < end; i++) {
        const double left = before(x[i] - 0.5), top = before(y[i] - 0.5);
        x[i] = x[i] - 0.5 - left;
        y[i] = y[i] - 0.5 - top;
        corner[i] = (int32_t)((top - 1) * stride + left - 1);
    }
    for (int tap = 0; tap < 4; tap++) {
        const float *kernel = KERNELS[is_cubic][tap];
        float *restrict weights = places->weights[tap];
        for (int i = first; i < end; i++) {
            const float at = (float)y[i];
            weights[i] = kernel[0] + at * (kernel[1] + at * (kernel[2] + at * kernel[3]));
        }
    }
}

static inline float8 two_pixels(const uint32_t *in) { return __builtin_convertvector(widened(in), float8); }

static inline float8 sum_of(float8 a, float8 b, float8 c) { return (float8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }

static inline float8 all(float value) { return (float8)_mm256_set1_ps(value); }

static inline float8 halves_exchanged(float8 values) { return (float8)_mm256_permute2f128_ps((__m256)values, (__m256)values, 1); }

// Computes a row of the result, in single precision if that must round to the same bytes as double precision.
static inline __attribute__((always_inline)) void interpolate(const Framed *framed, const Places *places, int lines, int width,
                                                              int is_cubic, uint8_t *out) {
    const float (*kernel)[4] = KERNELS[is_cubic];
    float8 power[2][4];
    for (int i = 0; i < 4; i++)
        for (int lane = 0; lane < 8; lane++)
            for (int half = 0; half < 2; half++) power[half][i][lane] = kernel[2 * half + lane / 4][i];
    const float most = 1.0f / 512; // error of single precision: less than 0.0018
    const float8 error = {-most, -most, -most, -most, most, most, most, most};
    for (int i = places->first; i < places->end; i++) {
        const uint32_t *corner = framed->first + places->corner[i];
        float8 left = {0}, right = {0};
        for (int y = 0; y < lines; y++) {
            const uint32_t *line = corner + framed->stride * (lines == 1 ? 1 : y);
            const float8 share = all(lines == 1 ? 1 : places->weights[y][i]);
            left = sum_of(two_pixels(line), share, left);
            right = sum_of(two_pixels(line + 2), share, right);
        }
        const float8 at = all((float)places->x[i]);
        left *= sum_of(sum_of(sum_of(power[0][3], at, power[0][2]), at, power[0][1]), at, power[0][0]);
        const float8 weights = sum_of(sum_of(sum_of(power[1][3], at, power[1][2]), at, power[1][1]), at, power[1][0]);
        const float8 pairs = sum_of(right, weights, left);
        const float8 value = pairs + halves_exchanged(pairs) + error;
        const uint64_t both = clipped(__builtin_convertvector(value, int8)); // towards zero: the smallest and the largest
        uint32_t pixel = (uint32_t)both;
        if (pixel != both >> 32) pixel = exact(corner, framed->stride, places->x[i], places->y[i], is_cubic);
        store_pixel(pixel, i == width - 1, out + CHANNELS * i);
    }
}

// out(x, y) = in(a x + b y + c, d x + e y + f) for matrix (a, b, c, d, e, f), pixel centres at halves, interpolated
// bicubically (a = -1) or bilinearly; `fill` if that is outside. 0 if memory is short.
int affine(const uint8_t *in, int width, int height, const double *matrix, int is_cubic, const uint8_t *fill, uint8_t *out) {
    Framed framed;
    Places places;
    if (!frame(&framed, in, width, height)) return 0;
    const int enough = reserve(&places, width);
    for (int row = 0; enough && row < height; row++, out += CHANNELS * width) {
        locate(&places, matrix, row, width, height, framed.stride, is_cubic);
        for (int i = 0; i < places.first; i++) memcpy(out + CHANNELS * i, fill, CHANNELS);
        if (places.first < places.end && matrix[3] == 0 && places.y[places.first] == 0)
            interpolate(&framed, &places, 1, width, is_cubic, out); // all positions are on a line of pixels
        else
            interpolate(&framed, &places, 4, width, is_cubic, out);
        for (int i = places.end; i < width; i++) memcpy(out + CHANNELS * i, fill, CHANNELS);
    }
    if (enough) free(places.x);
    free(framed.all);
    return enough;
}
