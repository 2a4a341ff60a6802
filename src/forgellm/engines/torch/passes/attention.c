/* Causal attention inside documents, forward and backward, in the bfloat16 tiles of Intel's AMX.
 *
 * A block of 32 queries of one head has the scores of all keys that it sees at once in the cache, so
 * no running maximum is kept. The backward pass forms the probabilities again from the log-sum-exp
 * (Dao et al. 2022, arXiv 2205.14135, 3.1). Sums are float32.
 *
 * Layouts. Tiles multiply A [16, 32] by B, whose rows are pairs: B[k][n] holds the elements 2k and
 * 2k + 1 of column n. `pairs_across` makes pairs of neighbours in a row (of head size: K^T from K),
 * `pairs_down` of two rows (of tokens: K from K). Tokens are filled up to a multiple of 32 by zeros.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "numbers.h"
#include "tiles.h"

#define BLOCK 32 /* queries, and the step in which keys are filled up */

typedef struct { /* a tensor [rows, heads, tokens, head size]; distances in elements */
    bf16 *at;
    size row, head, token;
} view;

typedef struct { /* tokens from..to of a row, one document */
    int64_t row, from, to;
} segment;

typedef struct {
    size num_segments, heads, groups, tokens, width; /* groups: query heads that share a key head */
    float scale;
} shape;

/* --- tiles -------------------------------------------------------------------------------------- */

/* C [32, 32 * n] (+)= A [32, k] B, in steps of 32 columns; distances in elements of each. */
static void multiply(const bf16 *a, size ld_a, const uint32_t *b, size ld_b, float *c, size ld_c,
                     size k, size columns, int adds) {
    WRITTEN;
    for (size j = 0; j < columns; j += 32) {
        float *to = c + j;
        if (adds) {
            _tile_loadd(0, to, ld_c * 4);
            _tile_loadd(1, to + 16, ld_c * 4);
            _tile_loadd(2, to + 16 * ld_c, ld_c * 4);
            _tile_loadd(3, to + 16 * ld_c + 16, ld_c * 4);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        for (size i = 0; i < k; i += 32) {
            const uint32_t *pairs = b + i / 2 * ld_b + j;
            _tile_loadd(4, a + i, ld_a * 2);
            _tile_loadd(6, pairs, ld_b * 4);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, pairs + 16, ld_b * 4);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, a + 16 * ld_a + i, ld_a * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, to, ld_c * 4);
        _tile_stored(1, to + 16, ld_c * 4);
        _tile_stored(2, to + 16 * ld_c, ld_c * 4);
        _tile_stored(3, to + 16 * ld_c + 16, ld_c * 4);
    }
}

/* --- layouts ------------------------------------------------------------------------------------ */

/* [count, width] of a head as it is, filled up. */
static void copied(bf16 *to, view from, segment s, size head, size count, size width) {
    const bf16 *x = from.at + s.row * from.row + head * from.head + s.from * from.token;
    size there = s.to - s.from;
    for (size t = 0; t < there; t++) memcpy(to + t * width, x + t * from.token, width * 2);
    memset(to + there * width, 0, (count - there) * width * 2);
}

/* [count, width] -> [width / 2, count]. */
static void pairs_across(uint32_t *to, const bf16 *x, size count, size width) {
    const uint32_t *pairs = (const uint32_t *)x;
    for (size t = 0; t < count; t += 16)
        for (size i = 0; i < width / 2; i++)
            for (size u = t; u < t + 16; u++) to[i * count + u] = pairs[u * (width / 2) + i];
}

/* [count, width] -> [count / 2, width]. */
static void pairs_down(uint32_t *to, const bf16 *x, size count, size width) {
    for (size t = 0; t < count; t += 2) {
        const bf16 *one = x + t * width, *two = one + width;
        uint32_t *row = to + t / 2 * width;
        EACH_VALUE
        for (size i = 0; i < width; i++) row[i] = one[i] | (uint32_t)two[i] << 16;
    }
}

/* [BLOCK, width] -> [width, BLOCK]. */
static void turned(bf16 *to, const bf16 *x, size width) {
    for (size i = 0; i < width; i++)
        for (size t = 0; t < BLOCK; t++) to[i * BLOCK + t] = x[t * width + i];
}

static size filled(segment s) { return (s.to - s.from + BLOCK - 1) / BLOCK * BLOCK; }

static void *room(size count, size each) { return aligned_alloc(64, (count * each + 63) / 64 * 64); }

/* --- forward ------------------------------------------------------------------------------------ */

