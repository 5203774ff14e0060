/* Attention of one window on codes: softmax(Q(q f) Q(k)^T + bias) = a, then Q(a) Q(v).
 *
 * Sixteen queries go side by side in a vector, so that maximum and sum of a softmax need no sum across lanes. What is
 * the same for a whole row of logits is left out, as a softmax does not see it. Logits are kept times log2(e). */
#ifndef BASICSR_QUANT_ATTENTION_H
#define BASICSR_QUANT_ATTENTION_H

#include "common.h"

#define TOKENS 256
#define FEATURES 64
#define SIDE 16
#define MASKED (-100.0f * LOG2E)
#define SLACK 64

/* Images cut into windows after they were rolled up and left by `shift`. */
typedef struct {
    int64_t batch, height, width, window, shift;
} Frame;

/* bias: (heads, keys, queries), times log2(e). */
typedef struct {
    int64_t heads, features, tokens;
    Grid grids[3], map;
    float factor;
    const float *bias;
} Attention;

/* Rows of codes in, rows out: as codes on a grid, or as numbers. */
typedef struct {
    const uint8_t *query, *key, *value;
    int64_t stride;
    uint8_t *codes;
    const Grid *grid;
    float *y;
    int64_t target_stride;
} Rows;

/* One head. Four codes in a word: queries [features / 4][tokens], keys [tokens][features / 4] and values
 * [tokens / 4][features], the latter two minus the middle code. */
typedef struct {
    _Alignas(64) int32_t query[FEATURES / 4 * TOKENS], key[FEATURES / 4 * TOKENS + SIDE], value[TOKENS / 4 * FEATURES];
    int32_t key_start[TOKENS];
    float key_part[TOKENS], value_part[FEATURES];
    _Alignas(64) float logits[TOKENS][SIDE];
    _Alignas(64) int32_t map[TOKENS / 4][SIDE];
} Head;

INLINE float first_value(const Grid *grid) {
    return grid->rounding == FLOAT_OFFSET ? grid->lower : grid->step * grid->zero_point;
}

INLINE int32_t code_of_zero(const Grid *grid) {
    const float code = rintf(-first_value(grid) / grid->step);
    return code < 0 ? 0 : code > (float)grid->levels ? grid->levels : (int32_t)code;
}

INLINE int32_t middle_of(const Grid *grid) { return (grid->levels + 1) / 2; }

INLINE float middle_value(const Grid *grid) { return first_value(grid) + grid->step * (float)middle_of(grid); }

/* Where the tokens of a window are in the raster, and their regions; returns whether there is more than one region. */
static int place(const Frame *f, int64_t index, int64_t *token, int32_t *region) {
    const int64_t columns = f->width / f->window, rows = f->height / f->window;
    const int64_t image = index / (rows * columns), at = index % (rows * columns);
    const int64_t top = at / columns * f->window, left = at % columns * f->window;
    for (int64_t i = 0; i < f->window * f->window; i++) {
        const int64_t y = top + i / f->window, x = left + i % f->window;
        token[i] = (image * f->height + (y + f->shift) % f->height) * f->width + (x + f->shift) % f->width;
        region[i] = 3 * ((y >= f->height - f->window) + (y >= f->height - f->shift)) +
                    (x >= f->width - f->window) + (x >= f->width - f->shift);
    }
    return f->shift && (top + f->window == f->height || left + f->window == f->width);
}

