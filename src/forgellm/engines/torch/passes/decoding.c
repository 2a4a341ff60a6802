/* What lies between the matrix products of a step that adds one token to each of some answers.
 *
 * Compiled once for each type T of weights, products and caches, float or bf16. Products give
 * [out, columns] with a token in each of the first `rows` columns, and read [rows, in]; sums are
 * float. No task depends on how many others there are, so that a row's bits do not either.
 */
#include "numbers.h"

#include <math.h>
#include <stdint.h>

enum { KEYS = 32, VALUES = 512, /* that are taken at a time */ LINE = 64 /* bytes of the cache */ };

/* x += a product, where there is one; out = weight * x / rms(x). */
void step_norm(float *x, const T *product, size columns, const float *weight, float epsilon, T *out,
               size rows, size width) {
#pragma omp parallel for schedule(static) if (rows > 1)
    for (size r = 0; r < rows; r++) {
        float *row = x + r * width, squares = 0;
        if (product)
            for (size i = 0; i < width; i++) row[i] += FROM_T(product[i * columns + r]);
        SUM_OVER(squares)
        for (size i = 0; i < width; i++) squares += row[i] * row[i];
        float inverse = 1.0f / __builtin_sqrtf(squares / width + epsilon);
        T *to = out + r * width;
        EACH_VALUE
        for (size i = 0; i < width; i++) to[i] = TO_T(row[i] * inverse * weight[i]);
    }
}

/* silu(gate) * up of [2 * count], whatever their columns. */
void step_swiglu(const T *gate_up, T *out, size count) {
#pragma omp parallel for schedule(static)
    for (size start = 0; start < count; start += VALUES) {
        size stop = start + VALUES < count ? start + VALUES : count;
        EACH_VALUE
        for (size i = start; i < stop; i++) {
            float x = FROM_T(gate_up[i]);
            out[i] = TO_T(x / (1.0f + exp2_of(-LOG2_E * x)) * FROM_T(gate_up[i + count]));
        }
    }
}

/* A head from its place in a product, normed where there is a weight and turned where there are angles
 * (as plain.rotate). */
static void read_head(const T *product, size columns, const float *cosine, const float *sine,
                      const float *weight, float epsilon, float *out, size width) {
    size half = width / 2;
    float squares = 0;
    for (size i = 0; i < width; i++) {
        out[i] = FROM_T(product[i * columns]);
        squares += out[i] * out[i];
    }
    if (weight) {
        float inverse = 1.0f / __builtin_sqrtf(squares / width + epsilon);
        for (size i = 0; i < width; i++) out[i] *= inverse * weight[i];
    }
    if (cosine)
        for (size i = 0; i < half; i++) {
            float first = out[i], second = out[i + half];
            out[i] = first * cosine[i] - second * sine[i];
            out[i + half] = second * cosine[i] + first * sine[i];
        }
}

/* What the queries of one key head, [group, width] and scaled for base 2, find in `length` keys and
 * values: a softmax over blocks of keys that corrects what it has when a greater score comes (Milakov
 * and Gimelshein 2018, arXiv 1805.02867). */
static void attend(const float *queries, const T *keys, const T *values, size length, size group,
                   size width, T *out) {
    float found[group * width], sums[group], most[group], scores[group * KEYS], row[width];
    for (size i = 0; i < group * width; i++) found[i] = 0;
    for (size g = 0; g < group; g++) sums[g] = 0, most[g] = -INFINITY;
    for (size start = 0; start < length; start += KEYS) {
        size count = length - start < KEYS ? length - start : KEYS;
        for (size j = 0; j < count; j++) {
            const T *key = keys + (start + j) * width;
            for (size i = 0; i < width; i += LINE / sizeof(T)) {
                __builtin_prefetch(key + KEYS * width + i);
                __builtin_prefetch(values + (start + j) * width + i);
            }
            EACH_VALUE
            for (size i = 0; i < width; i++) row[i] = FROM_T(key[i]);
            for (size g = 0; g < group; g++) {
                const float *query = queries + g * width;
                float score = 0;
                SUM_OVER(score)
                for (size i = 0; i < width; i++) score += query[i] * row[i];
                scores[g * KEYS + j] = score;
            }
        }
        for (size g = 0; g < group; g++) {
            float *own = scores + g * KEYS, greatest = most[g], sum = 0;
            for (size j = 0; j < count; j++) greatest = own[j] > greatest ? own[j] : greatest;
            float smaller = start ? exp2_of(most[g] - greatest) : 0;
            EACH_VALUE
            for (size i = 0; i < width; i++) found[g * width + i] *= smaller;
            SUM_OVER(sum)
            for (size j = 0; j < count; j++) {
                own[j] = exp2_of(own[j] - greatest);
                sum += own[j];
            }
            sums[g] = sums[g] * smaller + sum;
            most[g] = greatest;
        }
        for (size j = 0; j < count; j++) {
            const T *value = values + (start + j) * width;
            EACH_VALUE
            for (size i = 0; i < width; i++) row[i] = FROM_T(value[i]);
            for (size g = 0; g < group; g++) {
                float share = scores[g * KEYS + j], *to = found + g * width;
                EACH_VALUE
                for (size i = 0; i < width; i++) to[i] += share * row[i];
            }
        }
    }
    for (size g = 0; g < group; g++)
        for (size i = 0; i < width; i++)
            out[g * width + i] = TO_T(found[g * width + i] / sums[g]);
}

/* From the product of queries, keys and values to what the heads find, out [rows, heads * width]; the
 * new key and value go to the last place of each answer's cache. `places` [rows, 3] are where a cache
 * [layers, 2, key heads, room, width] lies, its room and its length with the new token. */
void step_attention(const T *product, size columns, const float *cosines, const float *sines,
                    const float *query_weight, const float *key_weight, float epsilon, float scale,
                    const int64_t *places, size layer, T *out, size rows, size heads, size group,
                    size width) {
#pragma omp parallel for schedule(dynamic)
    for (size task = 0; task < rows * heads; task++) {
        size r = task / heads, h = task % heads, half = width / 2;
        const float *cosine = cosines + r * half, *sine = sines + r * half;
        size room = places[3 * r + 1], length = places[3 * r + 2];
        T *keys = (T *)(intptr_t)places[3 * r] + (2 * layer * heads + h) * room * width;
        T *values = keys + heads * room * width;
        const T *from = product + r;
        float queries[group * width], new[width];
        for (size g = 0; g < group; g++) {
            float *query = queries + g * width;
            read_head(from + (h * group + g) * width * columns, columns, cosine, sine, query_weight,
                      epsilon, query, width);
            for (size i = 0; i < width; i++) query[i] = FROM_T(TO_T(query[i])) * scale * LOG2_E;
        }
        from += (heads * group + h) * width * columns;
        read_head(from, columns, cosine, sine, key_weight, epsilon, new, width);
        for (size i = 0; i < width; i++) keys[(length - 1) * width + i] = TO_T(new[i]);
        from += heads * width * columns;
        read_head(from, columns, NULL, NULL, NULL, 0, new, width);
        for (size i = 0; i < width; i++) values[(length - 1) * width + i] = TO_T(new[i]);
        attend(queries, keys, values, length, group, width,
               out + (r * heads + h) * group * width);
    }
}
