/* Attention in (shifted) windows on codes: softmax(Q(q f) Q(k)^T + bias) = a, then Q(a) Q(v).
 *
 * q, k and v are read from tokens in raster order, (B, H * W, 3 C), and the result is written in it, so that
 * nobody rolls, cuts or joins windows. What is the same for a whole row of logits is left out, as a softmax does not
 * see it. */
#include "common.h"

#define TOKENS 256
#define FEATURES 64

typedef struct {
    int64_t batch, height, width, heads, features, window, shift;
    Grid query, key, value, map;
    float factor;
    const float *bias;
} Attention;

/* One head of one window. Keys as [features / 4][tokens][4], values as [tokens / 4][features][4], both minus the middle
 * code; code sums beside them. */
typedef struct {
    uint8_t query[TOKENS][FEATURES];
    int8_t key[TOKENS * FEATURES], value[TOKENS * FEATURES];
    int32_t key_start[TOKENS], region[TOKENS];
    float key_part[TOKENS], value_part[FEATURES];
    const float *source[TOKENS];
    float *target[TOKENS];
    int64_t tokens, depth, lanes;
    int masked;
} Head;

INLINE float first_value(const Grid *grid) {
    return grid->rounding == FLOAT_OFFSET ? grid->lower : grid->step * grid->zero_point;
}

INLINE int32_t code_of_zero(const Grid *grid) {
    const float code = rintf(-first_value(grid) / grid->step);
    return code < 0 ? 0 : code > (float)grid->levels ? grid->levels : (int32_t)code;
}

INLINE int32_t middle_of(const Grid *grid) { return (grid->levels + 1) / 2; }

static void place(const Attention *a, int64_t image, int64_t top, int64_t left, const float *qkv, float *out, Head *h) {
    const int64_t channels = a->heads * a->features;
    h->masked = a->shift && (top + a->window == a->height || left + a->window == a->width);
    for (int64_t i = 0; i < h->tokens; i++) {
        const int64_t y = top + i / a->window, x = left + i % a->window;
        const int64_t token = (image * a->height + (y + a->shift) % a->height) * a->width + (x + a->shift) % a->width;
        h->source[i] = qkv + token * 3 * channels;
        h->target[i] = out + token * channels;
        h->region[i] = 3 * ((y >= a->height - a->window) + (y >= a->height - a->shift)) +
                       (x >= a->width - a->window) + (x >= a->width - a->shift);
    }
}

static void encode(const Attention *a, int64_t head, Head *h) {
    const int64_t channels = a->heads * a->features, tokens = h->tokens;
    const int32_t query_zero = code_of_zero(&a->query), key_middle = middle_of(&a->key);
    const int32_t value_middle = middle_of(&a->value);
    const float value_first = first_value(&a->value) + a->value.step * (float)value_middle;
    const float query_rest = a->key.step * (first_value(&a->query) + a->query.step * (float)query_zero);
    int32_t value_sums[FEATURES] = {0};
    uint8_t codes[4][FEATURES], key_middles[FEATURES] = {0}, value_middles[FEATURES] = {0};
    memset(key_middles, key_middle, (size_t)a->features);
    memset(value_middles, value_middle, (size_t)a->features);
    for (int64_t first = 0; first < tokens; first += 4) {
        for (int64_t t = 0; t < 4; t++) {
            const int64_t i = first + t;
            const float *source = h->source[i] + head * a->features;
            quantize_row(source, a->features, a->factor, &a->query, h->query[i]);
            const int32_t sum = quantize_row(source + channels, a->features, 1.0f, &a->key, codes[t]) -
                                (int32_t)a->features * key_middle;
            h->key_start[i] = -query_zero * sum;
            h->key_part[i] = query_rest * (float)sum;
            for (int64_t e = 0; e < h->lanes; e += 16)
                for (int64_t l = e; l < e + 16; l++) codes[t][l] = (uint8_t)(codes[t][l] - key_middles[l]);
            for (int64_t e = 0; e < h->depth; e += 4) memcpy(h->key + (e / 4 * tokens + i) * 4, codes[t] + e, 4);
            quantize_row(source + 2 * channels, a->features, 1.0f, &a->value, codes[t]);
        }
        int8_t *value = h->value + first * h->lanes;
        for (int64_t e = 0; e < h->lanes; e += 16) {
            for (int64_t l = e; l < e + 16; l++) {
                int32_t sum = 0;
                for (int64_t t = 0; t < 4; t++) {
                    const int8_t code = (int8_t)(codes[t][l] - value_middles[l]);
                    value[l * 4 + t] = code;
                    sum += code;
                }
                value_sums[l] += sum;
            }
        }
    }
    for (int64_t e = 0; e < h->lanes; e++)
        h->value_part[e] = first_value(&a->map) * (a->value.step * (float)value_sums[e] +
                                                   value_first * (float)h->tokens);
}

