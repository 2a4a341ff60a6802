/* Weights in MLX's affine format, as engines/torch/quantised.py describes them: a number is
 * step * scale + bias, with the steps of a row packed in 4 or 8 bits, the first in the lowest.
 */
#include "numbers.h"

typedef struct {
    const uint8_t *packed;       /* [height, width * bits / 8] */
    const void *scales, *biases; /* [height, width / group], of the type that is computed in */
    size bits, group, height, width;
} affine;

/* Where the numbers of a row from column `i` on, a multiple of `group`, are packed. */
static inline const uint8_t *packed_at(const affine *w, size row, size i) {
    return w->packed + (row * w->width + i) * w->bits / 8;
}
