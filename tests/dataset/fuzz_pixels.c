// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Calls the operations of dataset/pixels.c, resize.c and levels.c with random sizes, boxes and matrices on buffers without a byte to
// spare, for a compiler that checks addresses:
//
//     cc -g -O1 -march=native -ffp-contract=off -fsanitize=address,undefined -fno-sanitize-recover=all \
//         -o fuzz tests/dataset/fuzz_pixels.c dataset/*.c -lm && ./fuzz 1000000 0
//
// The arguments are the number of rounds and the seed.

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

int resize(const uint8_t *, int64_t, int, int, int, int, int, int, int, int, int, int, int, int, int, int, int, uint8_t *);
int affine(const uint8_t *, int, int, const double *, int, const uint8_t *, uint8_t *);
void mirror(const uint8_t *, int, int, uint8_t *);
void histogram(const uint8_t *, int64_t, int32_t *);
void look_up(const uint8_t *, int64_t, const uint8_t *, uint8_t *);
void sum_of_greys(const uint8_t *, int64_t, int64_t *);
void saturate(const uint8_t *, int64_t, float, uint8_t *);
void sharpen(const uint8_t *, int, int, float, uint8_t *);
void mapped_planes_of_bytes(const uint8_t *, int64_t, const uint8_t *, uint8_t *);
void mapped_planes_of_floats(const uint8_t *, int64_t, const float *, float *);
void planes_of_bytes(const uint8_t *, int64_t, uint8_t *);
void planes_of_floats(const uint8_t *, int64_t, const float *, const float *, float *);
void mix_bytes(uint8_t *, uint8_t *, int64_t, float, float);
void mix_floats(float *, float *, int64_t, float, float);
void exchange(uint8_t *, uint8_t *, int64_t, int64_t, int64_t, int64_t, int64_t);
void to_levels(const float *, int64_t, int64_t, float, float, uint8_t *, int64_t);

static int side(void) { return draw() % 8 ? upto(40) : upto(300); }

static double coefficient(void) {
    static const double odd[] = {0, 1, -1, 0.5, -0.5, 1e-300, 1e18, -1e300, INFINITY, -INFINITY, NAN};
    return draw() % 6 ? (draw() / 4294967296.0 - 0.5) * upto(100) : odd[draw() % (sizeof odd / sizeof *odd)];
}

static void *room(size_t bytes) {
    void *memory = malloc(bytes);
    return memory ? memory : (abort(), NULL);
}

static uint8_t *noise(size_t bytes) {
    uint8_t *memory = room(bytes);
    const int flat = draw() % 4 == 0;
    for (size_t i = 0; i < bytes; i++) memory[i] = flat ? 255 : (uint8_t)draw();
    return memory;
}

// Of a picture that is larger than `in`, which may have too little of it.
static void resize_a_part(const uint8_t *in, int width, int height) {
    const int out_width = side(), out_height = side(), left = upto(out_width) - 1, top = upto(out_height) - 1;
    const int wide = upto(out_width - left), high = upto(out_height - top), x = upto(width) - 1, y = upto(height) - 1;
    const int is_whole = draw() % 2, before = is_whole ? 0 : upto(9) - 1, above = is_whole ? 0 : upto(9) - 1;
    const int has_wide = upto(width - x), has_high = upto(height - y);
    const int more = is_whole ? 0 : upto(9) - 1, below = is_whole ? 0 : upto(9) - 1;
    uint8_t *out = room((size_t)3 * wide * high);
    const int is_done = resize(in + 3 * ((size_t)width * y + x), 3 * width, before, above, has_wide, has_high,
                               before + has_wide + more, above + has_high + below, out_width, out_height, left, top, wide, high,
                               draw() % 2, draw() % 2, draw() % 2, out);
    if (is_whole && !is_done) abort();
    free(out);
}

static void transform(const uint8_t *in, int width, int height, uint8_t *out) {
    static const uint8_t fill[3] = {1, 2, 3};
    double matrix[6];
    for (int i = 0; i < 6; i++) matrix[i] = coefficient();
    if (draw() % 2) matrix[0] = matrix[4] = 1, matrix[3] = 0; // shears and translations
    if (!affine(in, width, height, matrix, draw() % 2, fill, out)) abort();
}

static void change_levels(const uint8_t *in, int width, int height, uint8_t *out) {
    const int64_t pixels = (int64_t)width * height;
    uint8_t *table = noise(3 * 256);
    int32_t counts[3 * 256];
    int64_t sum, counted = 0;
    float floats[3 * 256], *planes = room(sizeof(float) * 3 * pixels);
    for (int i = 0; i < 3 * 256; i++) floats[i] = table[i];
    histogram(in, pixels, counts);
    for (int i = 0; i < 3 * 256; i++) counted += counts[i];
    sum_of_greys(in, pixels, &sum);
    if (counted != 3 * pixels || sum < 0 || sum > 255 * pixels) abort();
    look_up(in, pixels, table, out);
    saturate(in, pixels, (float)coefficient(), out);
    sharpen(in, width, height, (float)coefficient(), out);
    mirror(in, width, height, out);
    mapped_planes_of_bytes(in, pixels, table, out);
    planes_of_bytes(in, pixels, out);
    mapped_planes_of_floats(in, pixels, floats, planes);
    planes_of_floats(in, pixels, floats, floats + 3, planes);
    const float share = draw() / 4294967296.0f;
    mix_bytes(out, out + pixels, pixels, share, 1 - share);
    mix_floats(planes, planes + pixels, pixels, share, 1 - share);
    const int64_t left = draw() % width, top = draw() % height, rows = draw() % (height - top + 1), columns = draw() % (width - left + 1);
    uint8_t *other = noise(3 * pixels);
    exchange(out + top * width + left, other + top * width + left, 3, pixels, rows, width, columns);
    to_levels(planes, rows, columns, (float)upto(100), (float)upto(100), other + top * width + left, width);
    free(other);
    free(planes);
    free(table);
}

int main(int count, char **arguments) {
    const long rounds = count > 1 ? atol(arguments[1]) : 1000;
    state = count > 2 ? strtoull(arguments[2], NULL, 10) : 0;
    for (long i = 0; i < rounds; i++) {
        const int width = side(), height = side();
        const size_t bytes = (size_t)3 * width * height;
        uint8_t *in = noise(bytes), *out = room(bytes);
        resize_a_part(in, width, height);
        transform(in, width, height, out);
        change_levels(in, width, height, out);
        free(in);
        free(out);
    }
    printf("%ld rounds without an error\n", rounds);
    return 0;
}
