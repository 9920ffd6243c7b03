// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
/* Window attention and its backward pass, one head of one window at a time, so that scores never leave the caches.

   Queries, keys and values are read from, and their gradients written to, the rows of the linear layer `qkv`. A head is
   unpacked to float32 (a `Room`), in which all arithmetic is done. kernels.py describes the functions that it calls. */

#include "vectors.h"

enum { ROWS = 6, VECTORS = 4 }; /* of a tile: 24 sums, 4 vectors and a number occupy 29 of the 32 registers */

/* What all heads of a call share; kernels.py describes the arrays. */
typedef struct {
    const void *qkv;
    const float *added, *bias, *mask;
    int64_t windows, masks;
    int tokens, heads, size; /* size: the width of a head */
    float scale;
    int wide;
} Layer;

/* A head of a window: matrices of float32, with zeros after the last column up to a whole vector. */
typedef struct {
    int tokens, width;                        /* numbers in a row of tokens, and in a row of a head */
    float *query, *key, *value, *given, *out; /* (tokens, width) */
    float *key_columns, *value_columns;       /* (width, tokens): transposed */
    float *attention, *gradient;              /* (tokens, tokens) */
} Room;

static int filled(int count) { return (count + LANES - 1) / LANES * LANES; }

/* The float32 numbers that a thread needs for a Room. */
int64_t attention_room(int tokens, int size)
{
    return (int64_t)filled(size) * (5 * tokens + 2 * filled(tokens)) + 2 * (int64_t)tokens * filled(tokens);
}

/* The calling thread's part of `rooms`. */
static Room room_of(float *rooms, const Layer *layer)
{
    float *next = rooms + attention_room(layer->tokens, layer->size) * omp_get_thread_num();
    Room room = {.tokens = filled(layer->tokens), .width = filled(layer->size)};
    float **heads[] = {&room.query, &room.key, &room.value, &room.given, &room.out};
    for (int i = 0; i < 5; i++, next += layer->tokens * room.width)
        *heads[i] = next;
    room.key_columns = next;
    room.value_columns = room.key_columns + room.width * room.tokens;
    room.attention = room.value_columns + room.width * room.tokens;
    room.gradient = room.attention + layer->tokens * room.tokens;
    return room;
}

/* `out` = left * right in a tile: element (i, k) of `left` is at i * row + k * step. */
INLINED void tile(const float *left, int row, int step, const float *right, int right_row, float *out, int out_row,
                  int depth, int rows, int vectors)
{
    __m512 sums[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            sums[i][j] = _mm512_setzero_ps();
    for (int k = 0; k < depth; k++) {
        __m512 factors[VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            factors[j] = _mm512_loadu_ps(right + k * right_row + j * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            __m512 factor = _mm512_set1_ps(left[i * row + k * step]);
#pragma GCC unroll 8
            for (int j = 0; j < vectors; j++)
                sums[i][j] = _mm512_fmadd_ps(factor, factors[j], sums[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < vectors; j++)
            _mm512_storeu_ps(out + i * out_row + j * LANES, sums[i][j]);
}

/* As `tile`, for any number of rows and whole vectors of columns, at most VECTORS. */
INLINED void columns_of_tiles(const float *left, int row, int step, const float *right, int right_row, float *out,
                              int out_row, int rows, int depth, int vectors)
{
    int i = 0;
    for (; i + ROWS <= rows; i += ROWS)
        tile(left + i * row, row, step, right, right_row, out + i * out_row, out_row, depth, ROWS, vectors);
    for (; i < rows; i++)
        tile(left + i * row, row, step, right, right_row, out + i * out_row, out_row, depth, 1, vectors);
}

/* out (rows, columns) = left (rows, depth) * right (depth, columns). `row` and `step` are the strides of `left`; rows
   of the others are contiguous, and `columns` is a multiple of LANES. */
static void multiply(const float *left, int row, int step, const float *right, float *out, int rows, int depth,
                     int columns)
{
    for (int j = 0; j < columns; j += VECTORS * LANES) {
        const float *factors = right + j;
        float *sums = out + j;
        switch (columns - j) {
        case LANES:
            columns_of_tiles(left, row, step, factors, columns, sums, columns, rows, depth, 1);
            break;
        case 2 * LANES:
            columns_of_tiles(left, row, step, factors, columns, sums, columns, rows, depth, 2);
            break;
        case 3 * LANES:
            columns_of_tiles(left, row, step, factors, columns, sums, columns, rows, depth, 3);
            break;
        default:
            columns_of_tiles(left, row, step, factors, columns, sums, columns, rows, depth, VECTORS);
        }
    }
}

/* Reads a head of a window from `rows`, whose stride is `stride`, and adds a bias, if any. */
static void unpack(const void *rows, int64_t at, int64_t stride, const float *bias, float *out, const Layer *layer)
{
    const int width = filled(layer->size), wide = layer->wide;
    for (int i = 0; i < width; i += LANES) {
        __mmask16 mask = lanes(layer->size - i);
        __m512 added = bias ? _mm512_maskz_loadu_ps(mask, bias + i) : _mm512_setzero_ps();
        for (int token = 0; token < layer->tokens; token++) {
            int64_t from = at + token * stride + i;
            __m512 values = BY_TYPE(get, rows, from, mask);
            _mm512_storeu_ps(out + token * width + i, _mm512_add_ps(values, added));
        }
    }
}

/* Writes a head of a window to `rows`, and adds its tokens to `sums`, if any. */
static void pack(const float *head, void *rows, int64_t at, int64_t stride, float *sums, const Layer *layer)
{
    const int width = filled(layer->size), wide = layer->wide;
    for (int i = 0; i < width; i += LANES) {
        __mmask16 mask = lanes(layer->size - i);
        __m512 total = _mm512_setzero_ps();
        for (int token = 0; token < layer->tokens; token++) {
            __m512 values = _mm512_loadu_ps(head + token * width + i);
            total = _mm512_add_ps(total, values);
            BY_TYPE(set, rows, at + token * stride + i, mask, values);
        }
        if (sums)
            add_to(sums + i, mask, total);
    }
}

/* Transposes 16 x 16 numbers: in the pass of each bit, rows and lanes exchange that bit of their indices. */
INLINED void transpose_block(__m512 *rows)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#pragma GCC unroll 4
    for (int bit = 1; bit < LANES; bit *= 2) {
        __mmask16 second = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(bit));
        __m512i low = _mm512_mask_add_epi32(lane, second, lane, _mm512_set1_epi32(LANES - bit));
        __m512i high = _mm512_mask_add_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(bit)), second, lane,
                                             _mm512_set1_epi32(LANES));
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & bit)) {
                __m512 upper = rows[i], lower = rows[i + bit];
                rows[i] = _mm512_permutex2var_ps(upper, low, lower);
                rows[i + bit] = _mm512_permutex2var_ps(upper, high, lower);
            }
    }
}

