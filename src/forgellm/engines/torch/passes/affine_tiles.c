/* Products of weights in MLX's affine format (affine.h) with few columns, as a step of answers needs
 * them, in the int8 tiles of Intel's AMX. Weights are multiplied as the whole numbers that they are
 * packed as; activations become whole numbers of 15 bits for each group and column, as two digits:
 *
 *     sum_i (q_i scale + bias) x_i = scale step (128 sum_i q_i high_i + sum_i q_i low_i) + bias sum_i x_i
 */
#include <string.h>

#include "affine.h"
#include "tiles.h"

enum { ROWS = 16, COLUMNS = 16, LONGEST = 64, /* of a tile */ HIGHEST = 127 * 128, AHEAD = 16384 /* bytes */ };

/* Activations of each column: digits [width / 4, columns, 4], and of each group [groups, columns] the
 * step and the sum. */
typedef struct {
    int8_t *high, *low;
    float *steps, *sums;
} activations;

/* A group's numbers of one column, `stride` apart, in the order that weights stand in a tile of
 * `length`: those packed in 4 bits have the even ones before the odd. */
static inline void read_group(affine w, size length, const bf16 *from, size stride, float *out) {
    size apart = w.bits == 8 ? 1 : 2, count = length / apart;
    for (size start = 0; start < w.group; start += length)
        for (size first = 0; first < apart; first++)
            for (size i = 0; i < count; i++)
                out[start + first * count + i] =
                    from_bf16(from[(start + first + i * apart) * stride]);
}

/* By all threads together; columns behind `count` become zero. */
static void read_activations(affine w, size length, const bf16 *x, size is_turned, activations out,
                             size count, size columns) {
#pragma omp for schedule(static)
    for (size g = 0; g < w.width / w.group; g++) {
        size start = g * w.group, digits = w.group * columns;
        int32_t *high_words = memset(out.high + g * digits, 0, digits);
        int32_t *low_words = memset(out.low + g * digits, 0, digits);
        float *steps = memset(out.steps + g * columns, 0, columns * sizeof(float));
        float *sums = memset(out.sums + g * columns, 0, columns * sizeof(float));
        for (size c = 0; c < count; c++) {
            float own[w.group], most = 0, sum = 0;
            int8_t high[w.group], low[w.group];
            read_group(w, length, is_turned ? x + start * columns + c : x + c * w.width + start,
                       is_turned ? columns : 1, own);
            GREATEST_OVER(most)
            for (size i = 0; i < w.group; i++) {
                float magnitude = __builtin_fabsf(own[i]);
                most = magnitude > most ? magnitude : most;
            }
            SUM_OVER(sum)
            for (size i = 0; i < w.group; i++) sum += own[i];
            steps[c] = most / HIGHEST;
            sums[c] = sum;
            float inverse = most ? HIGHEST / most : 0;
            EACH_VALUE
            for (size i = 0; i < w.group; i++) {
                int32_t whole = __builtin_rintf(own[i] * inverse);
                high[i] = (whole + 64) >> 7;
                low[i] = whole - 128 * high[i];
            }
            for (size i = 0; i < w.group / 4; i++) {
                memcpy(high_words + i * columns + c, high + 4 * i, 4);
                memcpy(low_words + i * columns + c, low + 4 * i, 4);
            }
        }
    }
}

/* A strip's weights as bytes, tile after tile: `length` columns of ROWS rows each, LONGEST apart. */
static inline void unpack(affine w, const uint8_t *packed, size length, uint8_t *out) {
    const __m256i low = _mm256_set1_epi8(15);
    for (size r = 0; r < ROWS; r++) {
        const uint8_t *from = packed + r * w.width / 2;
        for (size i = 0; i < w.width; i += length) {
            __m256i both = length == LONGEST
                ? _mm256_loadu_si256((__m256i *)(from + i / 2))
                : _mm256_castsi128_si256(_mm_loadu_si128((__m128i *)(from + i / 2)));
            if (i % 128 == 0) _mm_prefetch(from + i / 2 + AHEAD, _MM_HINT_T1);
            uint8_t *to = out + i / length * ROWS * LONGEST + r * LONGEST;
            _mm256_storeu_si256((__m256i *)to, _mm256_and_si256(both, low));
            _mm256_storeu_si256((__m256i *)(to + length / 2),
                                _mm256_and_si256(_mm256_srli_epi16(both, 4), low));
        }
    }
    WRITTEN;
}

