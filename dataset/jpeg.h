// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Ordinary JPEGs (ITU-T T.81): sequential, of 8 bits, Huffman-coded in one scan, grey or YCbCr with colours of the same size, of half
// the width or of half the width and height. The files are untrusted: whatever is not exactly as expected gives 0, and is left to
// a complete decoder.

#pragma once

#include <stdint.h>
#include <string.h>

enum { MOST_COMPONENTS = 3, TABLES = 4, COEFFICIENTS = 64, LONGEST = 16, LOOK = 10 };
enum { RESTART = 0xD0, END_OF_IMAGE = 0xD9, MARKER = 0xFF };

// What the headers say.
typedef struct {
    int64_t width, height, across, down; // of the picture; of brightness samples to each one of colour
    int64_t interval, first;             // MCUs, the blocks that are coded together, between restart markers, or 0; where they begin
    int count;                           // of components, for each of which the following have an entry
    uint8_t names[MOST_COMPONENTS], quantizer[MOST_COMPONENTS], codes[MOST_COMPONENTS][2];
    const uint8_t *quantizers[TABLES], *tables[TABLES][2]; // in the file; of DC and of AC codes, LONGEST counts and the symbols
} Jpeg;

int read_headers(const uint8_t *data, int64_t size, Jpeg *jpeg);

// What the next LOOK bits begin with: a coefficient, or two if the bits hold both. Coefficients have places 0 to 63 in the order in
// which they are coded, and advances from one place to the next; those of BAD and more end a block.
typedef struct {
    uint8_t bits, advance; // of one or both; 0 and HARD if the first is longer than LOOK
    uint8_t first_bits, first_advance;
    int16_t values[2]; // or, if it is longer, the lengths of its code, 0 if unknown, and of its value
} Step;

enum { BAD = 64, END_OF_BLOCK = 128, HARD = 255 };

// Huffman codes.
typedef struct {
    Step steps[1 << LOOK];
    int ends[LONGEST + 1], shifts[LONGEST + 1]; // for each length, the code after the last one, and what makes its code a symbol's index
    const uint8_t *symbols;
} Codes;

// Makes the codes of a table of the file.
int make_codes(Codes *codes, const uint8_t *table, int is_dc);

// The highest `have` bits of `bits` are to be read, then bytes from `at` on.
typedef struct {
    uint64_t bits;
    int have;
    const uint8_t *at;
} Bits;

enum { MOST_BITS = 27, BLOCK_BYTES = COEFFICIENTS * MOST_BITS / 8 + 16 }; // of a coefficient; more than `read_block` may look at

// Reads the coefficients of a block into zeros, in the order of `PLACES`; nothing is written without a `block`.
int read_block(Bits *in, const Codes *dc, const Codes *ac, uint32_t *last_dc, int16_t *block);

// Where blocks have the coefficients that are coded one after the other (T.81 figure A.6): eight columns of rows 0 and 4, 1 and 5,
// 2 and 6, 3 and 7, values of the two rows in turn.
extern const uint8_t PLACES[COEFFICIENTS];
