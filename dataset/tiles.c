// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// JPEGs in tiles (dataset/jpeg_tiles.py)

#include <stdint.h>
#include <string.h>

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