/* (tokens, width) -> (width, tokens), both filled up with zeros. */
static void transpose(const float *head, float *out, int tokens, int width)
{
    for (int token = 0; token < tokens; token += LANES)
        for (int i = 0; i < width; i += LANES) {
            __m512 block[LANES];
#pragma GCC unroll 16
            for (int row = 0; row < LANES; row++)
                block[row] =
                    token + row < tokens ? _mm512_loadu_ps(head + (token + row) * width + i) : _mm512_setzero_ps();
            transpose_block(block);
#pragma GCC unroll 16
            for (int row = 0; row < LANES; row++)
                _mm512_storeu_ps(out + (i + row) * filled(tokens) + token, block[row]);
        }
}

/* Softmax of scale * row + bias + mask, in place. */
static void softmax(float *row, const float *bias, const float *mask, int tokens, float scale)
{
    __m512 most = _mm512_set1_ps(-__builtin_inff()), total = _mm512_setzero_ps();
    for (int i = 0; i < tokens; i += LANES) {
        __mmask16 there = lanes(tokens - i);
        __m512 added = _mm512_maskz_loadu_ps(there, bias + i);
        if (mask)
            added = _mm512_add_ps(added, _mm512_maskz_loadu_ps(there, mask + i));
        __m512 scores = _mm512_fmadd_ps(_mm512_loadu_ps(row + i), _mm512_set1_ps(scale), added);
        most = _mm512_mask_max_ps(most, there, most, scores);
        _mm512_storeu_ps(row + i, scores);
    }
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int i = 0; i < tokens; i += LANES) {
        __m512 powers = exponential(_mm512_sub_ps(_mm512_loadu_ps(row + i), most));
        powers = _mm512_maskz_mov_ps(lanes(tokens - i), powers);
        total = _mm512_add_ps(total, powers);
        _mm512_storeu_ps(row + i, powers);
    }
    total = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
    for (int i = 0; i < tokens; i += LANES)
        _mm512_storeu_ps(row + i, _mm512_mul_ps(_mm512_loadu_ps(row + i), total));
}

/* The gradient of a row of scores, times `scale`, from that of its softmax, in place; adds it to that of the bias. */
static void softmax_back(float *gradient, const float *attention, float *sums, int tokens, float scale)
{
    __m512 dot = _mm512_setzero_ps();
    for (int i = 0; i < tokens; i += LANES)
        dot = _mm512_fmadd_ps(_mm512_loadu_ps(gradient + i), _mm512_loadu_ps(attention + i), dot);
    dot = _mm512_set1_ps(_mm512_reduce_add_ps(dot));
    for (int i = 0; i < tokens; i += LANES) {
        __mmask16 there = lanes(tokens - i);
        __m512 found = _mm512_sub_ps(_mm512_loadu_ps(gradient + i), dot);
        found = _mm512_mul_ps(found, _mm512_loadu_ps(attention + i));
        add_to(sums + i, there, found);
        _mm512_storeu_ps(gradient + i, _mm512_mul_ps(found, _mm512_set1_ps(scale)));
    }
}