#if defined(__AVX512VNNI__)
INLINE void attend(const Attention *a, const float *bias, int64_t head, const Head *h, const int64_t tokens) {
    const int vectors = (int)(tokens / LANES);
    const __m512 scale = _mm512_set1_ps(a->query.step * a->key.step), masked = _mm512_set1_ps(-100.0f);
    const float value_first = first_value(&a->value) + a->value.step * (float)middle_of(&a->value);
    const Grid map = a->map;
    const __m512 reciprocal = _mm512_set1_ps(map.reciprocal);
    for (int64_t i = 0; i < tokens; i++) {
        __m512 logits[TOKENS / LANES];
        __m512 highest = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
        for (int v = 0; v < vectors; v++) {
            __m512i sum = _mm512_loadu_si512(h->key_start + v * LANES);
            for (int64_t e = 0; e < h->depth; e += 4) {
                int32_t four;
                memcpy(&four, h->query[i] + e, 4);
                sum = add_products(sum, _mm512_set1_epi32(four),
                                          _mm512_loadu_si512(h->key + (e / 4 * tokens + v * LANES) * 4));
            }
            __m512 offset = _mm512_loadu_ps(bias + i * tokens + v * LANES);
            if (h->masked) {
                const __m512i region = _mm512_loadu_si512(h->region + v * LANES);
                const __mmask16 other = _mm512_cmpneq_epi32_mask(region, _mm512_set1_epi32(h->region[i]));
                offset = _mm512_mask_add_ps(offset, other, offset, masked);
            }
            const __m512 logit = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale,
                                                 _mm512_loadu_ps(h->key_part + v * LANES));
            logits[v] = _mm512_add_ps(logit, offset);
            highest = _mm512_max_ps(highest, logits[v]);
        }
        highest = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
        for (int v = 0; v < vectors; v++) {
            logits[v] = exponential(_mm512_sub_ps(logits[v], highest));
            total = _mm512_add_ps(total, logits[v]);
        }
        const __m512 share = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
        __m512i codes_sum = _mm512_setzero_si512();
        uint8_t codes[TOKENS];
        for (int v = 0; v < vectors; v++) {
            const __m512i code = codes_of(_mm512_mul_ps(logits[v], share), &map, reciprocal);
            codes_sum = _mm512_add_epi32(codes_sum, code);
            _mm_storeu_si128((__m128i *)(codes + v * LANES), _mm512_cvtepi32_epi8(code));
        }
        const __m512 row = _mm512_set1_ps(a->map.step * value_first * (float)_mm512_reduce_add_epi32(codes_sum));
        const __m512 product = _mm512_set1_ps(a->map.step * a->value.step);
        for (int64_t e = 0; e < h->lanes; e += LANES) {
            __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                               _mm512_setzero_si512()};
            for (int64_t j = 0; j < tokens; j += 16) {
#pragma GCC unroll 4
                for (int q = 0; q < 4; q++) {
                    int32_t four;
                    memcpy(&four, codes + j + 4 * q, 4);
                    const int8_t *from = h->value + ((j / 4 + q) * h->lanes + e) * 4;
                    sums[q] = add_products(sums[q], _mm512_set1_epi32(four), _mm512_loadu_si512(from));
                }
            }
            const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]),
                                                 _mm512_add_epi32(sums[2], sums[3]));
            __m512 y = _mm512_add_ps(row, _mm512_loadu_ps(h->value_part + e));
            y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), product, y);
            _mm512_mask_storeu_ps(h->target[i] + head * a->features + e, first_lanes(a->features - e), y);
        }
    }
}
#else
INLINE void attend(const Attention *a, const float *bias, int64_t head, const Head *h, const int64_t tokens) {
    const float scale = a->query.step * a->key.step;
    const float value_first = first_value(&a->value) + a->value.step * (float)middle_of(&a->value);
    for (int64_t i = 0; i < tokens; i++) {
        float logits[TOKENS], highest = -INFINITY, total = 0;
        uint8_t codes[TOKENS];
        for (int64_t j = 0; j < tokens; j++) {
            int32_t sum = h->key_start[j];
            for (int64_t e = 0; e < h->depth; e++) sum += h->query[i][e] * h->key[(e / 4 * tokens + j) * 4 + e % 4];
            float offset = bias[i * tokens + j];
            if (h->masked && h->region[i] != h->region[j]) offset += -100.0f;
            logits[j] = (float)sum * scale + h->key_part[j] + offset;
            highest = logits[j] > highest ? logits[j] : highest;
        }
        for (int64_t j = 0; j < tokens; j++) {
            logits[j] = expf(logits[j] - highest);
            total += logits[j];
        }
        for (int64_t j = 0; j < tokens; j++) logits[j] *= 1.0f / total;
        const float row = a->map.step * value_first * (float)quantize_row(logits, tokens, 1.0f, &a->map, codes);
        for (int64_t e = 0; e < a->features; e++) {
            int32_t sum = 0;
            for (int64_t j = 0; j < tokens; j++) sum += codes[j] * h->value[(j / 4 * h->lanes + e) * 4 + j % 4];
            h->target[i][head * a->features + e] = (float)sum * (a->map.step * a->value.step) + row + h->value_part[e];
        }
    }
}
#endif

