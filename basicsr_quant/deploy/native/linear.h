/* Quantized linear layers on rows of tokens: codes, integer sums and the result without a detour through memory. */
#ifndef BASICSR_QUANT_LINEAR_H
#define BASICSR_QUANT_LINEAR_H

#include "common.h"

#define ROWS 48
#define TALL 6
#define SHORT 4
#define COLUMNS 16
#define WIDE 4

/* Of each part: weight codes minus their middle as [outputs / 16][inputs / 4][16][4]; start: - c * sum of a row of
 * these, c the activation code nearest to zero; centre: inputs * c. y = scale * sum + row_scale * (sum of codes -
 * centre) + constant. Outputs are rounded up to 16, inputs to 4, with zeros. norm_weight NULL: no LayerNorm before. */
typedef struct {
    int64_t inputs, outputs, parts;
    const Grid *grids;
    const int8_t *weight;
    const int32_t *start, *centre;
    const float *scale, *row_scale, *constant, *norm_weight, *norm_bias;
    float norm_epsilon;
    int32_t gelu;
} Linear;

/* Where results go: `sums`, the integer sums; `codes`, what the result times a factor becomes on the grid of each part,
 * the parts `part_stride` apart and rows `row_stride`; else `y`, with the residual added if there is one. */
typedef struct {
    int32_t *sums;
    uint8_t *codes;
    const Grid *grids;
    int64_t part_stride, row_stride;
    float first_factor;
    float *y;
    const float *residual;
} Target;

typedef struct {
    const Linear *layer;
    const uint8_t *codes;
    const int32_t *row_sums;
    const Target *target;
    int64_t part, depth, code_stride, stride;
} Block;

#ifdef __AVX512F__
/* Abramowitz and Stegun 7.1.26: erf to 1.5e-7. */
INLINE __m512 gelu_of(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    const __m512 d = _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one);
    __m512 t = _mm512_rcp14_ps(d);
    t = _mm512_fmadd_ps(t, _mm512_fnmadd_ps(d, t, one), t);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.061405429f), t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_mul_ps(_mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f)), t);
    const __m512 fall = power_of_two(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f * LOG2E)));
    const __m512 half = _mm512_mul_ps(_mm512_set1_ps(0.5f), x), less = _mm512_mul_ps(half, _mm512_mul_ps(p, fall));
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mask_mov_ps(_mm512_sub_ps(x, less), negative, less);
}

INLINE void finish(const Block *block, int64_t row, int64_t first, __m512i sum) {
    const Linear *layer = block->layer;
    const Target *target = block->target;
    const __mmask16 present = first_lanes(layer->outputs - first);
    const int64_t at = row * block->stride + block->part * layer->outputs + first;
    if (target->sums) {
        _mm512_mask_storeu_epi32(target->sums + at, present, sum);
        return;
    }
    const int64_t own = block->part * ((layer->outputs + COLUMNS - 1) / COLUMNS * COLUMNS) + first;
    __m512 y = _mm512_loadu_ps(layer->constant + own);
    y = _mm512_fmadd_ps(_mm512_set1_ps((float)block->row_sums[row]), _mm512_loadu_ps(layer->row_scale + own), y);
    y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(layer->scale + own), y);
    if (layer->gelu) y = gelu_of(y);
    if (target->codes) {
        const Grid *grid = target->grids + block->part;
        if (block->part == 0) y = _mm512_mul_ps(y, _mm512_set1_ps(target->first_factor));
        uint8_t *codes = target->codes + block->part * target->part_stride + row * target->row_stride + first;
        _mm512_mask_cvtepi32_storeu_epi8(codes, present, codes_of(y, grid, _mm512_set1_ps(grid->reciprocal)));
        return;
    }
    if (target->residual) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(present, target->residual + at));
    if (present == 0xffff)
        _mm512_storeu_ps(target->y + at, y);
    else
        _mm512_mask_storeu_ps(target->y + at, present, y);
}
#else
INLINE void finish(const Block *block, int64_t row, int64_t first, const int32_t sums[COLUMNS]) {
    const Linear *layer = block->layer;
    const Target *target = block->target;
    const int64_t at = row * block->stride + block->part * layer->outputs + first;
    const int64_t own = block->part * ((layer->outputs + COLUMNS - 1) / COLUMNS * COLUMNS) + first;
    for (int64_t i = 0; i < COLUMNS && first + i < layer->outputs; i++) {
        if (target->sums) {
            target->sums[at + i] = sums[i];
            continue;
        }
        float y = (float)block->row_sums[row] * layer->row_scale[own + i] + layer->constant[own + i];
        y += (float)sums[i] * layer->scale[own + i];
        if (layer->gelu) y *= 0.5f * (1.0f + erff(y * 0.70710678f));
        if (target->codes) {
            uint8_t *codes = target->codes + block->part * target->part_stride + row * target->row_stride + first;
            codes[i] = code_of(block->part == 0 ? y * target->first_factor : y, target->grids + block->part);
            continue;
        }
        target->y[at + i] = target->residual ? y + target->residual[at + i] : y;
    }
}
#endif

