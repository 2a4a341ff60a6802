/* Weights in MLX's affine format (affine.h): made plain, or multiplied with as they are.
 * Compiled once for each type T of scales, biases and activations, float or bf16.
 */
#include "affine.h"

/* The steps of a group as floats. */
static inline void read_steps(const uint8_t *packed, size bits, size group, float *out) {
    if (bits == 8) {
        EACH_VALUE
        for (size i = 0; i < group; i++) out[i] = packed[i];
    } else {
        EACH_VALUE
        for (size i = 0; i < group / 2; i++) {
            out[2 * i] = packed[i] & 15;
            out[2 * i + 1] = packed[i] >> 4;
        }
    }
}

/* Rows [count, width] from the row `first` on, rounded after each of both operations. */
void affine_rows(const affine *w, size first, size count, T *out) {
    const T *scales = w->scales, *biases = w->biases;
    size groups = w->width / w->group;
#pragma omp parallel for schedule(static)
    for (size r = 0; r < count; r++) {
        float steps[w->group];
        for (size g = 0; g < groups; g++) {
            size at = (first + r) * groups + g;
            float scale = FROM_T(scales[at]), bias = FROM_T(biases[at]);
            T *to = out + r * w->width + g * w->group;
            read_steps(packed_at(w, first + r, g * w->group), w->bits, w->group, steps);
            EACH_VALUE
            for (size i = 0; i < w->group; i++) to[i] = TO_T(steps[i] * scale);
            EACH_VALUE
            for (size i = 0; i < w->group; i++) to[i] = TO_T(FROM_T(to[i]) + bias);
        }
    }
}

/* out [height, columns] = weight x, of which the first `count` columns are given, as rows
 * [count, width] or, `is_turned`, as [width, columns]. `room` has place for [count, width] floats.
 * A column's bits depend on no other; sums are float, and weights are not rounded. */
void affine_product(const affine *w, const T *x, size is_turned, float *room, T *out, size count,
                    size columns) {
    const T *scales = w->scales, *biases = w->biases;
    size width = w->width, groups = width / w->group;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (size i = 0; i < width; i++)
            for (size c = 0; c < count; c++)
                room[c * width + i] = FROM_T(x[is_turned ? i * columns + c : c * width + i]);
        float row[width];
#pragma omp for schedule(static)
        for (size r = 0; r < w->height; r++) {
            for (size g = 0; g < groups; g++) {
                float *to = row + g * w->group;
                float scale = FROM_T(scales[r * groups + g]), bias = FROM_T(biases[r * groups + g]);
                read_steps(packed_at(w, r, g * w->group), w->bits, w->group, to);
                EACH_VALUE
                for (size i = 0; i < w->group; i++) to[i] = to[i] * scale + bias;
            }
            for (size c = 0; c < count; c++) {
                const float *own = room + c * width;
                float sum = 0;
                SUM_OVER(sum)
                for (size i = 0; i < width; i++) sum += row[i] * own[i];
                out[r * columns + c] = TO_T(sum);
            }
        }
    }
}