/* A row of scores, of which `seen` count, becomes probabilities times their sum, which is returned. */
static float exponentials(float *scores, bf16 *probs, size seen, size stop, float factor,
                          float *greatest) {
    float top = scores[0], sum = 0;
    for (size i = seen; i < stop; i++) scores[i] = -1e30f; /* whole vectors are faster */
    GREATEST_OVER(top)
    for (size i = 0; i < stop; i++) top = scores[i] > top ? scores[i] : top;
    float most = top * factor;
    SUM_OVER(sum)
    for (size i = 0; i < stop; i++) {
        float power = exp2_of(scores[i] * factor - most);
        probs[i] = to_bf16(power);
        sum += power;
    }
    memset(probs + seen, 0, (stop - seen) * 2);
    *greatest = most;
    return sum;
}

static void head_forward(view q, view k, view v, view out, float *lse, segment s, size head, shape of) {
    size count = filled(s), width = of.width, there = s.to - s.from, key_head = head / of.groups;
    bf16 *rows = room(count * width, 2);
    uint32_t *keys = room(count * width / 2, 4), *values = room(count * width / 2, 4);
    float *scores = room(BLOCK * count, 4), *found = room(BLOCK * width, 4);
    bf16 *probs = room(BLOCK * count, 2);
    copied(rows, k, s, key_head, count, width);
    pairs_across(keys, rows, count, width);
    copied(rows, v, s, key_head, count, width);
    pairs_down(values, rows, count, width);
    copied(rows, q, s, head, count, width);
    for (size from = 0; from < there; from += BLOCK) {
        size stop = from + BLOCK, last = stop < there ? stop : there;
        float sums[BLOCK];
        multiply(rows + from * width, width, keys, count, scores, stop, width, stop, 0);
        memset(probs + (last - from) * stop, 0, (stop - last) * stop * 2);
        for (size r = from; r < last; r++) {
            float top, *row = scores + (r - from) * stop;
            sums[r - from] = exponentials(row, probs + (r - from) * stop, r + 1, stop,
                                          of.scale * LOG2_E, &top);
            lse[r] = top * LN_2 + logf(sums[r - from]);
        }
        multiply(probs, stop, values, width, found, width, stop, width, 0);
        for (size r = from; r < last; r++) {
            bf16 *to = out.at + s.row * out.row + head * out.head + (s.from + r) * out.token;
            float share = 1.0f / sums[r - from], *row = found + (r - from) * width;
            EACH_VALUE
            for (size i = 0; i < width; i++) to[i] = to_bf16(row[i] * share);
        }
    }
    free(rows), free(keys), free(values), free(scores), free(found), free(probs);
}

/* lse [rows, heads, tokens]. */
void attention_forward(const view *q, const view *k, const view *v, const view *out, float *lse,
                       const segment *segments, const shape *of) {
    _Pragma("omp parallel") {
        tile_config before;
        use_whole_tiles(&before);
        _Pragma("omp for schedule(dynamic)")
        for (size i = 0; i < of->num_segments * of->heads; i++) {
            segment s = segments[i / of->heads];
            size head = i % of->heads;
            head_forward(*q, *k, *v, *out, lse + (s.row * of->heads + head) * of->tokens + s.from, s,
                         head, *of);
        }
        _tile_loadconfig(&before);
    }
}

/* --- backward ----------------------------------------------------------------------------------- */

typedef struct {
    bf16 *k, *v, *q, *g; /* as they are: [count, width] */
    uint32_t *k_across, *v_across, *k_down, *probs_down, *slopes_down;
    float *scores, *d_probs, *d_queries, *d_keys, *d_values; /* the last two turned: [width, count] */
    bf16 *probs, *slopes, *turned;
} workplace;

/* A query's probabilities and the gradients of its scores, filled by zeros. */
static void slopes_of(const float *scores, const float *d_probs, bf16 *probs, bf16 *slopes, size seen,
                      size stop, float factor, float lse, float delta, float scale) {
    EACH_VALUE
    for (size i = 0; i < stop; i++) { /* whole vectors are faster */
        float prob = exp2_of(scores[i] * factor - lse);
        probs[i] = to_bf16(prob);
        slopes[i] = to_bf16((d_probs[i] - delta) * prob * scale);
    }
    memset(probs + seen, 0, (stop - seen) * 2);
    memset(slopes + seen, 0, (stop - seen) * 2);
}