/* y [ROWS] += what a group's sums of digits, in tiles 0 and 1, stand for. */
static inline void add_group(affine w, size row, size g, const float *steps, const float *sums,
                             __m512 *y) {
    const bf16 *scales = w.scales, *biases = w.biases;
    size groups = w.width / w.group;
    int32_t high[ROWS * COLUMNS] __attribute__((aligned(64)));
    int32_t low[ROWS * COLUMNS] __attribute__((aligned(64)));
    _tile_stored(0, high, 64);
    _tile_stored(1, low, 64);
    __m512 step = _mm512_loadu_ps(steps), sum = _mm512_loadu_ps(sums);
#pragma GCC unroll 16
    for (size r = 0; r < ROWS; r++) {
        size at = (row + r) * groups + g;
        __m512i whole = _mm512_add_epi32(
            _mm512_slli_epi32(_mm512_load_si512(high + r * COLUMNS), 7),
            _mm512_load_si512(low + r * COLUMNS));
        __m512 found = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), step);
        y[r] = _mm512_fmadd_ps(found, _mm512_set1_ps(from_bf16(scales[at])), y[r]);
        y[r] = _mm512_fmadd_ps(sum, _mm512_set1_ps(from_bf16(biases[at])), y[r]);
    }
}

/* Tiles 0 and 1 for sums, 2 for weights, 3 and 4 for digits. */
static void use_tiles(size length, tile_config *before) {
    tile_config own = {.palette = 1};
    for (int i = 0; i < 5; i++) own.bytes[i] = 64, own.rows[i] = 16;
    own.bytes[2] = length, own.rows[3] = own.rows[4] = length / 4;
    _tile_storeconfig(before);
    _tile_loadconfig(&own);
}

/* ROWS rows of a product, with COLUMNS columns of the activations. */
static inline void rows_product(affine w, size row, size length, activations x, size columns, bf16 *out) {
    size stride = w.width * w.bits / 8;
    uint8_t numbers[ROWS * LONGEST * (w.width / length)] __attribute__((aligned(64)));
    const uint8_t *packed = w.packed + row * stride;
    if (w.bits == 4) unpack(w, packed, length, numbers);
    __m512 y[ROWS];
    for (size r = 0; r < ROWS; r++) y[r] = _mm512_setzero_ps();
    for (size start = 0; start < w.width; start += w.group) {
        _tile_zero(0);
        _tile_zero(1);
        for (size i = start; i < start + w.group; i += length) {
            const uint8_t *at = packed + i * w.bits / 8;
            if (w.bits == 8)
                for (size r = 0; r < ROWS; r++) _mm_prefetch(at + r * stride + AHEAD, _MM_HINT_T1);
            if (w.bits == 8)
                _tile_loadd(2, at, w.width);
            else
                _tile_loadd(2, numbers + i / length * ROWS * LONGEST, LONGEST);
            _tile_loadd(3, x.high + i * columns, columns * 4);
            _tile_loadd(4, x.low + i * columns, columns * 4);
            _tile_dpbusd(0, 2, 3);
            _tile_dpbusd(1, 2, 4);
        }
        size g = start / w.group;
        add_group(w, row, g, x.steps + g * columns, x.sums + g * columns, y);
    }
    for (size r = 0; r < ROWS; r++)
        _mm256_storeu_si256((__m256i *)(out + r * columns), (__m256i)_mm512_cvtneps_pbh(y[r]));
}

/* out [height, columns] = weight x, of which the first `count` columns are given, as rows
 * [count, width] or, `is_turned`, as [width, columns]. `room` has place for width * columns floats.
 * A column's bits depend on no other. */
void affine_product(const affine *weight, const bf16 *x, size is_turned, void *room, bf16 *out,
                    size count, size columns) {
    const affine w = *weight;
    size length = w.group < LONGEST ? w.group : LONGEST;
    activations read = {.high = room, .low = (int8_t *)room + w.width * columns};
    read.steps = (float *)(read.low + w.width * columns);
    read.sums = read.steps + w.width / w.group * columns;
#pragma omp parallel
    {
        read_activations(w, length, x, is_turned, read, count, columns);
        tile_config before;
        use_tiles(length, &before);
#pragma omp for schedule(static)
        for (size row = 0; row < w.height; row += ROWS)
            for (size column = 0; column < columns; column += COLUMNS) {
                activations own = {read.high + 4 * column, read.low + 4 * column,
                                   read.steps + column, read.sums + column};
                rows_product(w, row, length, own, columns, out + row * columns + column);
            }
        _tile_loadconfig(&before);
    }
}
