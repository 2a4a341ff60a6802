/* Numbers as the passes compute with them: bfloat16 is read and written, all else is float. */
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef uint16_t bf16;
typedef ptrdiff_t size;

typedef union {
    float number;
    uint32_t bits;
} word;

static inline float from_bf16(bf16 x) { return (word){.bits = (uint32_t)x << 16}.number; }

/* To the nearest, ties to even. What processors and bfloat16 have for no number stays none. */
static inline bf16 to_bf16(float x) {
    uint32_t bits = (word){.number = x}.bits;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

static inline float from_float(float x) { return x; }
static inline float to_float(float x) { return x; }

/* By the type's name, for files that are compiled once for each type T. */
#define JOINED(a, b) a##b
#define NAMED(a, b) JOINED(a, b)
#define FROM_T NAMED(from_, T)
#define TO_T NAMED(to_, T)

/* 2^x with a relative error of 2e-7, for x from -126 to 127; outside as at these ends. */
static inline float exp2_of(float x) {
    x = x < -126.0f ? -126.0f : x;
    x = x > 127.0f ? 127.0f : x;
    float whole = __builtin_rintf(x), f = x - whole;
    float p = 1.54035304e-4f;
    p = p * f + 1.33335581e-3f;
    p = p * f + 9.61812911e-3f;
    p = p * f + 5.55041087e-2f;
    p = p * f + 2.40226507e-1f;
    p = p * f + 6.93147181e-1f;
    p = p * f + 1.0f;
    word power = {.bits = (uint32_t)((int32_t)whole + 127) << 23};
    return p * power.number;
}

#define LOG2_E 1.44269504f
#define LN_2 0.69314718f

#define EACH_ROW _Pragma("omp parallel for schedule(static)")
#define EACH_VALUE _Pragma("omp simd")
#define SUM_OVER(a) PRAGMA(omp simd reduction(+ : a))
#define SUMS_OVER(a, b) PRAGMA(omp simd reduction(+ : a, b))
#define GREATEST_OVER(a) PRAGMA(omp simd reduction(max : a))
#define PRAGMA(words) _Pragma(#words)