/* out (B, H * W, C) from qkv (B, H * W, 3 C). bias: (heads, tokens, tokens). A window has a multiple of 16 tokens, at
 * most TOKENS; a head at most FEATURES features. Returns 0, or 1 if that is not so or there is no memory. */
int32_t bq_window_attention(const float *qkv, const Attention *a, float *out, int32_t threads) {
    const int64_t tokens = a->window * a->window, rows = a->height / a->window, columns = a->width / a->window;
    int failed = tokens % 16 || tokens > TOKENS || a->features > FEATURES;
    if (failed) return 1;
    PARALLEL(omp parallel num_threads(threads) if (threads > 1))
    {
        Head *h = malloc(sizeof(Head));
        if (h) {
            h->tokens = tokens;
            h->depth = (a->features + 3) / 4 * 4;
            h->lanes = (a->features + 15) / 16 * 16;
        } else {
            PARALLEL(omp atomic write)
            failed = 1;
        }
        PARALLEL(omp for)
        for (int64_t window = 0; window < a->batch * rows * columns; window++) {
            if (!h) continue;
            const int64_t image = window / (rows * columns), at = window % (rows * columns);
            place(a, image, at / columns * a->window, at % columns * a->window, qkv, out, h);
            for (int64_t head = 0; head < a->heads; head++) {
                encode(a, head, h);
                const float *bias = a->bias + head * tokens * tokens;
                if (tokens == 64)
                    attend(a, bias, head, h, 64);
                else
                    attend(a, bias, head, h, tokens);
            }
        }
        free(h);
    }
    return failed;
}