/* Reads queries, keys and values of a head, and makes its attention weights and what each token gets. */
static void attend(const Layer *layer, const Room *room, int64_t window, int64_t head)
{
    int tokens = layer->tokens;
    int64_t channels = layer->heads * layer->size, first = head * layer->size, square = tokens * tokens;
    float *parts[] = {room->query, room->key, room->value};
    for (int part = 0; part < 3; part++, first += channels)
        unpack(layer->qkv, window * tokens * 3 * channels + first, 3 * channels,
               layer->added ? layer->added + first : 0, parts[part], layer);
    transpose(room->key, room->key_columns, tokens, room->width);
    multiply(room->query, room->width, 1, room->key_columns, room->attention, tokens, layer->size, room->tokens);
    const float *bias = layer->bias + head * square,
                *mask = layer->mask ? layer->mask + window % layer->masks * square : 0;
    for (int i = 0; i < tokens; i++)
        softmax(room->attention + i * room->tokens, bias + i * tokens, mask ? mask + i * tokens : 0, tokens,
                layer->scale);
    multiply(room->attention, room->tokens, 1, room->value, room->out, tokens, tokens, room->width);
}

void attention(const void *qkv, const float *added, const float *bias, const float *mask, void *out, float *rooms,
               int64_t windows, int64_t masks, int tokens, int heads, int size, float scale, int wide)
{
    const Layer layer = {qkv, added, bias, mask, windows, masks, tokens, heads, size, scale, wide};
    const int64_t channels = heads * size;
#pragma omp parallel
    {
        int64_t first, end;
        const Room room = room_of(rooms, &layer);
        share(windows * heads, &first, &end);
        for (int64_t i = first; i < end; i++) {
            int64_t window = i / heads, head = i % heads;
            attend(&layer, &room, window, head);
            pack(room.out, out, window * tokens * channels + head * size, channels, 0, &layer);
        }
    }
}

/* The gradients of the scores, in room->gradient, and of queries, keys and values, written to `found` at `at`, whose
   tokens are added to `sums`. Given is room->given, the gradient of what each token got. */
static void attend_back(const Layer *layer, const Room *room, void *found, int64_t at, float *sums, float *bias_sums)
{
    int tokens = layer->tokens;
    int64_t channels = layer->heads * layer->size;
    multiply(room->attention, 1, room->tokens, room->given, room->out, tokens, tokens, room->width);
    pack(room->out, found, at + 2 * channels, 3 * channels, sums + 2 * channels, layer);
    transpose(room->value, room->value_columns, tokens, room->width);
    multiply(room->given, room->width, 1, room->value_columns, room->gradient, tokens, layer->size, room->tokens);
    for (int i = 0; i < tokens; i++)
        softmax_back(room->gradient + i * room->tokens, room->attention + i * room->tokens, bias_sums + i * tokens,
                     tokens, layer->scale);
    multiply(room->gradient, room->tokens, 1, room->key, room->out, tokens, tokens, room->width);
    pack(room->out, found, at, 3 * channels, sums, layer);
    multiply(room->gradient, 1, room->tokens, room->query, room->out, tokens, tokens, room->width);
    pack(room->out, found, at + channels, 3 * channels, sums + channels, layer);
}

/* Each thread has sums of its own, so that the order of additions is the same every time. */
void attention_back(const void *gradient, const void *qkv, const float *added, const float *bias, const float *mask,
                    void *out, void *found, float *bias_sums, float *row_sums, float *rooms, int64_t windows,
                    int64_t masks, int tokens, int heads, int size, float scale, int wide)
{
    const Layer layer = {qkv, added, bias, mask, windows, masks, tokens, heads, size, scale, wide};
    const int64_t channels = heads * size, square = tokens * tokens;
#pragma omp parallel
    {
        int64_t first, end, thread = omp_get_thread_num();
        const Room room = room_of(rooms, &layer);
        share(windows * heads, &first, &end);
        for (int64_t i = first; i < end; i++) {
            int64_t window = i / heads, head = i % heads, at = window * tokens * channels + head * size;
            attend(&layer, &room, window, head);
            pack(room.out, out, at, channels, 0, &layer);
            unpack(gradient, at, channels, 0, room.given, &layer);
            attend_back(&layer, &room, found, window * tokens * 3 * channels + head * size,
                        row_sums + thread * 3 * channels + head * size, bias_sums + (thread * heads + head) * square);
        }
    }
}
