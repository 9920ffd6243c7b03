// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Huffman-coded blocks of JPEGs (ITU-T T.81, annex C and F.2.2).

#include "jpeg.h"

enum { MOST_DC_BITS = 11, MOST_AC_BITS = 10 }; // of values, in pictures of 8 bits

const uint8_t PLACES[COEFFICIENTS] = {
    0, 2,  16, 32, 18, 4,  6, 20, 34, 48, 1,  50, 36, 22, 8,  10, 24, 38, 52, 3,  17, 33, 19, 5,  54, 40, 26, 12, 14, 28, 42, 56,
    7, 21, 35, 49, 51, 37, 23, 9, 58, 44, 30, 46, 60, 11, 25, 39, 53, 55, 41, 27, 13, 62, 15, 29, 43, 57, 59, 45, 31, 47, 61, 63};

// The value of the lowest `size` bits; negative if the first of these bits is 0.
static inline int value_of(uint64_t bits, int size) {
    const int value = (int)bits & ((1 << size) - 1);
    return value < (1 << size) >> 1 ? value - (1 << size) + 1 : value;
}

// The number of places that a symbol advances: past a run of zeros, or sixteen zeros.
static int advance_of(int symbol, int is_dc) {
    const int size = symbol & 15, run = symbol >> 4;
    if (is_dc) return 0;
    if (size == 0) return run == 15 ? 16 : run ? BAD : END_OF_BLOCK;
    return size > MOST_AC_BITS ? BAD : run + 1;
}

static void add_code(Codes *codes, int code, int length, int symbol, int is_dc) {
    const int size = symbol & 15, bits = length + size, spare = LOOK - length;
    const uint8_t advance = (uint8_t)advance_of(symbol, is_dc);
    for (int i = code << spare; i < (code + 1) << spare; i++) {
        if (bits <= LOOK) {
            const int16_t value = (int16_t)value_of((uint64_t)i >> (LOOK - bits), size);
            codes->steps[i] = (Step){(uint8_t)bits, advance, (uint8_t)bits, advance, {value, value}};
        } else {
            codes->steps[i] = (Step){0, HARD, 0, advance, {(int16_t)length, (int16_t)size}};
        }
    }
}

// Lets steps with bits left also read the next coefficient.
static void pair_steps(Codes *codes) {
    for (int i = 0; i < 1 << LOOK; i++) {
        Step *step = codes->steps + i;
        const Step *next = codes->steps + (i << step->first_bits & ((1 << LOOK) - 1));
        if (!step->bits || !next->bits || step->first_bits + next->first_bits > LOOK) continue;
        if (step->first_advance >= BAD || next->first_advance >= BAD) continue;
        step->bits = step->first_bits + next->first_bits;
        step->advance = step->first_advance + next->first_advance;
        step->values[1] = next->values[0];
    }
}

int make_codes(Codes *codes, const uint8_t *table, int is_dc) {
    int code = 0, symbol = 0;
    codes->symbols = table + LONGEST;
    for (int i = 0; i < 1 << LOOK; i++) codes->steps[i] = (Step){0, HARD, 0, 0, {0, 0}};
    for (int length = 1; length <= LONGEST; length++, code <<= 1) {
        codes->shifts[length] = symbol - code;
        for (int i = 0; i < table[length - 1]; i++, code++, symbol++) {
            if (code + 1 >= 1 << length || (is_dc && codes->symbols[symbol] > MOST_DC_BITS)) return 0; // all ones is not a code
            if (length <= LOOK) add_code(codes, code, length, codes->symbols[symbol], is_dc);
        }
        codes->ends[length] = code;
    }
    if (!is_dc) pair_steps(codes);
    return 1;
}

// The symbol of a code longer than LOOK, and its length; -1 if there is none.
static int long_symbol(const Codes *codes, uint64_t bits, int *length) {
    for (int i = LOOK + 1; i <= LONGEST; i++) {
        const int code = (int)(bits >> (64 - i));
        if (code < codes->ends[i]) return *length = i, codes->symbols[(code + codes->shifts[i]) & 255];
    }
    return -1;
}

// Refills the bits: there are 56 or more afterwards.
static inline void refill(Bits *in) {
    uint64_t next;
    memcpy(&next, in->at, sizeof next);
    in->bits |= __builtin_bswap64(next) >> in->have;
    in->at += (63 - in->have) >> 3;
    in->have |= 56;
}

static inline void consume(Bits *in, int count) {
    in->bits <<= count;
    in->have -= count;
}

static inline Step next_step(const Bits *in, const Codes *codes) { return codes->steps[in->bits >> (64 - LOOK)]; }

// Reads one coefficient; returns the number of places to advance.
static inline int read_one(Bits *in, const Codes *codes, int is_dc, int *value) {
    const Step step = next_step(in, codes);
    if (step.bits) {
        *value = step.values[0];
        consume(in, step.first_bits);
        return step.first_advance;
    }
    int length = step.values[0], size = step.values[1], advance = step.first_advance;
    if (!length) {
        const int symbol = long_symbol(codes, in->bits, &length);
        if (symbol < 0) return BAD;
        size = symbol & 15;
        advance = advance_of(symbol, is_dc);
    }
    *value = value_of(in->bits >> (64 - length - size), size);
    consume(in, length + size);
    return advance;
}

static inline int read_coefficients(Bits *stream, const Codes *dc, const Codes *ac, uint32_t *last_dc, int16_t *block) {
    Bits in = *stream;
    int value = 0, place = 0;
    refill(&in);
    if (read_one(&in, dc, 1, &value) >= BAD) return 0;
    *last_dc += (uint32_t)value;
    if (block) block[0] = (int16_t)*last_dc;
    while (place < COEFFICIENTS - 1) {
        refill(&in);
        Step step = next_step(&in, ac);
        for (int i = 0; i < 3 && place + step.advance < COEFFICIENTS - 1; i++) { // 56 bits are three steps and a coefficient
            if (block) block[PLACES[place + step.first_advance]] = step.values[0];
            place += step.advance;
            if (block) block[PLACES[place]] = step.values[1];
            consume(&in, step.bits);
            step = next_step(&in, ac);
        }
        if (place + step.advance < COEFFICIENTS - 1) continue;
        place += read_one(&in, ac, 0, &value);
        if (place < COEFFICIENTS && block) block[PLACES[place]] = (int16_t)value;
    }
    *stream = in;
    return place == COEFFICIENTS - 1 || place >= END_OF_BLOCK;
}

int read_block(Bits *in, const Codes *dc, const Codes *ac, uint32_t *last_dc, int16_t *block) {
    return block ? read_coefficients(in, dc, ac, last_dc, block) : read_coefficients(in, dc, ac, last_dc, NULL);
}
