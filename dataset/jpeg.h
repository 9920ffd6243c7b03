// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Ordinary JPEGs (ITU-T T.81): sequential, 8 bits, Huffman-coded in one scan, grey or YCbCr with colours of full size, half the
// width, or half the width and height. The files are untrusted: functions return 0 for anything unexpected, which is left to a
// complete decoder.

#pragma once

#include <stdint.h>
#include <string.h>

enum { MOST_COMPONENTS = 3, TABLES = 4, COEFFICIENTS = 64, LONGEST = 16, LOOK = 10 };
enum { RESTART = 0xD0, END_OF_IMAGE = 0xD9, MARKER = 0xFF };

// The contents of the headers.
typedef struct {
    int64_t width, height, across, down; // of the picture; brightness samples per colour sample
    int64_t interval, first;             // MCUs (blocks coded together) between restart markers, or 0; where they begin
    int count;                           // of components; the following have an entry for each
    uint8_t names[MOST_COMPONENTS], quantizer[MOST_COMPONENTS], codes[MOST_COMPONENTS][2];
    const uint8_t *quantizers[TABLES], *tables[TABLES][2]; // in the file; of DC and of AC codes, LONGEST counts and the symbols
} Jpeg;

int read_headers(const uint8_t *data, int64_t size, Jpeg *jpeg);

// The coefficients at the start of the next LOOK bits: one, or two if the bits hold both. Places of coefficients are numbered 0 to
// 63 in coding order; `advance` leads from one place to the next, and ends a block if it is BAD or more.
typedef struct {
    uint8_t bits, advance; // of one or both; 0 and HARD if the first is longer than LOOK
    uint8_t first_bits, first_advance;
    int16_t values[2]; // or, if longer, the lengths of its code (0 if unknown) and of its value
} Step;

enum { BAD = 64, END_OF_BLOCK = 128, HARD = 255 };

// Huffman codes.
typedef struct {
    Step steps[1 << LOOK];
    int ends[LONGEST + 1], shifts[LONGEST + 1]; // by length: the code after the last one, and the offset from code to symbol index
    const uint8_t *symbols;
} Codes;

// Builds the codes from a table of the file.
int make_codes(Codes *codes, const uint8_t *table, int is_dc);

// The highest `have` bits of `bits` are to be read, then bytes from `at` on.
typedef struct {
    uint64_t bits;
    int have;
    const uint8_t *at;
} Bits;

enum { MOST_BITS = 27, BLOCK_BYTES = COEFFICIENTS * MOST_BITS / 8 + 16 }; // per coefficient; more than `read_block` can read

// Reads the coefficients of a block into zeros, in the order of `PLACES`; nothing is written without a `block`.
int read_block(Bits *in, const Codes *dc, const Codes *ac, uint32_t *last_dc, int16_t *block);

// Positions in a block of the coefficients in coding order (T.81 figure A.6). A block has eight columns of rows 0 and 4, 1 and 5,
// 2 and 6, 3 and 7, with the values of two rows interleaved.
extern const uint8_t PLACES[COEFFICIENTS];