static void arrange(const Attention *a, const Rows *rows, int64_t head, Head *h) {
    const int64_t tokens = a->tokens, features = a->features, words = (features + 3) / 4, at = head * features;
    const int32_t query_zero = code_of_zero(a->grids), key_middle = middle_of(a->grids + 1);
    const int32_t value_middle = middle_of(a->grids + 2);
    const float query_rest = (first_value(a->grids) + a->grids->step * (float)query_zero) * a->grids[1].step * LOG2E;
    int32_t value_sums[FEATURES] = {0};
    int8_t *keys = (int8_t *)h->key, *values = (int8_t *)h->value;
    for (int64_t i = 0; i < tokens; i++) {
        const uint8_t *query = rows->query + i * rows->stride + at, *key = rows->key + i * rows->stride + at;
        for (int64_t e = 0; e < words; e++) memcpy(h->query + e * tokens + i, query + 4 * e, 4);
        const int32_t sum = sum_of_codes(key, features) - (int32_t)features * key_middle;
        h->key_start[i] = -query_zero * sum;
        h->key_part[i] = query_rest * (float)sum;
#ifdef __AVX512F__
        for (int64_t e = 0; e < features; e += 16) {
            const __mmask16 present = first_lanes(features - e);
            const __m128i codes = _mm_maskz_loadu_epi8(present, key + e);
            const __m128i centred = _mm_maskz_sub_epi8(present, codes, _mm_set1_epi8((char)key_middle));
            _mm_storeu_si128((__m128i *)(keys + 4 * words * i + e), centred);
        }
#else
        for (int64_t e = 0; e < 4 * words; e++)
            keys[4 * words * i + e] = (int8_t)(e < features ? key[e] - key_middle : 0);
#endif
    }
    for (int64_t i = 0; i < tokens; i += 4) {
        const uint8_t *value = rows->value + i * rows->stride + at;
        int8_t *target = values + i * FEATURES;
#ifdef __AVX512VNNI__
        for (int64_t e = 0; e < features; e += 16) {
            const __mmask16 present = first_lanes(features - e);
            __m128i row[4];
            for (int t = 0; t < 4; t++) {
                row[t] = _mm_maskz_loadu_epi8(present, value + t * rows->stride + e);
                row[t] = _mm_maskz_sub_epi8(present, row[t], _mm_set1_epi8((char)value_middle));
            }
            const __m128i low = _mm_unpacklo_epi8(row[0], row[1]), low2 = _mm_unpacklo_epi8(row[2], row[3]);
            const __m128i high = _mm_unpackhi_epi8(row[0], row[1]), high2 = _mm_unpackhi_epi8(row[2], row[3]);
            const __m128i four[4] = {_mm_unpacklo_epi16(low, low2), _mm_unpackhi_epi16(low, low2),
                                     _mm_unpacklo_epi16(high, high2), _mm_unpackhi_epi16(high, high2)};
            for (int q = 0; q < 4; q++) {
                __m128i *sums = (__m128i *)(value_sums + e + 4 * q);
                _mm_storeu_si128((__m128i *)(target + 4 * (e + 4 * q)), four[q]);
                _mm_storeu_si128(sums, _mm_dpbusd_epi32(_mm_loadu_si128(sums), _mm_set1_epi8(1), four[q]));
            }
        }
#else
        for (int64_t e = 0; e < 4 * words; e++)
            for (int64_t t = 0; t < 4; t++) {
                const int32_t code = e < features ? value[t * rows->stride + e] - value_middle : 0;
                target[4 * e + t] = (int8_t)code;
                value_sums[e] += code;
            }
#endif
    }
    for (int64_t e = 0; e < features; e++)
        h->value_part[e] = first_value(&a->map) * (a->grids[2].step * (float)value_sums[e] +
                                                   middle_value(a->grids + 2) * (float)tokens);
}

#ifdef __AVX512VNNI__
/* Logits of SIDE queries; returns their maxima. `regions` is NULL if all tokens see each other. */
INLINE __m512 logits_of(const Attention *a, const float *bias, const int32_t *regions, Head *h, int64_t first,
                        const int64_t tokens, const int64_t words) {
    const __m512 scale = _mm512_set1_ps(a->grids[0].step * a->grids[1].step * LOG2E);
    const __m512i own = regions ? _mm512_loadu_si512(regions + first) : _mm512_setzero_si512();
    __m512 highest = _mm512_set1_ps(-INFINITY);
    __m512i query[FEATURES / 4];
    for (int64_t e = 0; e < words; e++) query[e] = _mm512_loadu_si512(h->query + e * tokens + first);
    for (int64_t j = 0; j < tokens; j++) {
        __m512i sum = _mm512_set1_epi32(h->key_start[j]);
        for (int64_t e = 0; e < words; e++)
            sum = add_products(sum, query[e], _mm512_set1_epi32(h->key[j * words + e]));
        __m512 offset = _mm512_loadu_ps(bias + j * tokens + first);
        if (regions) {
            const __mmask16 other = _mm512_cmpneq_epi32_mask(own, _mm512_set1_epi32(regions[j]));
            offset = _mm512_mask_add_ps(offset, other, offset, _mm512_set1_ps(MASKED));
        }
        const __m512 part = _mm512_add_ps(offset, _mm512_set1_ps(h->key_part[j]));
        const __m512 logit = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, part);
        _mm512_store_ps(h->logits[j], logit);
        highest = _mm512_max_ps(highest, logit);
    }
    return highest;
}

