// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Decodes a part of an ordinary JPEG (see jpeg.h) to the same pixels as libjpeg-turbo, bit for bit.

#include <stdlib.h>

#include "samples.h"

enum { SIDE = 8, MOST_BLOCKS = 6 }; // of a block; per MCU

typedef struct {
    const Codes *dc, *ac;
    __attribute__((aligned(32))) int16_t quantizers[COEFFICIENTS];
    uint32_t last_dc;
} Component;

typedef struct {
    Jpeg jpeg;
    int64_t columns, rows, west, east, north, south; // MCUs: their numbers, and the range that is kept
    int64_t interval, segments;                      // MCUs per segment, and number of segments
    int64_t *starts;                                 // of the segments in `data`, and the end of the last one
    uint8_t *data;
    Component components[MOST_COMPONENTS];
    Plane planes[MOST_COMPONENTS]; // of the kept MCUs
    Codes codes[TABLES][2];
} Picture;

// Copies entropy-coded data without the zeros that follow values of 255, and records where segments start. 0 unless their number
// is right, they are separated by markers numbered cyclically from 0 to 7, and the last one is followed by the end marker.
static int split(const uint8_t *in, int64_t size, Picture *picture) {
    uint8_t *out = picture->data, last[32] = {0};
    int64_t found = picture->starts[0] = 0;
    for (int64_t at = 0; at < size - 1;) {
        const int is_last = size - at < 32;
        if (is_last) memcpy(last, in + at, size - at);
        const __m256i bytes = _mm256_loadu_si256((const __m256i *)(is_last ? last : in + at));
        _mm256_storeu_si256((__m256i *)out, bytes);
        const uint32_t markers = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(-1)));
        const int before = markers ? __builtin_ctz(markers) : 32;
        at += before;
        out += before;
        if (!markers || at >= size - 1) continue; // `last` may have old bytes after the new ones
        const int code = in[at + 1];
        at += 2;
        if (code == 0) {
            *out++ = MARKER;
            continue;
        }
        const int is_end = found == picture->segments - 1;
        if (code != (is_end ? END_OF_IMAGE : RESTART + (int)(found & 7))) return 0;
        picture->starts[++found] = out - picture->data;
        if (is_end) return memset(out, 0, MOST_BLOCKS * BLOCK_BYTES), 1;
    }
    return 0;
}

static int is_kept(const Picture *picture, int64_t row, int64_t column) {
    return row >= picture->north && row < picture->south && column >= picture->west && column < picture->east;
}

// The last kept MCU before `end`; negative if there is none.
static int64_t last_kept(const Picture *picture, int64_t end) {
    int64_t row = (end - 1) / picture->columns, column = (end - 1) % picture->columns;
    if (row >= picture->south) row = picture->south - 1, column = picture->east - 1;
    if (column < picture->west) row--, column = picture->east - 1;
    if (column >= picture->east) column = picture->east - 1;
    return row < picture->north ? -1 : row * picture->columns + column;
}

static int read_mcu(Bits *in, Picture *picture, int64_t row, int64_t column, Greatest *greatest) {
    __attribute__((aligned(32))) int16_t block[COEFFICIENTS];
    const int keep = is_kept(picture, row, column);
    for (int i = 0; i < picture->jpeg.count; i++) {
        Component *component = picture->components + i;
        const int across = i ? 1 : (int)picture->jpeg.across, down = i ? 1 : (int)picture->jpeg.down;
        const int64_t x = (column - picture->west) * across, y = (row - picture->north) * down;
        for (int j = 0; j < across * down; j++) {
            if (keep) memset(block, 0, sizeof block);
            if (!read_block(in, component->dc, component->ac, &component->last_dc, keep ? block : NULL)) return 0;
            if (!keep) continue;
            const Plane *plane = picture->planes + i;
            uint8_t *samples = plane->samples + SIDE * ((y + j / across) * plane->stride + x + j % across);
            write_samples(block, component->quantizers, samples, plane->stride, greatest);
        }
    }
    return 1;
}

// Reads the MCUs of a segment up to the last kept one.
static int read_segment(Picture *picture, int64_t segment, Greatest *greatest) {
    const int64_t total = picture->columns * picture->rows, first = segment * picture->interval;
    const int64_t end = total - first < picture->interval ? total : first + picture->interval, last = last_kept(picture, end);
    Bits in = {0, 0, picture->data + picture->starts[segment]};
    int64_t row = first / picture->columns, column = first % picture->columns, left = 0;
    for (int i = 0; i < picture->jpeg.count; i++) picture->components[i].last_dc = 0;
    for (int64_t i = first; i <= last; i++) {
        if (!read_mcu(&in, picture, row, column, greatest)) return 0;
        left = SIDE * (picture->starts[segment + 1] - (in.at - picture->data)) + in.have;
        if (left < 0) return 0;
        if (++column == picture->columns) column = 0, row++;
    }
    return last < end - 1 || left < SIDE; // padding bits of the last byte
}

