// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Headers of JPEGs (ITU-T T.81, annex B). The files are untrusted.

#include "jpeg.h"

enum { START_OF_IMAGE = 0xD8, START_OF_SCAN = 0xDA, COMMENT = 0xFE, ADOBE = 0xEE };
enum { BASELINE = 0xC0, EXTENDED = 0xC1, HUFFMAN_TABLES = 0xC4, QUANTIZATION_TABLES = 0xDB, RESTART_INTERVAL = 0xDD };
enum { MOST_SEGMENTS = 100, MOST_SIDE = 65500 }; // as in libjpeg-turbo

static int word(const uint8_t *at) { return at[0] << 8 | at[1]; }

static int is_usual(const Jpeg *jpeg) {
    if (!jpeg->width || !jpeg->height || jpeg->width > MOST_SIDE || jpeg->height > MOST_SIDE) return 0;
    if (jpeg->across == 2 && jpeg->width <= 4) return 0; // libjpeg-turbo does not interpolate one or two samples
    return jpeg->across && jpeg->across <= 2 && jpeg->down && jpeg->down <= jpeg->across;
}

static int read_frame(const uint8_t *body, int64_t size, Jpeg *jpeg) {
    if (jpeg->count || size < 6 || body[0] != 8) return 0;
    const int count = jpeg->count = body[5];
    if ((count != 1 && count != MOST_COMPONENTS) || size != 6 + 3 * count) return 0;
    jpeg->height = word(body + 1);
    jpeg->width = word(body + 3);
    jpeg->across = body[7] >> 4;
    jpeg->down = body[7] & 15;
    for (int i = 0; i < count; i++) {
        const uint8_t *component = body + 6 + 3 * i;
        if (count > 1 && component[0] != i + 1) return 0; // other names may mean other colours
        if ((i > 0 || count == 1) && component[1] != 0x11) return 0;
        jpeg->names[i] = component[0];
        jpeg->quantizer[i] = component[2];
    }
    return is_usual(jpeg);
}

// The header of a scan with all coefficients of all components, whose tables must exist.
static int read_scan(const uint8_t *body, int64_t size, Jpeg *jpeg) {
    const int count = jpeg->count;
    if (!count || size != 4 + 2 * count || body[0] != count || memcmp(body + 1 + 2 * count, "\0?\0", 3)) return 0;
    for (int i = 0; i < count; i++) {
        const int dc = jpeg->codes[i][0] = body[2 + 2 * i] >> 4, ac = jpeg->codes[i][1] = body[2 + 2 * i] & 15;
        if (body[1 + 2 * i] != jpeg->names[i] || jpeg->quantizer[i] >= TABLES || dc >= TABLES || ac >= TABLES) return 0;
        if (!jpeg->quantizers[jpeg->quantizer[i]] || !jpeg->tables[dc][0] || !jpeg->tables[ac][1]) return 0;
    }
    return 1;
}

static int read_quantizers(const uint8_t *body, int64_t size, Jpeg *jpeg) {
    for (; size > COEFFICIENTS && body[0] < TABLES; body += 1 + COEFFICIENTS, size -= 1 + COEFFICIENTS)
        jpeg->quantizers[body[0]] = body + 1;
    return size == 0;
}

static int read_codes(const uint8_t *body, int64_t size, Jpeg *jpeg) {
    while (size > LONGEST) {
        const int kind = body[0] >> 4, place = body[0] & 15;
        int64_t bytes = 1 + LONGEST;
        for (int i = 1; i <= LONGEST; i++) bytes += body[i];
        if (kind > 1 || place >= TABLES || bytes > size || bytes > 1 + LONGEST + 256) return 0;
        jpeg->tables[place][kind] = body + 1;
        body += bytes;
        size -= bytes;
    }
    return size == 0;
}

static int read_segment(int code, const uint8_t *body, int64_t size, Jpeg *jpeg) {
    switch (code) {
    case BASELINE:
    case EXTENDED: return read_frame(body, size, jpeg);
    case HUFFMAN_TABLES: return read_codes(body, size, jpeg);
    case QUANTIZATION_TABLES: return read_quantizers(body, size, jpeg);
    case RESTART_INTERVAL: return size == 2 ? (jpeg->interval = word(body), 1) : 0;
    case ADOBE: return size >= 12 && memcmp(body, "Adobe", 5) == 0 && body[11] == 1; // YCbCr
    default: return code == COMMENT || code >> 4 == 0xE;
    }
}

int read_headers(const uint8_t *data, int64_t size, Jpeg *jpeg) {
    memset(jpeg, 0, sizeof *jpeg);
    if (size < 2 || data[0] != MARKER || data[1] != START_OF_IMAGE) return 0;
    int64_t at = 2;
    for (int i = 0; i < MOST_SEGMENTS && at + 4 <= size; i++) {
        const int code = data[at + 1], bytes = word(data + at + 2) - 2;
        const uint8_t *body = data + at + 4;
        if (data[at] != MARKER || bytes < 0 || at + 4 + bytes > size) return 0;
        at += 4 + bytes;
        if (code == START_OF_SCAN) return jpeg->first = at, read_scan(body, bytes, jpeg);
        if (!read_segment(code, body, bytes, jpeg)) return 0;
    }
    return 0;
}

// The same for Python, which gets width, height and interval.
int describe_jpeg(const uint8_t *data, int64_t size, int64_t *description) {
    Jpeg jpeg;
    if (!read_headers(data, size, &jpeg)) return 0;
    description[0] = jpeg.width;
    description[1] = jpeg.height;
    description[2] = jpeg.interval;
    return 1;
}
