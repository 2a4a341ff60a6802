/* The tiles of Intel's AMX: 16 rows of 64 bytes each. */
#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64))) tile_config;

/* Before tiles are loaded from what was just written: compilers do not know that this reads memory. */
#define WRITTEN __asm__ volatile("" ::: "memory")

/* Whether this process may use tiles. */
int may_use_tiles(void) {
    const int request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

/* All eight tiles 16 rows of 64 bytes; what was set before is to be set again, for it is oneDNN's. */
static inline void use_whole_tiles(tile_config *before) {
    tile_config whole = {.palette = 1};
    for (int i = 0; i < 8; i++) whole.bytes[i] = 64, whole.rows[i] = 16;
    _tile_storeconfig(before);
    _tile_loadconfig(&whole);
}
