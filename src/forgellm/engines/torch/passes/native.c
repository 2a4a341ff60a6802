/* The passes between a decoder block's matrix products, each over its values once.
 *
 * Compiled on the machine that runs them (compiler.py), once for each pair of types: S of the sums
 * that blocks add to, T of what products read and write; both are float or bf16. Inside all is float.
 * Rows may stand apart: `ld_x` is the distance of two rows of x in elements. Letters as in plain.py,
 * whose functions say what each computes.
 */
#include <string.h>

#include "numbers.h"

#define FROM_S NAMED(from_, S)
#define TO_S NAMED(to_, S)

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp2_of(-LOG2_E * x)); }

static inline float square_root(float x) { return __builtin_sqrtf(x); }

/* middle = x + sums where there are sums; out = weight * middle / rms(middle). */
void rms_norm(const S *x, const T *sums, size ld_sums, S *middle, const float *weight, float epsilon,
              T *out, size ld_out, size rows, size width) {
    EACH_ROW
    for (size r = 0; r < rows; r++) {
        const S *row = x + r * width;
        if (sums) {
            const T *added = sums + r * ld_sums;
            S *kept = middle + r * width;
            EACH_VALUE
            for (size i = 0; i < width; i++) kept[i] = TO_S(FROM_S(row[i]) + FROM_T(added[i]));
            row = kept;
        }
        float squares = 0;
        SUM_OVER(squares)
        for (size i = 0; i < width; i++) squares += FROM_S(row[i]) * FROM_S(row[i]);
        float inverse = 1.0f / square_root(squares / width + epsilon);
        T *to = out + r * ld_out;
        EACH_VALUE
        for (size i = 0; i < width; i++) to[i] = TO_T(FROM_S(row[i]) * inverse * weight[i]);
    }
}

/* out = plus + the gradient of x; d_weight, where wanted, gets a row for each row of x. */
void rms_norm_backward(const T *g, size ld_g, const S *x, const float *weight, float epsilon,
                       const S *plus, S *out, float *d_weight, size rows, size width) {
    EACH_ROW
    for (size r = 0; r < rows; r++) {
        const T *slope = g + r * ld_g;
        const S *row = x + r * width, *more = plus + r * width;
        S *to = out + r * width;
        float squares = 0, along = 0;
        SUMS_OVER(squares, along)
        for (size i = 0; i < width; i++) {
            float value = FROM_S(row[i]);
            squares += value * value;
            along += FROM_T(slope[i]) * weight[i] * value;
        }
        float inverse = 1.0f / square_root(squares / width + epsilon);
        along *= inverse * inverse / width;
        if (d_weight) {
            float *found = d_weight + r * width;
            EACH_VALUE
            for (size i = 0; i < width; i++) found[i] = FROM_T(slope[i]) * FROM_S(row[i]) * inverse;
        }
        EACH_VALUE
        for (size i = 0; i < width; i++) {
            float found = (FROM_T(slope[i]) * weight[i] - FROM_S(row[i]) * along) * inverse;
            to[i] = TO_S(FROM_S(more[i]) + found);
        }
    }
}

/* Queries and keys [rows, heads, 2 * half] from qkv, normed where there are weights, and turned. */
void rotate(const T *qkv, size ld_qkv, const float *cosines, const float *sines,
            const float *query_weight, const float *key_weight, float epsilon, T *out, size rows,
            size queries, size keys, size half) {
    size heads = queries + keys;
    EACH_ROW
    for (size r = 0; r < rows; r++) {
        const float *cosine = cosines + r * half, *sine = sines + r * half;
        for (size h = 0; h < heads; h++) {
            const T *x = qkv + r * ld_qkv + h * 2 * half;
            T *to = out + (r * heads + h) * 2 * half;
            const float *weight = h < queries ? query_weight : key_weight;
            if (!weight) {
                EACH_VALUE
                for (size i = 0; i < half; i++) {
                    float first = FROM_T(x[i]), second = FROM_T(x[i + half]);
                    to[i] = TO_T(first * cosine[i] - second * sine[i]);
                    to[i + half] = TO_T(second * cosine[i] + first * sine[i]);
                }
                continue;
            }
            float squares = 0;
            SUM_OVER(squares)
            for (size i = 0; i < 2 * half; i++) squares += FROM_T(x[i]) * FROM_T(x[i]);
            float inverse = 1.0f / square_root(squares / (2 * half) + epsilon);
            EACH_VALUE
            for (size i = 0; i < half; i++) {
                float first = FROM_T(x[i]) * inverse * weight[i];
                float second = FROM_T(x[i + half]) * inverse * weight[i + half];
                to[i] = TO_T(first * cosine[i] - second * sine[i]);
                to[i + half] = TO_T(second * cosine[i] + first * sine[i]);
            }
        }
    }
}

/* Gradients of the queries and keys in qkv from those of what `rotate` made of them, which lie in g
 * [rows, heads, 2 * half]; d_weight, where wanted, has the same shape. */