/* Softmax and its codes, four keys in a word. */
INLINE void encode_map(const Attention *a, Head *h, __m512 highest, const int64_t tokens) {
    __m512 total = _mm512_setzero_ps();
    for (int64_t j = 0; j < tokens; j++) {
        const __m512 power = power_of_two(_mm512_sub_ps(_mm512_load_ps(h->logits[j]), highest));
        _mm512_store_ps(h->logits[j], power);
        total = _mm512_add_ps(total, power);
    }
    const Grid grid = a->map;
    const float start = grid.rounding == FLOAT_OFFSET ? -grid.lower * grid.reciprocal : -grid.zero_point;
    const __m512 add = _mm512_set1_ps(grid.rounding == HALF_AWAY ? start + 0.5f : start);
    const __m512 share = _mm512_div_ps(_mm512_set1_ps(grid.reciprocal), total);
    const __m512 levels = _mm512_set1_ps((float)grid.levels);
    for (int64_t j = 0; j < tokens; j += 4) {
        __m512i code[4];
        for (int t = 0; t < 4; t++) {
            __m512 value = _mm512_fmadd_ps(_mm512_load_ps(h->logits[j + t]), share, add);
            value = _mm512_min_ps(_mm512_max_ps(value, _mm512_setzero_ps()), levels);
            code[t] = grid.rounding == HALF_AWAY ? _mm512_cvttps_epi32(value) : _mm512_cvtps_epi32(value);
        }
        const __m512i low = _mm512_or_si512(code[0], _mm512_slli_epi32(code[1], 8));
        const __m512i high = _mm512_or_si512(_mm512_slli_epi32(code[2], 16), _mm512_slli_epi32(code[3], 24));
        _mm512_store_si512(h->map[j / 4], _mm512_or_si512(low, high));
    }
}

INLINE void mix(const Attention *a, const Rows *rows, int64_t head, Head *h, int64_t first, const int64_t tokens) {
    const int64_t features = a->features, at = head * features;
    const __m512 product = _mm512_set1_ps(a->map.step * a->grids[2].step);
    __m512i total = _mm512_setzero_si512();
    for (int64_t j = 0; j < tokens / 4; j++)
        total = add_products(total, _mm512_load_si512(h->map[j]), _mm512_set1_epi32(0x01010101));
    const __m512 row = _mm512_mul_ps(_mm512_cvtepi32_ps(total),
                                     _mm512_set1_ps(a->map.step * middle_value(a->grids + 2)));
    for (int64_t e = 0; e < features; e += 4) {
        __m512i sum0 = _mm512_setzero_si512(), sum1 = sum0, sum2 = sum0, sum3 = sum0;
        for (int64_t j = 0; j < tokens / 4; j++) {
            const __m512i map = _mm512_load_si512(h->map[j]);
            const int32_t *value = h->value + j * FEATURES + e;
            sum0 = add_products(sum0, map, _mm512_set1_epi32(value[0]));
            sum1 = add_products(sum1, map, _mm512_set1_epi32(value[1]));
            sum2 = add_products(sum2, map, _mm512_set1_epi32(value[2]));
            sum3 = add_products(sum3, map, _mm512_set1_epi32(value[3]));
        }
        const __m512i sums[4] = {sum0, sum1, sum2, sum3};
        __m512i four = _mm512_setzero_si512();
        _Alignas(64) float y[4][SIDE];
        for (int64_t t = 0; t < 4 && e + t < features; t++) {
            const __m512 rest = _mm512_add_ps(row, _mm512_set1_ps(h->value_part[e + t]));
            const __m512 mixed = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[t]), product, rest);
            _mm512_store_ps(y[t], mixed);
            if (rows->codes) {
                const __m512i code = codes_of(mixed, rows->grid, _mm512_set1_ps(rows->grid->reciprocal));
                four = _mm512_or_si512(four, _mm512_sllv_epi32(code, _mm512_set1_epi32(8 * (int)t)));
            }
        }
        if (rows->codes) {
            _Alignas(64) int32_t words[SIDE];
            _mm512_store_si512(words, four);
            for (int64_t i = 0; i < SIDE; i++)
                memcpy(rows->codes + (first + i) * rows->target_stride + at + e, words + i, 4);
            continue;
        }
        for (int64_t i = 0; i < SIDE; i++)
            for (int64_t t = 0; t < 4 && e + t < features; t++)
                rows->y[(first + i) * rows->target_stride + at + e + t] = y[t][i];
    }
}

