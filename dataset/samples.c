// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Samples of JPEGs and their colours, bit for bit as with libjpeg-turbo's accurate integer transform and interpolation.

#include "samples.h"

enum { SIDE = 8 }; // of a block

// One dimension of the inverse cosine transform, times 2^15.5, of eight columns with rows r and r + 4 in pairs.
static inline void transform(const __m256i *pairs, __m256i *out, int shift) {
#define TIMES(pair, low, high) _mm256_madd_epi16(pairs[pair], _mm256_set1_epi32((int)((uint32_t)(high) << 16 | ((low) & 0xFFFF))))
    const __m256i half = _mm256_set1_epi32(1 << (shift - 1));
    const __m256i sum = _mm256_add_epi32(TIMES(0, 8192, 8192), half), difference = _mm256_add_epi32(TIMES(0, 8192, -8192), half);
    const __m256i slow = TIMES(2, 10703, 4433), fast = TIMES(2, 4433, -10704);
    const __m256i even[4] = {_mm256_add_epi32(sum, slow), _mm256_add_epi32(difference, fast),
                             _mm256_sub_epi32(difference, fast), _mm256_sub_epi32(sum, slow)};
    const __m256i odd[4] = {_mm256_add_epi32(TIMES(1, 11363, 6437), TIMES(3, 9633, 2260)),
                            _mm256_add_epi32(TIMES(1, 9633, -11362), TIMES(3, -2259, -6436)),
                            _mm256_add_epi32(TIMES(1, 6437, 2261), TIMES(3, -11362, 9633)),
                            _mm256_add_epi32(TIMES(1, 2260, 9633), TIMES(3, -6436, -11363))};
#undef TIMES
    for (int i = 0; i < 4; i++) {
        out[i] = _mm256_srai_epi32(_mm256_add_epi32(even[i], odd[i]), shift);
        out[7 - i] = _mm256_srai_epi32(_mm256_sub_epi32(even[i], odd[i]), shift);
    }
}

// Transposes; pairs as before.
static inline void transpose(const __m256i *rows, __m256i *pairs) {
    const __m256i halves = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15, 0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12,
                                            13, 6, 7, 14, 15);
    __m256i in[4];
    for (int i = 0; i < 4; i++) {
        const __m256i both = _mm256_packs_epi32(rows[i], rows[i + 4]);
        in[i] = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(both, 0xD8), halves);
    }
    const __m256i a = _mm256_unpacklo_epi32(in[0], in[1]), b = _mm256_unpackhi_epi32(in[0], in[1]);
    const __m256i c = _mm256_unpacklo_epi32(in[2], in[3]), d = _mm256_unpackhi_epi32(in[2], in[3]);
    pairs[0] = _mm256_unpacklo_epi64(a, c);
    pairs[1] = _mm256_unpackhi_epi64(a, c);
    pairs[2] = _mm256_unpacklo_epi64(b, d);
    pairs[3] = _mm256_unpackhi_epi64(b, d);
}

// Four columns of eight 32-bit values as rows of four bytes: 0, 1, 2, 3 and 4, 5, 6, 7.
static inline __m256i four_bytes(const __m256i *columns) {
    const __m256i order = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14,
                                           3, 7, 11, 15);
    const __m256i low = _mm256_packs_epi32(columns[0], columns[1]), high = _mm256_packs_epi32(columns[2], columns[3]);
    return _mm256_shuffle_epi8(_mm256_xor_si256(_mm256_packs_epi16(low, high), _mm256_set1_epi8(-128)), order);
}

int is_exact(const Greatest *greatest) { return _mm256_testz_si256(greatest->bits, _mm256_set1_epi16((int16_t)0xC000)); }

static inline void note(const __m256i *values, Greatest *greatest) {
    for (int i = 0; i < 4; i++) greatest->bits = _mm256_or_si256(greatest->bits, _mm256_abs_epi16(values[i]));
}

void write_samples(const int16_t *block, const int16_t *quantizers, uint8_t *out, int64_t stride, Greatest *greatest) {
    __m256i pairs[4], values[8];
    for (int i = 0; i < 4; i++) pairs[i] = _mm256_mullo_epi16(((const __m256i *)block)[i], ((const __m256i *)quantizers)[i]);
    note(pairs, greatest);
    transform(pairs, values, 11);
    transpose(values, pairs);
    note(pairs, greatest);
    transform(pairs, values, 18);
    const __m256i left = four_bytes(values), right = four_bytes(values + 4);
    const __m256i some = _mm256_unpacklo_epi32(left, right), others = _mm256_unpackhi_epi32(left, right);
    const __m256i rows[2] = {_mm256_permute2x128_si256(some, others, 0x20), _mm256_permute2x128_si256(some, others, 0x31)};
    for (int i = 0; i < SIDE; i++) memcpy(out + stride * i, (const uint8_t *)rows + SIDE * i, SIDE);
}

static inline __m256i words(const uint8_t *in) { return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)in)); }

