/* What the kernels share: the grids of activations, vector functions, threads. */
#ifndef BASICSR_QUANT_COMMON_H
#define BASICSR_QUANT_COMMON_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#ifdef _OPENMP
#define PARALLEL(text) _Pragma(#text)
#else
#define PARALLEL(text)
#endif

#define INLINE static inline __attribute__((always_inline))
#define LOG2E 1.44269504088896341f

enum { FLOAT_OFFSET = 0, HALF_AWAY = 1, HALF_EVEN = 2 };

/* code = round((clip(x, lower, upper) - lower) / step) for FLOAT_OFFSET, else clamp(round(x / step) - zero_point),
 * always within 0 .. levels. The step comes from the caller, so that it is the simulation's to the bit; reciprocal is
 * 1 / step. */
typedef struct {
    float lower, upper, step, zero_point, reciprocal;
    int32_t levels, rounding;
} Grid;

INLINE float rounded_half_away(float x) { return copysignf(floorf(fabsf(x) + 0.5f), x); }

INLINE uint8_t code_of(float x, const Grid *grid) {
    float code;
    if (grid->rounding == FLOAT_OFFSET) {
        x = grid->lower > x ? grid->lower : x;
        x = grid->upper < x ? grid->upper : x;
        code = rintf((x - grid->lower) / grid->step);
    } else {
        code = x / grid->step;
        code = (grid->rounding == HALF_AWAY ? rounded_half_away(code) : rintf(code)) - grid->zero_point;
    }
    code = code > 0 ? code : 0;
    return (uint8_t)(code < (float)grid->levels ? code : (float)grid->levels);
}

#ifdef __AVX512F__
#define LANES 16

INLINE __mmask16 first_lanes(int64_t count) {
    return count >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << count) - 1);
}

/* Sixteen codes as int32. A product with the reciprocal differs from the quotient by less than 5e-7 of it, so only
 * lanes that close to a half need the division. */
INLINE __m512i codes_of(__m512 x, const Grid *grid, __m512 reciprocal) {
    const __m512 step = _mm512_set1_ps(grid->step), levels = _mm512_set1_ps((float)grid->levels);
    if (grid->rounding == FLOAT_OFFSET) {
        const __m512 lower = _mm512_set1_ps(grid->lower);
        x = _mm512_sub_ps(_mm512_min_ps(_mm512_set1_ps(grid->upper), _mm512_max_ps(lower, x)), lower);
        const __m512 scaled = _mm512_mul_ps(x, reciprocal);
        const __m512 code = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const __m512 near_half = _mm512_fnmadd_ps(levels, _mm512_set1_ps(5e-7f), _mm512_set1_ps(0.5f));
        const __m512 distance = _mm512_abs_ps(_mm512_sub_ps(scaled, code));
        if (__builtin_expect(_mm512_cmp_ps_mask(distance, near_half, _CMP_NLT_UQ), 0))
            return _mm512_cvtps_epi32(_mm512_min_ps(_mm512_div_ps(x, step), levels));
        return _mm512_cvttps_epi32(code);
    }
    __m512 scaled = _mm512_mul_ps(x, reciprocal);
    __m512 code = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 distance = _mm512_abs_ps(_mm512_sub_ps(scaled, code));
    const __m512 bound = _mm512_fnmadd_ps(_mm512_abs_ps(scaled), _mm512_set1_ps(5e-7f), _mm512_set1_ps(0.5f));
    if (__builtin_expect(_mm512_cmp_ps_mask(distance, bound, _CMP_NLT_UQ), 0)) {
        scaled = _mm512_div_ps(x, step);
        if (grid->rounding == HALF_AWAY) {
            const __m512 size = _mm512_add_ps(_mm512_abs_ps(scaled), _mm512_set1_ps(0.5f));
            const __m512 whole = _mm512_roundscale_ps(size, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
            code = _mm512_mask_sub_ps(whole, _mm512_cmp_ps_mask(scaled, _mm512_setzero_ps(), _CMP_LT_OQ),
                                      _mm512_setzero_ps(), whole);
        } else {
            code = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        }
    }
    code = _mm512_sub_ps(code, _mm512_set1_ps(grid->zero_point));
    return _mm512_cvttps_epi32(_mm512_min_ps(_mm512_max_ps(code, _mm512_setzero_ps()), levels));
}

/* 2^x to 1e-7 relative: a polynomial of what is left of a whole number. */
INLINE __m512 power_of_two(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(1.53458132e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.33999312e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.61848895e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.55032878e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.240226469f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693147206f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}
#endif

#ifdef __AVX512VNNI__
/* sum += products of four bytes each; written out, since compilers copy the sum back and forth. */
INLINE __m512i add_products(__m512i sum, __m512i codes, __m512i weight) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "vm"(weight));
    return sum;
}
#endif

/* The sum of the first `count` codes of a row. */
INLINE int32_t sum_of_codes(const uint8_t *codes, int64_t count) {
    int32_t sum = 0;
#ifdef __AVX512F__
    __m128i sums = _mm_setzero_si128();
    for (int64_t i = 0; i < count; i += 16) {
        const __m128i bytes = _mm_maskz_loadu_epi8(first_lanes(count - i), codes + i);
        sums = _mm_add_epi64(sums, _mm_sad_epu8(bytes, _mm_setzero_si128()));
    }
    sum = _mm_cvtsi128_si32(_mm_add_epi64(sums, _mm_unpackhi_epi64(sums, sums)));
#else
    for (int64_t i = 0; i < count; i++) sum += codes[i];
#endif
    return sum;
}

/* Write the codes of a row times a factor and return their sum; `codes` has room for a multiple of 16, which is filled
 * with zeros. The grid is copied, since a byte that is written could be part of it. */
INLINE int32_t quantize_row(const float *x, int64_t count, float factor, const Grid *shared, uint8_t *codes) {
    const Grid own = *shared;
    int32_t sum = 0;
#ifdef __AVX512F__
    const __m512 reciprocal = _mm512_set1_ps(own.reciprocal), scale = _mm512_set1_ps(factor);
    __m128i sums = _mm_setzero_si128();
    for (int64_t i = 0; i < count; i += LANES) {
        const __mmask16 present = first_lanes(count - i);
        const __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(present, x + i), scale);
        const __m512i lanes = _mm512_maskz_mov_epi32(present, codes_of(value, &own, reciprocal));
        const __m128i bytes = _mm512_cvtepi32_epi8(lanes);
        sums = _mm_add_epi64(sums, _mm_sad_epu8(bytes, _mm_setzero_si128()));
        _mm_storeu_si128((__m128i *)(codes + i), bytes);
    }
    sum = _mm_cvtsi128_si32(_mm_add_epi64(sums, _mm_unpackhi_epi64(sums, sums)));
#else
    for (int64_t i = 0; i < count; i++) {
        codes[i] = code_of(x[i] * factor, &own);
        sum += codes[i];
    }
    for (int64_t i = count; i % 16; i++) codes[i] = 0;
#endif
    return sum;
}

#endif
