// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Geometry: resizing, mirroring and affine transforms. A `stride` is the distance of two rows in bytes.

#include <math.h>
#include <stdlib.h>

#include "pixels.h"

enum { PRECISION = 22 }; // bits after the point of a filter's coefficients

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

// The weights with which `in` pixels make pixels start..start+count of `out`, last first if `reversed`. 0 if memory is short.
static int prepare(Filter *filter, int is_cubic, int in, int out, int start, int count, int reversed) {
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
        for (int x = 0; x < end - first; x++) {
            const double weight = (sum != 0 ? exact[x] / sum : exact[x]) * (1 << PRECISION);
            filter->weights[(size_t)place * filter->count + x] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
        filter->first[place] = first;
        filter->used[place] = end - first;
    }
    free(exact);
    return 1;
}

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
        const int32_t *weights = across->weights + (size_t)i * across->count;
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

// `blocks` times eight values of a row made of `used` rows.
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

// Rows of `in` made narrower or wider: `count` rows to (count, width).
static void resize_rows(const uint8_t *in, int64_t stride, int in_width, int count, const Filter *across, int width,
                        uint32_t *four, uint8_t *out) {
    for (int y = 0; y < count; y += 4) {
        const uint8_t *from[4];
        uint8_t *to[4];
        for (int row = 0; row < 4; row++) { // those beyond the last are the last
            const int64_t at = y + row < count ? y + row : count - 1;
            from[row] = in + at * stride;
            to[row] = out + at * CHANNELS * width;
        }
        interleave(from, in_width, four);
        resize_four_rows(four, across, width, to);
    }
}

// Rows of a picture -> (height, width) made of them.
static void resize_columns(const uint8_t *in, int64_t stride, int width, const Filter *down, int height, uint8_t *out) {
    for (int y = 0; y < height; y++, out += CHANNELS * width)
        resize_column(in + down->first[y] * stride, stride, CHANNELS * width, down->weights + (size_t)y * down->count,
                      down->used[y], out);
}

// Makes a filter's places relative to the first that it uses; returns that, and the number of places from there on that it uses.
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

// Columns left..left+width and rows top..top+height of what a picture (in_height, in_width) becomes when it is resized to
// (out_height, out_width), with left and right exchanged if `mirrored`. Of the picture, `in` has the columns x..x+wide and the
// rows y..y+high. Each of the two passes rounds, so that their order matters. 0 if memory is short, or `in` has too little.
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
    uint32_t *four = malloc(sizeof(uint32_t) * 4 * columns);
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

void mirror(const uint8_t *in, int width, int height, uint8_t *out) {
    for (int y = 0; y < height; y++, in += CHANNELS * width, out += CHANNELS * width)
        for (int x = 0; x < width; x++) memcpy(out + CHANNELS * x, in + CHANNELS * (width - 1 - x), CHANNELS);
}

// Affine transforms

enum { BORDER = 2 }; // copies of the edge around a picture, which interpolation reads

// (red, green, blue, 0) of each pixel: (height + 2 BORDER, stride); `first` is that of the picture.
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

// The value between 4x4 pixels from `corner` on, in Pillow's arithmetic and precision.
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

// The places in a picture that make a row.
typedef struct {
    int first, end;      // the columns inside of the picture
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

// The weights of pixels -1, 0, 1 and 2 at a share of the way from 0 to 1: coefficients of its powers 0 to 3.
static const float KERNELS[2][4][4] = {
    {{0, 0, 0, 0}, {1, -1, 0, 0}, {0, 1, 0, 0}, {0, 0, 0, 0}},   // bilinear
    {{0, -1, 2, -1}, {1, 0, -2, 1}, {0, 1, 1, -1}, {0, 0, -1, 1}}, // bicubic, a = -1
};

// The whole number that is not above a value from -1 on.
static inline double before(double value) {
    const double whole = (int)value;
    return whole - (whole > value ? 1 : 0);
}

// Finds the places of a row of the result.
static void locate(Places *places, const double *matrix, int row, int width, int height, double stride, int is_cubic) {
    double *restrict x = places->x, *restrict y = places->y;
    for (int i = 0; i < width; i++) {
        x[i] = matrix[0] * (i + 0.5) + matrix[1] * (row + 0.5) + matrix[2];
        y[i] = matrix[3] * (i + 0.5) + matrix[4] * (row + 0.5) + matrix[5];
    }
#define INSIDE(i) (x[i] >= 0 && x[i] < width && y[i] >= 0 && y[i] < height)
    int first = 0, end = width; // x and y rise or fall with i, so that all between two places inside are inside
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

// The row of a result at its places: in single precision where that must round to the same bytes as double precision.
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
        const uint64_t both = clipped(__builtin_convertvector(value, int8)); // towards zero: the least and the largest
        uint32_t pixel = (uint32_t)both;
        if (pixel != both >> 32) pixel = exact(corner, framed->stride, places->x[i], places->y[i], is_cubic);
        store_pixel(pixel, i == width - 1, out + CHANNELS * i);
    }
}

// out(x, y) = in(a x + b y + c, d x + e y + f) for matrix (a, b, c, d, e, f), pixel centres at halves, interpolated
// bicubically (a = -1) or bilinearly; `fill` where that is outside. 0 if memory is short.
int affine(const uint8_t *in, int width, int height, const double *matrix, int is_cubic, const uint8_t *fill, uint8_t *out) {
    Framed framed;
    Places places;
    if (!frame(&framed, in, width, height)) return 0;
    const int enough = reserve(&places, width);
    for (int row = 0; enough && row < height; row++, out += CHANNELS * width) {
        locate(&places, matrix, row, width, height, framed.stride, is_cubic);
        for (int i = 0; i < places.first; i++) memcpy(out + CHANNELS * i, fill, CHANNELS);
        if (places.first < places.end && matrix[3] == 0 && places.y[places.first] == 0)
            interpolate(&framed, &places, 1, width, is_cubic, out); // all places are on a line of pixels
        else
            interpolate(&framed, &places, 4, width, is_cubic, out);
        for (int i = places.end; i < width; i++) memcpy(out + CHANNELS * i, fill, CHANNELS);
    }
    if (enough) free(places.x);
    free(framed.all);
    return enough;
}