void rotate_backward(const T *g, const T *qkv, size ld_qkv, const float *cosines,
                     const float *sines, const float *query_weight, const float *key_weight,
                     float epsilon, T *out, size ld_out, float *d_weight, size rows, size queries,
                     size keys, size half) {
    size heads = queries + keys;
    EACH_ROW
    for (size r = 0; r < rows; r++) {
        const float *cosine = cosines + r * half, *sine = sines + r * half;
        for (size h = 0; h < heads; h++) {
            const T *slope = g + (r * heads + h) * 2 * half;
            T *to = out + r * ld_out + h * 2 * half;
            const float *weight = h < queries ? query_weight : key_weight;
            if (!weight) {
                EACH_VALUE
                for (size i = 0; i < half; i++) {
                    float first = FROM_T(slope[i]), second = FROM_T(slope[i + half]);
                    to[i] = TO_T(first * cosine[i] + second * sine[i]);
                    to[i + half] = TO_T(second * cosine[i] - first * sine[i]);
                }
                continue;
            }
            const T *x = qkv + r * ld_qkv + h * 2 * half;
            float squares = 0, along = 0;
            SUMS_OVER(squares, along)
            for (size i = 0; i < half; i++) {
                float first = FROM_T(slope[i]), second = FROM_T(slope[i + half]);
                float x1 = FROM_T(x[i]), x2 = FROM_T(x[i + half]);
                squares += x1 * x1 + x2 * x2;
                along += (first * cosine[i] + second * sine[i]) * weight[i] * x1 +
                         (second * cosine[i] - first * sine[i]) * weight[i + half] * x2;
            }
            float inverse = 1.0f / square_root(squares / (2 * half) + epsilon);
            along *= inverse * inverse / (2 * half);
            float *found = d_weight ? d_weight + (r * heads + h) * 2 * half : NULL;
            EACH_VALUE
            for (size i = 0; i < half; i++) {
                float first = FROM_T(slope[i]), second = FROM_T(slope[i + half]);
                float x1 = FROM_T(x[i]), x2 = FROM_T(x[i + half]);
                float back1 = first * cosine[i] + second * sine[i];
                float back2 = second * cosine[i] - first * sine[i];
                to[i] = TO_T((back1 * weight[i] - x1 * along) * inverse);
                to[i + half] = TO_T((back2 * weight[i + half] - x2 * along) * inverse);
                if (found) {
                    found[i] = back1 * x1 * inverse;
                    found[i + half] = back2 * x2 * inverse;
                }
            }
        }
    }
}

/* silu(gate) * up of gate_up [rows, 2 * width]. */
void swiglu(const T *gate_up, T *out, size ld_out, size rows, size width) {
    EACH_ROW
    for (size r = 0; r < rows; r++) {
        const T *gate = gate_up + r * 2 * width, *up = gate + width;
        T *to = out + r * ld_out;
        EACH_VALUE
        for (size i = 0; i < width; i++) {
            float x = FROM_T(gate[i]);
            to[i] = TO_T(x * sigmoid(x) * FROM_T(up[i]));
        }
    }
}

/* The gradient of gate_up from that of what `swiglu` makes of it, and that once more. */
void swiglu_backward(const T *g, size ld_g, const T *gate_up, T *d_gate_up, T *out, size ld_out,
                     size rows, size width) {
    EACH_ROW
    for (size r = 0; r < rows; r++) {
        const T *slope = g + r * ld_g, *gate = gate_up + r * 2 * width, *up = gate + width;
        T *d_gate = d_gate_up + r * 2 * width, *d_up = d_gate + width;
        T *to = out + r * ld_out;
        EACH_VALUE
        for (size i = 0; i < width; i++) {
            float x = FROM_T(gate[i]), y = FROM_T(up[i]), d = FROM_T(slope[i]);
            float share = sigmoid(x), act = x * share;
            to[i] = TO_T(act * y);
            d_up[i] = TO_T(d * act);
            d_gate[i] = TO_T(d * y * share * (1.0f + x - act));
        }
    }
}

/* Causal scores [heads, queries, keys] in base 2, less their log-sum-exp, become probabilities; the
 * gradients of those become the gradients of the scores. The first query sees `seen` keys. */
void softmax_backward(T *scores, T *d_scores, size heads, size queries, size keys, size seen) {
    EACH_ROW
    for (size r = 0; r < heads * queries; r++) {
        T *probs = scores + r * keys, *slope = d_scores + r * keys;
        size stop = seen + r % queries;
        EACH_VALUE
        for (size i = 0; i < stop; i++) {
            float prob = exp2_of(FROM_T(probs[i]));
            slope[i] = TO_T(FROM_T(slope[i]) * prob);
            probs[i] = TO_T(prob);
        }
        memset(probs + stop, 0, (keys - stop) * sizeof(T));
        memset(slope + stop, 0, (keys - stop) * sizeof(T));
    }
}

/* Rows of logits [rows, width] in base 2 become 2^(logit - greatest), but for the label's, 0. Of each
 * row: how far the label is behind the greatest, and the sum of what the row now holds. */
void exponentials(T *logits, const int64_t *labels, float *behind, float *others, size rows,
                  size width) {
    EACH_ROW
    for (size r = 0; r < rows; r++) {
        T *row = logits + r * width;
        float greatest = FROM_T(row[0]), sum = 0;
        GREATEST_OVER(greatest)
        for (size i = 1; i < width; i++) {
            float value = FROM_T(row[i]);
            greatest = value > greatest ? value : greatest;
        }
        behind[r] = greatest - FROM_T(row[labels[r]]);
        row[labels[r]] = TO_T(-1e30f); /* apart, or a likely label would hide the others' sum */
        SUM_OVER(sum)
        for (size i = 0; i < width; i++) {
            float power = exp2_of(FROM_T(row[i]) - greatest);
            row[i] = TO_T(power);
            sum += power;
        }
        others[r] = sum;
    }
}
