/* Products of weights in MLX's affine format (affine.h) in the int8 tiles of Intel's AMX. Weights are
 * multiplied as the whole numbers that they are packed as; activations become whole numbers of 15 bits
 * for each group and column, as two digits:
 *
 *     sum_i (q_i scale + bias) x_i = scale step (128 sum_i q_i high_i + sum_i q_i low_i) + bias sum_i x_i
 *
 * Tiles of weights have 16 outputs and `length` inputs, four inputs of each output side by side.
 */
#include <string.h>

#include "affine.h"
#include "tiles.h"

enum {
    SIDE = 16,           /* outputs of a tile, and columns */
    LONGEST = 64,        /* inputs of a tile */
    HIGHEST = 127 * 128, /* of the whole numbers that activations become */
    AHEAD = 16384        /* bytes of weights that are fetched before they are read */
};

/* The same numbers tile after tile [height / 16, width / length, length * 16 * bits / 8], those in 4 bits
 * with the first half of a tile in the low ones; scales and biases [height / 16, groups, 16]. */
typedef struct {
    uint8_t *numbers;
    bf16 *scales, *biases;
    size bits, group, height, width;
} tiled;

static inline size tile_length(size group) { return group < LONGEST ? group : LONGEST; }

void put_in_tiles(const affine *from, const tiled *to, size first_row) {
    const affine w = *from;
    size length = tile_length(w.group), groups = w.width / w.group, half = length * SIDE / 2;
#pragma omp parallel for schedule(static)
    for (size row = 0; row < w.height; row += SIDE) {
        size strip = (first_row + row) / SIDE;
        uint8_t *out = to->numbers + strip * SIDE * w.width * w.bits / 8;
        for (size start = 0; start < w.width; start += length, out += length * SIDE * w.bits / 8)
            for (size r = 0; r < SIDE; r++) {
                const uint8_t *packed = packed_at(&w, row + r, start);
                for (size i = 0; i < length; i++) {
                    size place = i / 4 * LONGEST + r * 4 + i % 4;
                    if (w.bits == 8)
                        out[place] = packed[i];
                    else if (place < half)
                        out[place] = packed[i / 2] >> i % 2 * 4 & 15;
                    else
                        out[place - half] |= packed[i / 2] >> i % 2 * 4 << 4;
                }
            }
        for (size g = 0; g < groups; g++)
            for (size r = 0; r < SIDE; r++) {
                size at = (strip * groups + g) * SIDE + r;
                to->scales[at] = ((const bf16 *)w.scales)[(row + r) * groups + g];
                to->biases[at] = ((const bf16 *)w.biases)[(row + r) * groups + g];
            }
    }
}

/* Activations: digits [groups, columns, group], and of each group [groups, columns] step and sum. */
typedef struct {
    int8_t *high, *low;
    float *steps, *sums;
} activations;

/* By all threads together; columns behind `count` become zero. */
static void read_activations(tiled w, const bf16 *x, size is_turned, activations out, size count,
                             size columns) {
#pragma omp for schedule(static) collapse(2)
    for (size g = 0; g < w.width / w.group; g++)
        for (size c = 0; c < columns; c++) {
            size at = g * columns + c, start = g * w.group;
            int8_t *high = out.high + at * w.group, *low = out.low + at * w.group;
            const bf16 *from = is_turned ? x + start * columns + c : x + c * w.width + start;
            float own[w.group], most = 0, sum = 0;
            for (size i = 0; i < w.group; i++)
                own[i] = c < count ? from_bf16(from[is_turned ? i * columns : i]) : 0;
            GREATEST_OVER(most)
            for (size i = 0; i < w.group; i++) {
                float magnitude = __builtin_fabsf(own[i]);
                most = magnitude > most ? magnitude : most;
            }
            SUM_OVER(sum)
            for (size i = 0; i < w.group; i++) sum += own[i];
            out.steps[at] = most / HIGHEST;
            out.sums[at] = sum;
            float inverse = most ? HIGHEST / most : 0;
            EACH_VALUE
            for (size i = 0; i < w.group; i++) {
                int32_t whole = __builtin_rintf(own[i] * inverse);
                high[i] = (whole + 64) >> 7;
                low[i] = whole - 128 * high[i];
            }
        }
}

/* Tiles 0 and 1 for sums, 2 for weights, 3 and 4 for digits of so many columns. */
static void use_tiles(size length, size count, tile_config *before) {
    tile_config own = {.palette = 1};
    for (int i = 0; i < 5; i++) own.bytes[i] = 64, own.rows[i] = count;
    own.rows[2] = length / 4, own.bytes[3] = own.bytes[4] = length;
    _tile_storeconfig(before);
    _tile_loadconfig(&own);
}

