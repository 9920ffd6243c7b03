// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Decodes parts of random JPEGs, sound and damaged, from buffers without a byte to spare, for a compiler that checks addresses:
//
//     cc -g -O1 -march=native -fsanitize=address,undefined -fno-sanitize-recover=all \
//         -o fuzz tests/dataset/fuzz_jpeg.c dataset/*.c -lm && ./fuzz 1000000 0
//
// The arguments are the number of rounds and the seed. A part of a sound file must be the same part of the whole picture.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

int decode_part(const uint8_t *, int64_t, int64_t, int64_t, int64_t, int64_t, uint8_t *);
int describe_jpeg(const uint8_t *, int64_t, int64_t *);

enum { ROOM = 1 << 20, MOST_SYMBOLS = 256, LONGEST = 16, END_OF_BLOCK = 0, SIXTEEN_ZEROS = 0xF0 };

static void *room(size_t bytes) {
    void *memory = malloc(bytes);
    return memory ? memory : (abort(), NULL);
}

typedef struct {
    int count, codes[MOST_SYMBOLS], lengths[MOST_SYMBOLS];
    uint8_t counts[LONGEST], symbols[MOST_SYMBOLS];
} Table;

typedef struct {
    uint8_t bytes[ROOM];
    int64_t size;
    int bits, used; // of the byte that is being written
} File;

static void put(File *file, int byte) { file->bytes[file->size++] = (uint8_t)byte; }

static void put_word(File *file, int word) {
    put(file, word >> 8);
    put(file, word);
}

static void put_bits(File *file, int value, int count) {
    for (int i = count - 1; i >= 0; i--) {
        file->bits = file->bits << 1 | (value >> i & 1);
        if (++file->used < 8) continue;
        put(file, file->bits);
        if (file->bits == 255) put(file, 0);
        file->bits = file->used = 0;
    }
}

// Codes of random lengths, but none of ones alone, for as many of the symbols as there is room for: the first one always has one.
static void make_table(Table *table, const uint8_t *symbols, int count) {
    memset(table, 0, sizeof *table);
    int code = 0;
    for (int length = 1; length <= LONGEST; length++, code <<= 1) {
        const int free = (1 << length) - 1 - code, left = count - table->count;
        const int most = free < left ? free : left, some = length == LONGEST ? most : (int)(draw() % (uint32_t)(most / 2 + 2));
        table->counts[length - 1] = (uint8_t)(some < most ? some : most);
        for (int i = 0; i < table->counts[length - 1]; i++, table->count++) {
            table->symbols[table->count] = symbols[table->count];
            table->codes[table->count] = code++;
            table->lengths[table->count] = length;
        }
    }
}

static void make_tables(Table *dc, Table *ac, int most_bits) {
    uint8_t symbols[MOST_SYMBOLS] = {0};
    for (int i = 0; i < 12; i++) symbols[i] = (uint8_t)i;
    make_table(dc, symbols, most_bits + 1);
    int count = 0;
    symbols[count++] = END_OF_BLOCK;
    symbols[count++] = SIXTEEN_ZEROS;
    const int some = upto(160);
    for (int i = 0; i < some; i++) symbols[count++] = (uint8_t)((draw() % 16) << 4 | (uint32_t)upto(most_bits < 10 ? most_bits : 10));
    make_table(ac, symbols, count);
}

static int put_symbol(File *file, const Table *table, int place) {
    put_bits(file, table->codes[place], table->lengths[place]);
    put_bits(file, (int)draw() & 0xFFFF, table->symbols[place] & 15);
    return table->symbols[place];
}

static void put_block(File *file, const Table *dc, const Table *ac, int fewest) {
    put_symbol(file, dc, (int)(draw() % (uint32_t)dc->count));
    for (int at = 0; at < 63;) {
        const int place = draw() % 16 < (uint32_t)fewest ? 0 : (int)(draw() % (uint32_t)ac->count);
        const int symbol = ac->symbols[place], advance = (symbol >> 4) + 1;
        if (place && at + advance > 63) continue;
        put_symbol(file, ac, place);
        if (!place) return;
        at += advance;
    }
}

static void end_segment(File *file, int marker) {
    while (file->used) put_bits(file, 1, 1);
    put_word(file, marker);
}

static void put_table(File *file, const Table *table, int name) {
    put_word(file, 0xFFC4);
    put_word(file, 2 + 1 + LONGEST + table->count);
    put(file, name);
    for (int i = 0; i < LONGEST; i++) put(file, table->counts[i]);
    for (int i = 0; i < table->count; i++) put(file, table->symbols[i]);
}

