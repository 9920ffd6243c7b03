// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// From the coefficients of JPEGs to samples, and from samples to pixels.

#pragma once

#include "jpeg.h"
#include "pixels.h"

enum { PAD = 64 }; // readable bytes before and after the samples of a plane

// A part of the samples of a component, from sample (left, top) of the picture on.
typedef struct {
    uint8_t *samples;
    int64_t stride, left, top;
} Plane;

typedef struct {
    int64_t left, top, width, height;
} Box;

// Bits of the absolute values that libjpeg-turbo stores in 16 bits.
typedef struct {
    __m256i bits;
} Greatest;

// Whether sums of two of them are exact as well.
int is_exact(const Greatest *greatest);

// Writes the samples of a block of coefficients, ordered by `PLACES` as the quantizers are.
void write_samples(const int16_t *block, const int16_t *quantizers, uint8_t *out, int64_t stride, Greatest *greatest);

// The number of bytes that `write_pixels` needs as `room`, which must be aligned for uint16_t.
int64_t room_for(const Box *box);

// Writes red, green and blue of a part whose samples are all in the planes.
void write_pixels(const Jpeg *jpeg, const Plane *planes, const Box *box, uint8_t *room, uint8_t *out);