// 16 pixels; red is y + 1.402 v, green y - 0.344 u - 0.714 v, blue y + 1.772 u, each product rounded to integers.
static inline void write_16(__m256i y, __m256i u, __m256i v, uint8_t *out) {
    const __m256i one = _mm256_set1_epi16(1), middle = _mm256_set1_epi16(128);
    u = _mm256_sub_epi16(u, middle);
    v = _mm256_sub_epi16(v, middle);
    const __m256i u2 = _mm256_add_epi16(u, u), v2 = _mm256_add_epi16(v, v);
    const __m256i red_part = _mm256_srai_epi16(_mm256_add_epi16(_mm256_mulhi_epi16(v2, _mm256_set1_epi16(26345)), one), 1);
    const __m256i blue_part = _mm256_srai_epi16(_mm256_add_epi16(_mm256_mulhi_epi16(u2, _mm256_set1_epi16(-14942)), one), 1);
    const __m256i factors = _mm256_set1_epi32((int)(18734u << 16 | (uint16_t)-22554)), half = _mm256_set1_epi32(1 << 15);
    const __m256i low = _mm256_madd_epi16(_mm256_unpacklo_epi16(u, v), factors);
    const __m256i high = _mm256_madd_epi16(_mm256_unpackhi_epi16(u, v), factors);
    const __m256i green_part = _mm256_packs_epi32(_mm256_srai_epi32(_mm256_add_epi32(low, half), 16),
                                                  _mm256_srai_epi32(_mm256_add_epi32(high, half), 16));
    const __m256i red = _mm256_add_epi16(y, _mm256_add_epi16(v, red_part));
    const __m256i green = _mm256_add_epi16(y, _mm256_sub_epi16(green_part, v));
    const __m256i blue = _mm256_add_epi16(y, _mm256_add_epi16(u2, blue_part));
    const __m256i rg = _mm256_permute4x64_epi64(_mm256_packus_epi16(red, green), 0xD8);
    const byte16 r = (byte16)_mm256_castsi256_si128(rg), g = (byte16)_mm256_extracti128_si256(rg, 1);
    const byte16 b = (byte16)_mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi16(blue, blue), 0xD8));
    const byte16 first = SHUFFLED(r, g, 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5);
    const byte16 second = SHUFFLED(r, g, 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26);
    const byte16 third = SHUFFLED(r, g, 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0);
    store(SHUFFLED(first, b, 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15), out);
    store(SHUFFLED(second, b, 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15), out + 16);
    store(SHUFFLED(third, b, 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31), out + 32);
}

// Interpolates a row of colours with half the width of brightness: writes two values for each of the samples first..end of a row of
// `wide`. If colours have half the height as well, `near` is the neighbouring row of colours, else the row itself. `sums` has room
// for one more on each side.
static void interpolate(const uint8_t *at, const uint8_t *near, int64_t first, int64_t end, int64_t wide, int down, uint16_t *sums,
                        uint8_t *out) {
    const int before = down == 2 ? 8 : 4, after = down == 2 ? 7 : 8;
    const int64_t count = end - first;
    for (int64_t i = -1; i <= count; i++) sums[i] = (uint16_t)(3 * at[i] + near[i]);
    if (first == 0) sums[-1] = sums[0];
    if (end == wide) sums[count] = sums[count - 1];
    for (int64_t i = 0; i < count; i++) {
        out[2 * i] = (uint8_t)((3 * sums[i] + sums[i - 1] + before) >> 4);
        out[2 * i + 1] = (uint8_t)((3 * sums[i] + sums[i + 1] + after) >> 4);
    }
}

static int64_t row_bytes(const Box *box) { return (box->width + 2 * PAD) & ~7; }

int64_t room_for(const Box *box) { return 3 * row_bytes(box); }

// Colours of row `y` of a box, one per pixel; in `out` if they must be interpolated.
static const uint8_t *colours(const Jpeg *jpeg, const Plane *plane, const Box *box, int64_t y, uint16_t *sums, uint8_t *out) {
    const int64_t across = jpeg->across, down = jpeg->down, high = (jpeg->height + down - 1) / down, row = y / down;
    const int64_t first = box->left / across, end = (box->left + box->width - 1) / across + 1;
    const uint8_t *at = plane->samples + (row - plane->top) * plane->stride + first - plane->left, *near = at;
    if (across == 1) return at;
    if (down == 2 && y & 1 && row + 1 < high) near = at + plane->stride;
    if (down == 2 && !(y & 1) && row > 0) near = at - plane->stride;
    interpolate(at, near, first, end, (jpeg->width + 1) / 2, (int)down, sums + 1, out);
    return out + (box->left & 1);
}

static void write_row(const uint8_t *y, const uint8_t *u, const uint8_t *v, int64_t width, uint8_t *out) {
    int64_t x = 0;
    for (; x + 16 <= width; x += 16) write_16(words(y + x), words(u + x), words(v + x), out + CHANNELS * x);
    uint8_t last[CHANNELS * 16];
    write_16(words(y + x), words(u + x), words(v + x), last);
    memcpy(out + CHANNELS * x, last, CHANNELS * (width - x));
}

void write_pixels(const Jpeg *jpeg, const Plane *planes, const Box *box, uint8_t *room, uint8_t *out) {
    const int64_t bytes = row_bytes(box);
    uint16_t *sums = (uint16_t *)room;
    memset(room, 128, room_for(box)); // no colour
    for (int64_t y = box->top; y < box->top + box->height; y++, out += CHANNELS * box->width) {
        const uint8_t *levels = planes[0].samples + (y - planes[0].top) * planes[0].stride + box->left - planes[0].left;
        const uint8_t *u = jpeg->count == 1 ? room : colours(jpeg, planes + 1, box, y, sums, room + bytes);
        const uint8_t *v = jpeg->count == 1 ? room : colours(jpeg, planes + 2, box, y, sums, room + 2 * bytes);
        write_row(levels, u, v, box->width, out);
    }
}