static void put_headers(File *file, int width, int height, int count, int sampling, int interval, int quantizer) {
    put_word(file, 0xFFD8);
    put_word(file, 0xFFDB);
    put_word(file, 67);
    put(file, 0);
    for (int i = 0; i < 64; i++) put(file, upto(quantizer));
    put_word(file, 0xFFC0);
    put_word(file, 8 + 3 * count);
    put(file, 8);
    put_word(file, height);
    put_word(file, width);
    put(file, count);
    for (int i = 0; i < count; i++) {
        put(file, i + 1);
        put(file, i ? 0x11 : sampling);
        put(file, 0);
    }
    if (!interval) return;
    put_word(file, 0xFFDD);
    put_word(file, 4);
    put_word(file, interval);
}

// Writes a sound file; `is_small` if its values are so small that it must be decoded.
static void make_file(File *file, int *width, int *height, int *is_small) {
    static const int samplings[] = {0x11, 0x21, 0x22};
    memset(file, 0, sizeof *file);
    Table dc, ac;
    const int count = draw() % 4 ? 3 : 1, sampling = count == 1 ? 0x11 : samplings[draw() % 3], across = sampling >> 4, down = sampling & 15;
    const int interval = draw() % 2 ? upto(9) : 0, most_bits = draw() % 2 ? 2 : upto(11), quantizer = draw() % 4 ? 1 : 255;
    *width = upto(60), *height = upto(60);
    put_headers(file, *width, *height, count, sampling, interval, quantizer);
    *is_small = most_bits == 2 && quantizer == 1 && (across == 1 || *width > 4);
    make_tables(&dc, &ac, most_bits);
    put_table(file, &dc, 0x00);
    put_table(file, &ac, 0x10);
    put_word(file, 0xFFDA);
    put_word(file, 6 + 2 * count);
    put(file, count);
    for (int i = 0; i < count; i++) put_word(file, (i + 1) << 8);
    put_word(file, 63);
    put(file, 0);
    const int units = ((*width - 1) / (8 * across) + 1) * ((*height - 1) / (8 * down) + 1), fewest = upto(12);
    for (int i = 0; i < units; i++) {
        if (interval && i && i % interval == 0) end_segment(file, 0xFFD0 + (i / interval - 1) % 8);
        for (int j = 0; j < across * down + count - 1; j++) put_block(file, &dc, &ac, fewest);
    }
    end_segment(file, 0xFFD9);
}

static uint8_t *part(const uint8_t *data, int64_t size, int left, int top, int width, int height) {
    uint8_t *exactly = room((size_t)(size ? size : 1)), *out = room((size_t)3 * width * height);
    memcpy(exactly, data, (size_t)size);
    const int is_done = decode_part(exactly, size, left, top, width, height, out);
    free(exactly);
    if (is_done) return out;
    free(out);
    return NULL;
}

static void damage(File *file) {
    const int64_t scan = draw() % 2 ? 0 : file->size / 2;
    for (int changes = upto(4); changes > 0; changes--) {
        uint8_t *byte = file->bytes + scan + draw() % (file->size - scan);
        *byte = draw() % 3 ? *byte ^ 1 << draw() % 8 : draw() % 2 ? 255 : (uint8_t)draw();
    }
    if (draw() % 8 == 0) file->size = upto((int)file->size);
}

static int check(File *file) {
    int width, height, is_small;
    make_file(file, &width, &height, &is_small);
    const int left = upto(width) - 1, top = upto(height) - 1, wide = upto(width - left), high = upto(height - top);
    uint8_t *whole = part(file->bytes, file->size, 0, 0, width, height), *found = NULL;
    if (is_small && !whole) abort();
    if (whole && !(found = part(file->bytes, file->size, left, top, wide, high))) abort();
    for (int y = 0; whole && y < high; y++)
        if (memcmp(found + 3 * wide * y, whole + 3 * (width * (top + y) + left), (size_t)3 * wide)) abort();
    const int is_decoded = whole != NULL;
    free(whole);
    free(found);
    damage(file);
    int64_t description[3];
    if (!describe_jpeg(file->bytes, file->size, description)) return is_decoded;
    free(part(file->bytes, file->size, left, top, wide, high)); // which may reach out of the picture
    return is_decoded;
}

int main(int count, char **arguments) {
    const long rounds = count > 1 ? atol(arguments[1]) : 1000;
    state = count > 2 ? strtoull(arguments[2], NULL, 10) : 0;
    File *file = room(sizeof *file);
    long decoded = 0;
    for (long i = 0; i < rounds; i++) decoded += check(file);
    free(file);
    printf("%ld rounds without an error, %ld files decoded\n", rounds, decoded);
    return 0;
}