static void block_backward(workplace w, view out, view dq, const float *lse, segment s, size head,
                           size from, size count, shape of) {
    size width = of.width, there = s.to - s.from, stop = from + BLOCK;
    size last = stop < there ? stop : there;
    const bf16 *g = w.g + from * width;
    multiply(w.q + from * width, width, w.k_across, count, w.scores, stop, width, stop, 0);
    multiply(g, width, w.v_across, count, w.d_probs, stop, width, stop, 0);
    memset(w.probs + (last - from) * stop, 0, (stop - last) * stop * 2);
    memset(w.slopes + (last - from) * stop, 0, (stop - last) * stop * 2);
    for (size r = from; r < last; r++) {
        const bf16 *own = out.at + s.row * out.row + head * out.head + (s.from + r) * out.token;
        float delta = 0;
        SUM_OVER(delta)
        for (size i = 0; i < width; i++) delta += from_bf16(g[(r - from) * width + i]) * from_bf16(own[i]);
        size at = (r - from) * stop;
        slopes_of(w.scores + at, w.d_probs + at, w.probs + at, w.slopes + at, r + 1, stop,
                  of.scale * LOG2_E, lse[r] * LOG2_E, delta, of.scale);
    }
    multiply(w.slopes, stop, w.k_down, width, w.d_queries, width, stop, width, 0);
    for (size r = from; r < last; r++) {
        bf16 *to = dq.at + s.row * dq.row + head * dq.head + (s.from + r) * dq.token;
        EACH_VALUE
        for (size i = 0; i < width; i++) to[i] = to_bf16(w.d_queries[(r - from) * width + i]);
    }
    pairs_down(w.probs_down, w.probs, BLOCK, stop);
    pairs_down(w.slopes_down, w.slopes, BLOCK, stop);
    turned(w.turned, g, width);
    for (size i = 0; i < width; i += 32)
        multiply(w.turned + i * BLOCK, BLOCK, w.probs_down, stop, w.d_values + i * count, count, BLOCK,
                 stop, 1);
    turned(w.turned, w.q + from * width, width);
    for (size i = 0; i < width; i += 32)
        multiply(w.turned + i * BLOCK, BLOCK, w.slopes_down, stop, w.d_keys + i * count, count, BLOCK,
                 stop, 1);
}

static void written_back(view to, const float *x, segment s, size head, size count, size width) {
    bf16 *at = to.at + s.row * to.row + head * to.head + s.from * to.token;
    for (size t = 0; t < s.to - s.from; t++)
        for (size i = 0; i < width; i++) at[t * to.token + i] = to_bf16(x[i * count + t]);
}

static void key_head_backward(const view *in, const view *found, const float *lse, segment s,
                              size key_head, shape of) {
    view g = in[0], q = in[1], k = in[2], v = in[3], out = in[4];
    size count = filled(s), width = of.width, all = count * width;
    workplace w = {
        .k = room(all, 2), .v = room(all, 2), .q = room(all, 2), .g = room(all, 2),
        .k_across = room(all / 2, 4), .v_across = room(all / 2, 4), .k_down = room(all / 2, 4),
        .probs_down = room(BLOCK / 2 * count, 4), .slopes_down = room(BLOCK / 2 * count, 4),
        .scores = room(BLOCK * count, 4), .d_probs = room(BLOCK * count, 4),
        .d_queries = room(BLOCK * width, 4), .d_keys = room(all, 4), .d_values = room(all, 4),
        .probs = room(BLOCK * count, 2), .slopes = room(BLOCK * count, 2),
        .turned = room(BLOCK * width, 2),
    };
    copied(w.k, k, s, key_head, count, width);
    copied(w.v, v, s, key_head, count, width);
    pairs_across(w.k_across, w.k, count, width);
    pairs_across(w.v_across, w.v, count, width);
    pairs_down(w.k_down, w.k, count, width);
    memset(w.d_keys, 0, all * 4);
    memset(w.d_values, 0, all * 4);
    for (size head = key_head * of.groups; head < (key_head + 1) * of.groups; head++) {
        const float *own = lse + (s.row * of.heads + head) * of.tokens + s.from;
        copied(w.q, q, s, head, count, width);
        copied(w.g, g, s, head, count, width);
        for (size from = 0; from < s.to - s.from; from += BLOCK)
            block_backward(w, out, found[0], own, s, head, from, count, of);
    }
    written_back(found[1], w.d_keys, s, key_head, count, width);
    written_back(found[2], w.d_values, s, key_head, count, width);
    free(w.k), free(w.v), free(w.q), free(w.g), free(w.k_across), free(w.v_across), free(w.k_down);
    free(w.probs_down), free(w.slopes_down), free(w.scores), free(w.d_probs), free(w.d_queries);
    free(w.d_keys), free(w.d_values), free(w.probs), free(w.slopes), free(w.turned);
}

/* in: the gradient of what `attention_forward` found, q, k, v, and that; found: of q, k and v. */
void attention_backward(const view *in, const view *found, const float *lse, const segment *segments,
                        const shape *of) {
    size key_heads = of->heads / of->groups;
    _Pragma("omp parallel") {
        tile_config before;
        use_whole_tiles(&before);
        _Pragma("omp for schedule(dynamic)")
        for (size i = 0; i < of->num_segments * key_heads; i++)
            key_head_backward(in, found, lse, segments[i / key_heads], i % key_heads, *of);
        _tile_loadconfig(&before);
    }
}