INLINE void attend(const Attention *a, const Rows *rows, const int32_t *regions, int64_t head, Head *h,
                   const int64_t tokens, const int64_t words) {
    const float *bias = a->bias + head * tokens * tokens;
    for (int64_t first = 0; first < tokens; first += SIDE) {
        encode_map(a, h, logits_of(a, bias, regions, h, first, tokens, words), tokens);
        mix(a, rows, head, h, first, tokens);
    }
}
#else
INLINE void attend(const Attention *a, const Rows *rows, const int32_t *regions, int64_t head, Head *h,
                   const int64_t tokens, const int64_t words) {
    const float *bias = a->bias + head * tokens * tokens, scale = a->grids[0].step * a->grids[1].step * LOG2E;
    const int8_t *query = (const int8_t *)h->query, *key = (const int8_t *)h->key, *value = (const int8_t *)h->value;
    for (int64_t i = 0; i < tokens; i++) {
        float logits[TOKENS], highest = -INFINITY, total = 0;
        uint8_t codes[TOKENS];
        for (int64_t j = 0; j < tokens; j++) {
            int32_t sum = h->key_start[j];
            for (int64_t e = 0; e < 4 * words; e++)
                sum += (uint8_t)query[(e / 4 * tokens + i) * 4 + e % 4] * key[4 * words * j + e];
            float offset = bias[j * tokens + i];
            if (regions && regions[i] != regions[j]) offset += MASKED;
            logits[j] = (float)sum * scale + h->key_part[j] + offset;
            highest = logits[j] > highest ? logits[j] : highest;
        }
        for (int64_t j = 0; j < tokens; j++) {
            logits[j] = exp2f(logits[j] - highest);
            total += logits[j];
        }
        const float row = a->map.step * middle_value(a->grids + 2) *
                          (float)quantize_row(logits, tokens, 1.0f / total, &a->map, codes);
        for (int64_t e = 0; e < a->features; e++) {
            int32_t sum = 0;
            for (int64_t j = 0; j < tokens; j++) sum += codes[j] * value[(j / 4 * FEATURES + e) * 4 + j % 4];
            const float y = (float)sum * (a->map.step * a->grids[2].step) + row + h->value_part[e];
            const int64_t at = i * rows->target_stride + head * a->features + e;
            if (rows->codes)
                rows->codes[at] = code_of(y, rows->grid);
            else
                rows->y[at] = y;
        }
    }
}
#endif

/* All heads of a window. Codes in may be read, and codes out written, up to SLACK bytes behind the last. */
static void attend_window(const Attention *a, const Rows *rows, const int32_t *regions, Head *h) {
    const int64_t words = (a->features + 3) / 4;
    for (int64_t head = 0; head < a->heads; head++) {
        arrange(a, rows, head, h);
        if (a->tokens == 64 && words == 3)
            attend(a, rows, regions, head, h, 64, 3);
        else
            attend(a, rows, regions, head, h, a->tokens, words);
    }
}

#endif