/* One tile's numbers in 4 bits as bytes. */
static inline void unpack(const uint8_t *packed, size half, uint8_t *out) {
    const __m512i low = _mm512_set1_epi8(15);
    for (size i = 0; i < half; i += 64) {
        __m512i both = _mm512_loadu_si512(packed + i);
        _mm512_store_si512(out + i, _mm512_and_si512(both, low));
        _mm512_store_si512(out + half + i, _mm512_and_si512(_mm512_srli_epi16(both, 4), low));
    }
}

static inline __m512 floats_of(const bf16 *x) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((__m256i *)x)), 16);
}

/* y [count] += what a group's sums of digits, in tiles 0 and 1, stand for. */
static inline void add_group(const bf16 *scales, const bf16 *biases, const float *steps,
                             const float *sums, __m512 *y, size count) {
    int32_t high[SIDE * SIDE] __attribute__((aligned(64)));
    int32_t low[SIDE * SIDE] __attribute__((aligned(64)));
    _tile_stored(0, high, 64);
    _tile_stored(1, low, 64);
    __m512 scale = floats_of(scales), bias = floats_of(biases);
    for (size c = 0; c < count; c++) {
        __m512i whole = _mm512_add_epi32(
            _mm512_slli_epi32(_mm512_load_si512(high + c * SIDE), 7),
            _mm512_load_si512(low + c * SIDE));
        __m512 found = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(steps[c]));
        y[c] = _mm512_fmadd_ps(found, scale, _mm512_fmadd_ps(bias, _mm512_set1_ps(sums[c]), y[c]));
    }
}

/* 16 rows of a product. `bytes` are room for their numbers. */
static inline void strip_product(tiled w, size strip, activations x, uint8_t *bytes, bf16 *out,
                                 size count, size columns) {
    size length = tile_length(w.group), groups = w.width / w.group;
    size tile_bytes = length * SIDE * w.bits / 8;
    for (size column = 0; column < columns; column += SIDE) {
        const uint8_t *packed = w.numbers + strip * SIDE * w.width * w.bits / 8;
        uint8_t *unpacked = bytes;
        size here = count < SIDE ? count : SIDE;
        __m512 y[SIDE];
        for (size c = 0; c < SIDE; c++) y[c] = _mm512_setzero_ps();
        for (size g = 0; g < groups; g++) {
            size at = g * columns + column;
            _tile_zero(0);
            _tile_zero(1);
            for (size i = 0; i < w.group; i += length, packed += tile_bytes) {
                if (!column)
                    for (size j = 0; j < tile_bytes; j += 64)
                        _mm_prefetch(packed + j + AHEAD, _MM_HINT_T1);
                const uint8_t *numbers = packed;
                if (w.bits == 4) {
                    if (!column) unpack(packed, tile_bytes, unpacked);
                    WRITTEN;
                    numbers = unpacked;
                    unpacked += length * SIDE;
                }
                _tile_loadd(2, numbers, 64);
                _tile_loadd(3, x.high + at * w.group + i, w.group);
                _tile_loadd(4, x.low + at * w.group + i, w.group);
                _tile_dpbsud(0, 3, 2);
                _tile_dpbsud(1, 4, 2);
            }
            size vector = (strip * groups + g) * SIDE;
            add_group(w.scales + vector, w.biases + vector, x.steps + at, x.sums + at, y, here);
        }
        bf16 *to = out + strip * SIDE * columns + column;
        for (size c = 0; c < SIDE; c++) {
            bf16 own[SIDE];
            _mm256_storeu_si256((__m256i *)own, (__m256i)_mm512_cvtneps_pbh(y[c]));
            for (size r = 0; r < SIDE; r++) to[r * columns + c] = own[r];
        }
    }
}

/* out [height, columns] = weight x, of which the first `count` columns are given, as rows
 * [count, width] or, `is_turned`, as [width, columns]. `room` has place for width * columns floats.
 * A column's bits depend on no other. */
void affine_product(const tiled *weight, const bf16 *x, size is_turned, void *room, bf16 *out,
                    size count, size columns) {
    const tiled w = *weight;
    size length = tile_length(w.group);
    activations read = {.high = room, .low = (int8_t *)room + w.width * columns};
    read.steps = (float *)(read.low + w.width * columns);
    read.sums = read.steps + w.width / w.group * columns;
#pragma omp parallel
    {
        read_activations(w, x, is_turned, read, count, columns);
        tile_config before;
        use_tiles(length, count < SIDE ? count : SIDE, &before);
        uint8_t bytes[w.bits == 4 ? SIDE * w.width : 64] __attribute__((aligned(64)));
#pragma omp for schedule(static)
        for (size strip = 0; strip < w.height / SIDE; strip++)
            strip_product(w, strip, read, bytes, out, count, columns);
        _tile_loadconfig(&before);
    }
}