/* Sums of `rows` rows and `wide` groups of COLUMNS outputs. */
INLINE void tile(const Block *block, int64_t row, int64_t group, const int rows, const int wide) {
    const Linear *layer = block->layer;
    const int64_t depth = block->depth, groups = (layer->outputs + COLUMNS - 1) / COLUMNS, size = depth * COLUMNS;
    const int8_t *w = layer->weight + (block->part * groups + group) * size;
    const int32_t *start = layer->start + (block->part * groups + group) * COLUMNS;
    const uint8_t *codes = block->codes + row * block->code_stride;
#if defined(__AVX512VNNI__)
    /* Every sum is a variable of its own, since compilers keep arrays of registers in memory. */
#define EACH_ROW(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define BEGIN(r) __m512i s##r##0 = begin0, s##r##1 = begin1, s##r##2 = begin2, s##r##3 = begin3;
#define STEP(r)                                                                            \
    if (r < rows) {                                                                        \
        int32_t four;                                                                      \
        memcpy(&four, codes + r * block->code_stride + k, 4);                              \
        const __m512i value = _mm512_set1_epi32(four);                                     \
        s##r##0 = add_products(s##r##0, value, w0);                                 \
        if (wide > 1) s##r##1 = add_products(s##r##1, value, w1);                   \
        if (wide > 2) s##r##2 = add_products(s##r##2, value, w2);                   \
        if (wide > 3) s##r##3 = add_products(s##r##3, value, w3);                   \
    }
#define END(r)                                                                             \
    if (r < rows) {                                                                        \
        _mm512_store_si512(sums[r], s##r##0);                                              \
        if (wide > 1) _mm512_store_si512(sums[r] + COLUMNS, s##r##1);                      \
        if (wide > 2) _mm512_store_si512(sums[r] + 2 * COLUMNS, s##r##2);                  \
        if (wide > 3) _mm512_store_si512(sums[r] + 3 * COLUMNS, s##r##3);                  \
    }
#define LOAD(from, g, step) (g < wide ? _mm512_loadu_si512((from) + g * (step)) : _mm512_setzero_si512())
    _Alignas(64) int32_t sums[TALL][WIDE * COLUMNS];
    const __m512i begin0 = LOAD(start, 0, COLUMNS), begin1 = LOAD(start, 1, COLUMNS);
    const __m512i begin2 = LOAD(start, 2, COLUMNS), begin3 = LOAD(start, 3, COLUMNS);
    EACH_ROW(BEGIN)
    for (int64_t k = 0; k < depth; k += 4) {
        const int8_t *from = w + k * COLUMNS;
        const __m512i w0 = LOAD(from, 0, size), w1 = LOAD(from, 1, size), w2 = LOAD(from, 2, size);
        const __m512i w3 = LOAD(from, 3, size);
        EACH_ROW(STEP)
    }
    EACH_ROW(END)
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < wide; g++)
            finish(block, row + r, (group + g) * COLUMNS, _mm512_load_si512(sums[r] + g * COLUMNS));
#undef EACH_ROW
#undef BEGIN
#undef STEP
#undef END
#undef LOAD
#else
    for (int r = 0; r < rows; r++) {
        for (int g = 0; g < wide; g++) {
            int32_t sums[COLUMNS];
            memcpy(sums, start + g * COLUMNS, sizeof sums);
#ifdef __AVX2__
            __m256i pairs[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                                _mm256_setzero_si256()};
            for (int64_t k = 0; k < depth; k += 4) {
                int32_t four;
                memcpy(&four, codes + r * block->code_stride + k, 4);
                const __m256i value = _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
                for (int q = 0; q < 4; q++) {
                    const int8_t *from = w + g * size + k * COLUMNS + q * 16;
                    const __m256i weight = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)from));
                    pairs[q] = _mm256_add_epi32(pairs[q], _mm256_madd_epi16(value, weight));
                }
            }
            for (int q = 0; q < 2; q++) {
                const __m256i halves = _mm256_hadd_epi32(pairs[2 * q], pairs[2 * q + 1]);
                const __m256i ordered = _mm256_permute4x64_epi64(halves, 0xd8);
                __m256i *to = (__m256i *)(sums + 8 * q);
                _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), ordered));
            }
#else
            for (int64_t k = 0; k < depth; k++)
                for (int o = 0; o < COLUMNS; o++)
                    sums[o] += codes[r * block->code_stride + k] * w[g * size + k / 4 * 4 * COLUMNS + o * 4 + k % 4];