static int read_segments(Picture *picture) {
    Greatest greatest = {0};
    const int64_t first = picture->north * picture->columns / picture->interval;
    for (int64_t i = first; i < picture->segments && i * picture->interval < picture->south * picture->columns; i++)
        if (!read_segment(picture, i, &greatest)) return 0;
    return is_exact(&greatest);
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The MCUs needed for a range of pixels, including samples from which colours are interpolated.
static void cover(int64_t start, int64_t length, int64_t sampling, int64_t count, int64_t *first, int64_t *end) {
    const int64_t reach = sampling > 1 ? sampling : 0, side = SIDE * sampling;
    *first = (start > reach ? start - reach : 0) / side;
    *end = least((start + length + reach + side - 1) / side, count);
}

// Computes the layout of the picture; 0 if the file is too small for it.
static int plan(Picture *picture, int64_t size, const Box *box) {
    const Jpeg *jpeg = &picture->jpeg;
    if (box->left < 0 || box->top < 0 || box->width < 1 || box->height < 1) return 0;
    if (box->width > jpeg->width - box->left || box->height > jpeg->height - box->top) return 0;
    picture->columns = (jpeg->width + SIDE * jpeg->across - 1) / (SIDE * jpeg->across);
    picture->rows = (jpeg->height + SIDE * jpeg->down - 1) / (SIDE * jpeg->down);
    const int64_t total = picture->columns * picture->rows;
    picture->interval = jpeg->interval ? jpeg->interval : total;
    picture->segments = (total + picture->interval - 1) / picture->interval;
    cover(box->left, box->width, jpeg->across, picture->columns, &picture->west, &picture->east);
    cover(box->top, box->height, jpeg->down, picture->rows, &picture->north, &picture->south);
    const int64_t blocks = total * (jpeg->across * jpeg->down + jpeg->count - 1);
    return blocks <= 4 * size && picture->segments <= size / 2; // at least two bits per block and two bytes per marker
}

// Places the buffers of a picture in `memory`; without it, only returns their size in bytes.
static int64_t lay_out(Picture *picture, int64_t size, uint8_t *memory) {
    const Jpeg *jpeg = &picture->jpeg;
    int64_t at = (picture->segments + 1) * (int64_t)sizeof *picture->starts;
    picture->starts = (int64_t *)memory;
    picture->data = memory ? memory + at : NULL;
    at += (size + 32 + MOST_BLOCKS * BLOCK_BYTES + 7) & ~7; // one vector more
    for (int i = 0; i < jpeg->count; i++) {
        const int64_t across = i ? 1 : jpeg->across, down = i ? 1 : jpeg->down;
        Plane *plane = picture->planes + i;
        plane->stride = SIDE * across * (picture->east - picture->west);
        plane->left = SIDE * across * picture->west;
        plane->top = SIDE * down * picture->north;
        plane->samples = memory ? memory + at + PAD : NULL;
        at += 2 * PAD + SIDE * down * (picture->south - picture->north) * plane->stride;
    }
    return at;
}

static int make_tables(Picture *picture) {
    const Jpeg *jpeg = &picture->jpeg;
    for (int i = 0; i < TABLES; i++) picture->codes[i][0].symbols = picture->codes[i][1].symbols = NULL;
    for (int i = 0; i < jpeg->count; i++) {
        Component *component = picture->components + i;
        for (int j = 0; j < COEFFICIENTS; j++) component->quantizers[PLACES[j]] = jpeg->quantizers[jpeg->quantizer[i]][j];
        for (int kind = 0; kind < 2; kind++) {
            const int place = jpeg->codes[i][kind];
            Codes *codes = &picture->codes[place][kind];
            if (!codes->symbols && !make_codes(codes, jpeg->tables[place][kind], kind == 0)) return 0;
            *(kind ? &component->ac : &component->dc) = codes;
        }
    }
    return 1;
}

static int decode(Picture *picture, const uint8_t *data, int64_t size, const Box *box, uint8_t *out) {
    const Jpeg *jpeg = &picture->jpeg;
    if (!make_tables(picture)) return 0;
    const int64_t bytes = size - jpeg->first, needed = lay_out(picture, bytes, NULL);
    uint8_t *memory = malloc(needed + room_for(box));
    if (!memory) return 0;
    lay_out(picture, bytes, memory);
    const int is_done = split(data + jpeg->first, bytes, picture) && read_segments(picture);
    if (is_done) write_pixels(jpeg, picture->planes, box, memory + needed, out);
    free(memory);
    return is_done;
}

// Writes the pixels of a part, red, green and blue; 0 if the file is not as expected, the part is outside or memory is short.
int decode_part(const uint8_t *data, int64_t size, int64_t left, int64_t top, int64_t width, int64_t height, uint8_t *out) {
    Picture picture;
    const Box box = {left, top, width, height};
    return read_headers(data, size, &picture.jpeg) && plan(&picture, size, &box) && decode(&picture, data, size, &box, out);
}
