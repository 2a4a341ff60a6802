/* Products of weights with few columns, as a step of answers needs them, in the bfloat16 tiles of
 * Intel's AMX. Reading the weights takes all the time, so each is read once and in order.
 */
#include <string.h>

#include "numbers.h"
#include "tiles.h"

enum { ROWS = 16, STEP = 32 }; /* of weights in a tile */

/* out [height, columns] = weight [height, width] x, of which the first `count` columns are given, as
 * rows [count, width] or, `is_turned`, as [width, columns]. `pairs` [width / 2, columns] are room for
 * two neighbours of a column side by side, the other columns zero. A column's bits depend on no other.
 */
void step_product(const bf16 *weight, size height, size width, const bf16 *x, size is_turned,
                  uint32_t *pairs, bf16 *out, size count, size columns) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (size p = 0; p < width / 2; p++)
            for (size c = 0; c < count; c++) {
                const bf16 *first = is_turned ? x + 2 * p * columns + c : x + c * width + 2 * p;
                pairs[p * columns + c] = first[0] | (uint32_t)first[is_turned ? columns : 1] << 16;
            }
        tile_config before;
        use_whole_tiles(&before);
        float sums[ROWS * 16] __attribute__((aligned(64)));
#pragma omp for schedule(static)
        for (size row = 0; row < height; row += ROWS) {
            const bf16 *rows = weight + row * width, *next = rows + ROWS * width;
            for (size column = 0; column < columns; column += 16) {
                _tile_zero(0);
                for (size i = 0; i < width; i += STEP) {
                    for (size r = 0; r < ROWS && !column; r++)
                        _mm_prefetch(next + r * width + i, _MM_HINT_T1);
                    _tile_loadd(1, rows + i, width * 2);
                    _tile_loadd(2, pairs + i / 2 * columns + column, columns * 4);
                    _tile_dpbf16ps(0, 1, 2);
                }
                _tile_stored(0, sums, 64);
                for (size r = 0; r < ROWS; r++) {
                    bf16 *to = out + (row + r) * columns + column;
                    EACH_VALUE
                    for (size c = 0; c < 16; c++) to[c] = to_bf16(sums[r * 16 + c]);
                }
            }
        }
        _tile_loadconfig(&before);
    }
}