#endif
#ifdef __AVX512F__
            finish(block, row + r, (group + g) * COLUMNS, _mm512_loadu_si512(sums));
#else
            finish(block, row + r, (group + g) * COLUMNS, sums);
#endif
        }
    }
#endif
}

INLINE void columns(const Block *block, int64_t row, const int rows) {
    const int64_t groups = (block->layer->outputs + COLUMNS - 1) / COLUMNS;
    int64_t group = 0;
    for (; group + WIDE <= groups; group += WIDE) tile(block, row, group, rows, WIDE);
    if (groups - group == 3) tile(block, row, group, rows, 3);
    if (groups - group == 2) tile(block, row, group, rows, 2);
    if (groups - group == 1) tile(block, row, group, rows, 1);
}

static void multiply(const Block *block, int64_t rows) {
    int64_t row = 0;
    for (; row + TALL <= rows; row += TALL) columns(block, row, TALL);
    for (; row + SHORT <= rows; row += SHORT) columns(block, row, SHORT);
    for (; row < rows; row++) columns(block, row, 1);
}

static void normalize(const float *x, const Linear *layer, float *y) {
    const int64_t count = layer->inputs;
    float mean = 0, variance = 0;
#ifdef __AVX512F__
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += LANES) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(first_lanes(count - i),
                                                                                           x + i));
    mean = _mm512_reduce_add_ps(sum) / (float)count;
    for (int64_t i = 0; i < count; i += LANES) {
        const __mmask16 present = first_lanes(count - i);
        const __m512 off = _mm512_maskz_sub_ps(present, _mm512_maskz_loadu_ps(present, x + i), _mm512_set1_ps(mean));
        squares = _mm512_fmadd_ps(off, off, squares);
    }
    variance = _mm512_reduce_add_ps(squares) / (float)count;
    const float factor = 1.0f / sqrtf(variance + layer->norm_epsilon);
    for (int64_t i = 0; i < count; i += LANES) {
        const __mmask16 present = first_lanes(count - i);
        __m512 off = _mm512_sub_ps(_mm512_maskz_loadu_ps(present, x + i), _mm512_set1_ps(mean));
        off = _mm512_mul_ps(_mm512_mul_ps(off, _mm512_set1_ps(factor)),
                            _mm512_maskz_loadu_ps(present, layer->norm_weight + i));
        _mm512_mask_storeu_ps(y + i, present, _mm512_add_ps(off, _mm512_maskz_loadu_ps(present, layer->norm_bias + i)));
    }
#else
    for (int64_t i = 0; i < count; i++) mean += x[i];
    mean /= (float)count;
    for (int64_t i = 0; i < count; i++) variance += (x[i] - mean) * (x[i] - mean);
    const float factor = 1.0f / sqrtf(variance / (float)count + layer->norm_epsilon);
    for (int64_t i = 0; i < count; i++) y[i] = (x[i] - mean) * factor * layer->norm_weight[i] + layer->norm_bias[i];
#endif
}

INLINE int64_t code_stride_of(const Linear *layer) { return (layer->inputs + 15) / 16 * 16; }

/* The layer on `rows` rows of codes that are there already, `code_stride` apart; `row_sums` has room for a number of
 * each. */
static void linear_on_codes(const Linear *layer, int64_t part, const uint8_t *codes, int64_t code_stride, int64_t rows,
                            const Target *target, int32_t *row_sums) {
    for (int64_t i = 0; i < rows; i++)
        row_sums[i] = sum_of_codes(codes + i * code_stride, layer->inputs) - layer->centre[part];
    const Block block = {layer, codes, row_sums, target, part, (layer->inputs + 3) / 4 * 4, code_stride,
                         layer->parts * layer->outputs};
    multiply(&block, rows);
}

/* The layer on `rows` rows. Room: `codes` for rows * code_stride_of, `normalized` for the rows if there is a norm. */
static void linear_on_rows(const Linear *layer, const float *x, int64_t rows, const Target *target, uint8_t *codes,
                           float *normalized, int32_t *row_sums) {
    const int64_t code_stride = code_stride_of(layer);
    if (layer->norm_weight) {
        for (int64_t i = 0; i < rows; i++)
            normalize(x + i * layer->inputs, layer, normalized + i * layer->inputs);
        x = normalized;
    }
    for (int64_t part = 0; part < layer->parts; part++) {
        if (part == 0 || memcmp(layer->grids + part, layer->grids + part - 1, sizeof(Grid)))
            for (int64_t i = 0; i < rows; i++)
                quantize_row(x + i * layer->inputs, layer->inputs, 1.0f, layer->grids + part, codes + i * code_stride);
        linear_on_codes(layer, part, codes, code_stride, rows, target, row_sums);
    }
}

#endif
