// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Headers and tiles of JPEGs (dataset/jpeg_parts.py). The files are untrusted.

#include <stdint.h>
#include <string.h>

enum { MARKER = 0xFF, RESTART = 0xD0, START_OF_IMAGE = 0xD8, END_OF_IMAGE = 0xD9, START_OF_SCAN = 0xDA, COMMENT = 0xFE };
enum { BASELINE = 0xC0, EXTENDED = 0xC1, HUFFMAN_TABLES = 0xC4, QUANTIZATION_TABLES = 0xDB, RESTART_INTERVAL = 0xDD };
enum { MOST_SEGMENTS = 100, MOST_COMPONENTS = 3 };

// What headers say: size of the picture, most sampling factors, MCUs between restart markers or 0, where the height is in the
// frame header, and where the entropy-coded data begin.
typedef struct {
    int64_t width, height, across, down, interval, height_at, first;
} Headers;

typedef struct {
    int count;
    uint8_t names[MOST_COMPONENTS];
} Components;

static int word(const uint8_t *at) { return at[0] << 8 | at[1]; }

// The body of a frame header. 0 unless it has 8 bits and one or three components.
static int read_frame(const uint8_t *body, int64_t size, Headers *headers, Components *components) {
    if (size < 6 || body[0] != 8) return 0;
    const int count = components->count = body[5];
    if ((count != 1 && count != MOST_COMPONENTS) || size != 6 + 3 * count) return 0;
    headers->height = word(body + 1);
    headers->width = word(body + 3);
    headers->across = headers->down = 1;
    for (int i = 0; i < count; i++) {
        const uint8_t *component = body + 6 + 3 * i;
        const int across = component[1] >> 4, down = component[1] & 15;
        if (across < 1 || across > 4 || down < 1 || down > 4) return 0;
        components->names[i] = component[0];
        if (count > 1 && across > headers->across) headers->across = across;
        if (count > 1 && down > headers->down) headers->down = down;
    }
    return headers->width && headers->height;
}

// Whether the body of a scan header announces all coefficients of all components.
static int is_whole(const uint8_t *body, int64_t size, const Components *components) {
    const int count = components->count;
    if (size != 4 + 2 * count || body[0] != count) return 0;
    for (int i = 0; i < count; i++)
        if (body[1 + 2 * i] != components->names[i]) return 0;
    return memcmp(body + 1 + 2 * count, "\0?\0", 3) == 0;
}

// Reads the headers of a sequential Huffman-coded JPEG of one scan; 0 for anything else.
int read_headers(const uint8_t *data, int64_t size, Headers *headers) {
    Components components = {0};
    headers->interval = 0;
    if (size < 2 || data[0] != MARKER || data[1] != START_OF_IMAGE) return 0;
    int64_t at = 2;
    for (int i = 0; i < MOST_SEGMENTS && at + 4 <= size; i++) {
        const int code = data[at + 1], length = word(data + at + 2);
        const uint8_t *body = data + at + 4;
        const int64_t end = at + 2 + length, bytes = length - 2;
        if (data[at] != MARKER || bytes < 0 || end > size) return 0;
        if (code == START_OF_SCAN) {
            headers->first = end;
            return components.count && is_whole(body, bytes, &components);
        } else if (code == BASELINE || code == EXTENDED) {
            if (components.count || !read_frame(body, bytes, headers, &components)) return 0;
            headers->height_at = at + 5;
        } else if (code == RESTART_INTERVAL) {
            if (bytes != 2) return 0;
            headers->interval = word(body);
        } else if (code != HUFFMAN_TABLES && code != QUANTIZATION_TABLES && code != COMMENT && code >> 4 != 0xE) {
            return 0;
        }
        at = end;
    }
    return 0;
}

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
